"""What all metrics share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.references import Floats, PreparedReferences, Tokens, prepare


class Metric:
    """A metric: statistics of each image, summed over images and combined to K scores.

    Args:
        references: the tokens of each image's reference captions, or prepared references.

    Raises:
        DataError: see `PreparedReferences`.
    """

    names: ClassVar[tuple[str, ...]]  # of the K scores
    formula: ClassVar[Mapping[str, str]]  # fields of the signature
    note = ""  # reason why the scores are undefined; empty if they are defined

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        self._references = prepare(references)

    def score(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image, (N,); only for metrics of which the score is the mean over images."""
        raise NotImplementedError

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Return the statistics of each image, (N, S): here its score and the count 1.

        Raises:
            DataError: if there is not one caption for each image.
        """
        scores = self.score(hypotheses)
        return np.column_stack([scores, np.ones(len(scores))])

    def combine(self, sums: Floats) -> Floats:
        """Compute scores, (..., K), from statistics of one image or summed, (..., S)."""
        return np.asarray(sums[..., :1] / sums[..., 1:])
