"""ROUGE-L: F-score of the longest common subsequence with the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.metric import Metric
from captioner.metrics.references import Floats, Tokens

BETA = 1.2  # weight of recall, as in the COCO evaluation


class RougeL(Metric):
    """ROUGE-L as in the COCO evaluation: F-score of the best precision and the best recall.

    Source: Lin, Och: Automatic evaluation of machine translation quality using longest common
    subsequence and skip-bigram statistics, ACL 2004.
    """

    names = ("rouge_l",)
    formula: ClassVar = {"beta": str(BETA)}

    def score(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image, float64 (N,), 0 to 1."""
        self._references.check(hypotheses)
        pairs = enumerate(hypotheses)
        return np.array([_rouge_l(each, self._references.of(image)) for image, each in pairs])


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
