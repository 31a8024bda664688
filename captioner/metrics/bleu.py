"""BLEU-1 to BLEU-4: clipped n-gram precision with brevity penalty, without smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.metric import Metric
from captioner.metrics.references import MAX_ORDER, Floats, Ints, Tokens, spans


class Bleu(Metric):
    """BLEU, clipped over all references, with the closest reference length (ties: the shorter).

    Source: Papineni, Roukos, Ward, Zhu: BLEU: a method for automatic evaluation of machine
    translation, ACL 2002.
    """

    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    formula: ClassVar = {"smooth": "none", "ref_len": "closest"}

    def statistics(
        self, hypotheses: Sequence[Tokens], images: Sequence[int] | Ints | None = None
    ) -> Floats:
        """Count n-grams, matches and reference lengths; `images` as in `PreparedReferences.check`.

        Returns:
            float64 (N, 9): for order 1 to 4, the number of n-grams in the hypothesis; for order 1
            to 4, the clipped number that occur in a reference; the closest reference length.

        Raises:
            DataError: see `PreparedReferences.check`.
        """
        references = self._references
        described = references.check(hypotheses, images)
        counts = references.count(hypotheses)
        rows, matches = references.match(counts, described)
        allowed = np.zeros(len(counts.times), np.int64)
        np.maximum.at(allowed, rows, references.counts.times[matches])
        matched = np.bincount(
            counts.caption * MAX_ORDER + counts.order,
            weights=np.minimum(counts.times, allowed),
            minlength=len(described) * MAX_ORDER,
        ).reshape(-1, MAX_ORDER)
        lengths = np.array([len(hypothesis) for hypothesis in hypotheses], np.int64)
        possible = np.maximum(lengths[:, None] - np.arange(MAX_ORDER), 0)
        closest = self._closest_length(lengths, described)
        return np.column_stack([possible, matched, closest]).astype(np.float64)

    def _closest_length(self, lengths: Ints, described: Ints) -> Ints:
        """Return the reference length closest to each hypothesis length; ties: the shorter."""
        references = self._references
        number = references.per_image[described]
        possible = references.lengths[spans(references.first[described], number)]
        distance = np.abs(possible - np.repeat(lengths, number))
        ranked = (distance << 32) | possible
        return np.minimum.reduceat(ranked, np.cumsum(number) - number) & 0xFFFFFFFF

    def combine(self, sums: Floats) -> Floats:
        """Compute BLEU-1 to BLEU-4, 0 to 1, (..., 4); exactly 0 if an order has no match."""
        possible, matched = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
        length, reference_length = sums[..., 0], sums[..., -1]
        precision = np.divide(matched, possible, out=np.zeros_like(matched), where=possible > 0)
        shortness = np.divide(reference_length, length, out=np.ones_like(length), where=length > 0)
        with np.errstate(divide="ignore"):  # log 0 = -inf: an order without a match makes BLEU 0
            mean_log = np.cumsum(np.log(precision), axis=-1) / np.arange(1, MAX_ORDER + 1)
        return np.asarray(np.exp(mean_log + np.minimum(0.0, 1.0 - shortness)[..., None]))
