"""captioner: a frozen CNN starts an RNN, and the RNN writes the caption.

>>> from captioner import Captioner                                    # doctest: +SKIP
>>> Captioner.load("runs/scenes/model").caption("image.jpg")           # doctest: +SKIP

`__all__` lists the public names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captioner.system.cores import share_cores
from captioner.system.version import __version__

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.captioning.maps import draw_maps
    from captioner.captioning.ray import caption_with_ray
    from captioner.captioning.records import CaptioningOptions, Record, caption_files
    from captioner.captioning.sources import list_images
    from captioner.captioning.wording import sentence
    from captioner.config import DecodingConfig
    from captioner.data.load import load_dataset
    from captioner.errors import CaptionerError, ConfigError, DataError, ImageError, ModelError
    from captioner.explanation.explained import Explanation
    from captioner.explanation.trace import (
        Candidate,
        RankedCaption,
        SearchTrace,
        StateTrace,
        Trace,
    )
    from captioner.metrics import (
        CiderD,
        MetricInputs,
        PreparedReferences,
        SystemCaptions,
        compare_captions,
        score_captions,
    )
    from captioner.text import Caption, Word, WordAttention, detokenize, tokenize

share_cores()  # before torch is imported

# Modules of the public names, imported on first use: `import captioner` imports no torch or nltk.
_MODULES = {
    "config": ["DecodingConfig"],
    "data.load": ["load_dataset"],
    "errors": ["CaptionerError", "ConfigError", "DataError", "ImageError", "ModelError"],
    "explanation.explained": ["Explanation"],
    "captioning.maps": ["draw_maps"],
    "captioning.ray": ["caption_with_ray"],
    "captioning.records": ["CaptioningOptions", "Record", "caption_files"],
    "captioning.sources": ["list_images"],
    "captioning.wording": ["sentence"],
    "explanation.trace": ["Candidate", "RankedCaption", "SearchTrace", "StateTrace", "Trace"],
    "metrics": [
        *("CiderD", "MetricInputs", "PreparedReferences", "SystemCaptions"),
        *("compare_captions", "score_captions"),
    ],
    "captioner": ["Captioner"],
    "text": ["Caption", "Word", "WordAttention", "detokenize", "tokenize"],
}

__all__ = [
    "Candidate",
    "Caption",
    "Captioner",
    "CaptionerError",
    "CaptioningOptions",
    "CiderD",
    "ConfigError",
    "DataError",
    "DecodingConfig",
    "Explanation",
    "ImageError",
    "MetricInputs",
    "ModelError",
    "PreparedReferences",
    "RankedCaption",
    "Record",
    "SearchTrace",
    "StateTrace",
    "SystemCaptions",
    "Trace",
    "Word",
    "WordAttention",
    "__version__",
    "caption_files",
    "caption_with_ray",
    "compare_captions",
    "detokenize",
    "draw_maps",
    "list_images",
    "load_dataset",
    "score_captions",
    "sentence",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"captioner.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
