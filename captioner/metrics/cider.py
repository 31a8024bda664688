"""CIDEr and CIDEr-D: tf-idf weighted n-gram similarity to the references, from 0 to 10.

What papers print as "CIDEr" comes from the COCO scorer, whose formula is CIDEr-D. The score
named `cider` is that number, so `cider` and `cider_d` are equal; the formula without clipping
and length penalty, the first in the paper, is `cider_plain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.references import (
    MAX_ORDER,
    Floats,
    Ints,
    NgramCounts,
    PreparedReferences,
    Tokens,
    prepare,
    spans,
)

SIGMA = 6.0  # tokens; width of the length penalty


class TfIdf:
    """Captions as vectors of CIDEr: of each n-gram, how often they hold it times its idf.

    Attributes:
        frequency: images whose references hold each n-gram, int64 (n-grams,).
        idf: log(images / frequency), float64 (n-grams + 1,); the last is of n-grams in no
            reference, whose frequency counts as 1.
        weights: of each row of the references' counts, float64 (E,).
        norms: of each reference's vector for each order, float64 (references, MAX_ORDER).

    Args:
        references: whose images give the document frequencies.
    """

    def __init__(self, references: PreparedReferences) -> None:
        counts = references.counts
        images = references.image[counts.caption]
        # The rows are sorted by image and n-gram: an image counts once, at the first of its rows.
        is_first = np.ones(len(images), bool)
        is_first[1:] = (np.diff(images) != 0) | (np.diff(counts.ngram) != 0)
        self.frequency = np.bincount(counts.ngram[is_first], minlength=references.size)
        self.idf = np.log(len(references)) - np.log(np.append(self.frequency, 1))
        self.weights = self.weigh(counts)
        self.norms = _norms(counts, self.weights, len(references.captions))

    def weigh(self, counts: NgramCounts) -> Floats:
        """Return the tf-idf weight of each row of counts, float64 (E,)."""
        return np.asarray(counts.times * self.idf[np.minimum(counts.ngram, len(self.idf) - 1)])


class CiderD:
    """CIDEr-D, with the document frequencies of the references it is made from.

    Vedantam, Zitnick, Parikh: CIDEr: consensus-based image description evaluation, CVPR 2015.

    Args:
        references: for each image its reference captions as tokens, or prepared references.

    Raises:
        DataError: see `PreparedReferences`.
    """

    names: ClassVar[tuple[str, ...]] = ("cider_d",)
    formula: ClassVar[dict[str, str]] = {"formula": "cider_d", "sigma": f"{SIGMA:g}", "df": "refs"}

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        self._references = prepared = prepare(references)
        self._vectors = TfIdf(prepared)
        one_image = "one image only: every n-gram of its references is in all images and weighs 0"
        self.note = one_image if len(prepared) == 1 else ""

    def score(
        self, hypotheses: Sequence[Tokens], images: Sequence[int] | Ints | None = None
    ) -> Floats:
        """Score captions one by one, for example as the reward of sampled captions.

        Args:
            hypotheses: tokens of B captions.
            images: for each the image it describes, as an index into the references; by default
                there is one caption for each image, in order.

        Returns:
            float64 (B,) in [0, 10]; NaN where the references are of one image only.

        Raises:
            DataError: if hypotheses and images do not pair up.
        """
        references = self._references
        described = references.check(hypotheses, images)
        if self.note:
            return np.full(len(described), np.nan)
        counts = references.count(hypotheses)
        rows, matches = references.match(counts, described)
        number = references.per_image[described]
        pair = np.cumsum(number) - number  # the first (hypothesis, reference) pair of each
        caption = counts.caption[rows]
        slot = references.counts.caption[matches] - references.first[described[caption]]
        vectors, weights = self._vectors, self._vectors.weigh(counts)
        products = np.bincount(
            (pair[caption] + slot) * MAX_ORDER + counts.order[rows],
            weights=self._product(weights[rows], vectors.weights[matches]),
            minlength=int(number.sum()) * MAX_ORDER,
        )
        dots = products.astype(np.float64).reshape(-1, MAX_ORDER)
        owner = np.repeat(np.arange(len(described)), number)
        reference = spans(references.first[described], number)
        norms = _norms(counts, weights, len(described))[owner] * vectors.norms[reference]
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        lengths = np.array([len(hypothesis) for hypothesis in hypotheses], np.int64)
        similar = cosines.mean(axis=1)
        similar *= self._length_penalty(lengths[owner] - references.lengths[reference])
        return np.asarray(10.0 * np.bincount(owner, similar, len(described)) / number)

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image: float64 (N, 2), its score in [0, 10] and 1 to count it."""
        scores = self.score(hypotheses)
        return np.column_stack([scores, np.ones(len(scores))])

    def combine(self, sums: Floats) -> Floats:
        """Turn statistics (..., 2), of one image or summed over images, into the mean (..., 1)."""
        return np.asarray(sums[..., :1] / sums[..., 1:])

    def _product(self, hypothesis: Floats, reference: Floats) -> Floats:
        """Multiply weights, clipped so that repeating a word is not rewarded."""
        return np.minimum(hypothesis, reference) * reference

    def _length_penalty(self, difference: Ints) -> Floats:
        """Return the factor for captions longer or shorter than their reference."""
        return np.asarray(np.exp(-(difference**2) / (2 * SIGMA**2)))


class Cider(CiderD):
    """CIDEr as the COCO scorer reports it: CIDEr-D under its more common name."""

    names: ClassVar[tuple[str, ...]] = ("cider",)


class CiderPlain(CiderD):
    """CIDEr as first defined: plain cosines, neither clipped nor penalised for length."""

    names: ClassVar[tuple[str, ...]] = ("cider_plain",)
    formula: ClassVar[dict[str, str]] = {"formula": "cider", "df": "refs"}

    def _product(self, hypothesis: Floats, reference: Floats) -> Floats:
        return hypothesis * reference

    def _length_penalty(self, difference: Ints) -> Floats:
        return np.ones(len(difference))


def _norms(counts: NgramCounts, weights: Floats, captions: int) -> Floats:
    """Return the norm of each caption's vector for each order, float64 (captions, MAX_ORDER)."""
    squares = np.bincount(
        counts.caption * MAX_ORDER + counts.order, weights**2, captions * MAX_ORDER
    )
    return np.sqrt(squares).reshape(-1, MAX_ORDER)
