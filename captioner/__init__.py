"""captioner: a frozen CNN starts an RNN, and the RNN writes the caption.

>>> from captioner import Captioner                                    # doctest: +SKIP
>>> Captioner.load("runs/scenes/model").caption("image.jpg")           # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from captioner.models.captioner import Captioner

__all__ = ["Captioner", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Captioner`, and with it torch, only when somebody asks for it."""
    if name == "Captioner":
        from captioner.models.captioner import Captioner

        return Captioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
