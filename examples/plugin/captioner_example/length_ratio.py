"""A metric: how long captions are, compared with their references."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.metric import Metric
from captioner.metrics.references import Floats, Tokens


class LengthRatio(Metric):
    """Words of a caption, divided by the mean words of the image's references."""

    names = ("length_ratio",)
    formula: ClassVar = {"mean": "arithmetic"}  # in the signature

    def score(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image, float64 (N,)."""
        self._references.check(hypotheses)
        means = [
            np.mean([len(reference) for reference in self._references.of(image)])
            for image in range(len(hypotheses))
        ]
        return np.array([len(words) for words in hypotheses]) / means
