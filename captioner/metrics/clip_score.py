"""CLIPScore and RefCLIPScore: does a caption fit the picture, and the references, by CLIP?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.inputs import ClipVectors, MetricInputs, SystemCaptions
from captioner.metrics.metric import Metric, as_written, with_count
from captioner.metrics.references import Floats, Tokens

WEIGHT = 2.5
PROMPT = "A photo depicts "


class ClipScore(Metric):
    """CLIPScore, 0 to 2.5, and RefCLIPScore, 0 to 1.43; a caption without a word scores 0.

    With unit vectors c of the caption, v of the picture and r of the references,

        CLIPScore = 2.5 max(cos(c, v), 0)
        RefCLIPScore = harmonic mean of CLIPScore and max(max over r of cos(c, r), 0)

    Source: Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: a reference-free evaluation metric
    for image captioning, EMNLP 2021.
    """

    names = ("clip_score", "ref_clip_score")
    formula: ClassVar = {"w": f"{WEIGHT:g}", "prompt": PROMPT.strip()}
    _clip: ClipVectors | None = None
    _inputs = MetricInputs()

    def use(self, inputs: MetricInputs, tokenizer: str) -> None:  # noqa: ARG002
        """Take the vectors of the pictures; a note says why there are none."""
        self._clip, self._inputs = inputs.clip, inputs
        if not self._clip:
            self.note = inputs.missing.get("clip_score", "needs a CLIP model and the pictures")

    def fields(self) -> dict[str, str]:
        """Return the fields of the formula, and the model."""
        return {"clip": self._clip.name if self._clip else "none", **self.formula}

    def measure(self, captions: SystemCaptions | Sequence[Tokens]) -> Floats:
        """Return both scores of each image and the count 1, (N, 3).

        Raises:
            ConfigError: if the captions are tokens.
            DataError: if the images are not those of the references.
        """
        written = as_written(captions, "clip_score")
        self._references.check(written.best)
        if not self._clip:
            return with_count(np.full((len(written.best), 2), np.nan))
        vectors = self._clip.texts([PROMPT + texts[0] for texts in written.texts])
        fits = WEIGHT * (vectors * self._clip.pictures).sum(axis=1).clip(min=0)
        near = np.array(
            [
                (references @ vector).max(initial=0.0)
                for references, vector in zip(self._of_references(self._clip), vectors, strict=True)
            ]
        )
        both = np.divide(2 * fits * near, fits + near, out=np.zeros_like(fits), where=fits > 0)
        has_words = np.array([bool(caption) for caption in written.best])
        return with_count(np.column_stack([fits, both]) * has_words[:, None])

    def _of_references(self, clip: ClipVectors) -> list[Floats]:
        """Return the vectors of each image's references, (R, D); the same for all systems."""
        if "clip" not in self._inputs.kept:
            sizes = [len(texts) for texts in self._inputs.references]
            vectors = clip.texts(
                [PROMPT + text for each in self._inputs.references for text in each]
            )
            self._inputs.kept["clip"] = np.split(vectors, np.cumsum(sizes)[:-1])
        found: list[Floats] = self._inputs.kept["clip"]
        return found
