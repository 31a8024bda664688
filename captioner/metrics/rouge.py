"""ROUGE-L: F-score of the longest common subsequence with the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.references import Floats, PreparedReferences, Tokens, prepare

BETA = 1.2  # weight of recall, as in the COCO evaluation


class RougeL:
    """ROUGE-L as in the COCO evaluation: F-score of the best precision and the best recall.

    Source: Lin, Och: Automatic evaluation of machine translation quality using longest common
    subsequence and skip-bigram statistics, ACL 2004.

    Args:
        references: the tokens of each image's reference captions, or prepared references.

    Raises:
        DataError: see `PreparedReferences`.
    """

    names: ClassVar[tuple[str, ...]] = ("rouge_l",)
    formula: ClassVar[dict[str, str]] = {"beta": str(BETA)}
    note = ""

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        self._references = prepare(references)

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image.

        Args:
            hypotheses: the tokens of one caption for each image.

        Returns:
            float64 (N, 2): the image's score in [0, 1], and 1 to count it.

        Raises:
            DataError: if the numbers of hypotheses and images differ, or an index is out of range.
        """
        references = self._references
        references.check(hypotheses)
        captions, first = references.captions, references.first
        scores = [
            _rouge_l(hypothesis, captions[start : start + number])
            for hypothesis, start, number in zip(
                hypotheses, first.tolist(), references.per_image.tolist(), strict=True
            )
        ]
        return np.column_stack([scores, np.ones(len(scores))])

    def combine(self, sums: Floats) -> Floats:
        """Compute the mean score (..., 1) from statistics (..., 2), of one image or summed."""
        return np.asarray(sums[..., :1] / sums[..., 1:])


def _rouge_l(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    """Score one caption; 0 without a common word."""
    common = lcs_lengths(hypothesis, references)
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(
        length / len(reference)
        for length, reference in zip(common, references, strict=True)
        if len(reference)
    )
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def lcs_lengths(hypothesis: Tokens, references: Sequence[Tokens]) -> list[int]:
    """Return the length of the longest common subsequence with each reference.

    One integer holds a row of the dynamic programming table, one bit for each hypothesis token.

    Source: Hyyro: Bit-parallel LCS-length computation revisited, AWOCA 2004.
    """
    positions: dict[str, int] = {}
    for position, token in enumerate(hypothesis):
        positions[token] = positions.get(token, 0) | (1 << position)
    all_bits = (1 << len(hypothesis)) - 1
    lengths = []
    for reference in references:
        row = all_bits
        for token in reference:
            matches = row & positions.get(token, 0)
            row = ((row + matches) | (row - matches)) & all_bits
        lengths.append(len(hypothesis) - row.bit_count())
    return lengths
