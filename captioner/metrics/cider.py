"""CIDEr-D: TF-IDF weighted n-gram similarity to the references, from 0 to 10.

The "CIDEr" of the COCO scorer, which papers report, is CIDEr-D. So `cider` equals `cider_d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from captioner.metrics.metric import Metric
from captioner.metrics.references import (
    MAX_ORDER,
    Floats,
    Ints,
    NgramCounts,
    PreparedReferences,
    Tokens,
    spans,
)

SIGMA = 6.0  # standard deviation of the length penalty, in tokens


class TfIdf:
    """TF-IDF vectors of references; their images are the documents."""

    frequency: Ints  # number of images whose references hold each n-gram, (n-grams,)
    idf: Floats  # log(images / frequency), (n-grams + 1,); the last is for n-grams in no reference
    weights: Floats  # TF-IDF weight of each row of the references' counts, (E,)
    norms: Floats  # of each reference's vector for each order, (references, MAX_ORDER)

    def __init__(self, references: PreparedReferences) -> None:
        counts = references.counts
        images = references.image[counts.caption]
        # The rows are sorted by image and n-gram. Only the first row of an image counts.
        is_first = np.ones(len(images), bool)
        is_first[1:] = (np.diff(images) != 0) | (np.diff(counts.ngram) != 0)
        self.frequency = np.bincount(counts.ngram[is_first], minlength=references.size)
        self.idf = np.log(len(references)) - np.log(np.append(self.frequency, 1))
        self.weights = self.weigh(counts)
        self.norms = _norms(counts, self.weights, len(references.captions))

    def weigh(self, counts: NgramCounts) -> Floats:
        """Return the TF-IDF weight of each row of counts, float64 (E,)."""
        return np.asarray(counts.times * self.idf[np.minimum(counts.ngram, len(self.idf) - 1)])


class CiderD(Metric):
    """CIDEr-D with document frequencies from its references.

    Source: Vedantam, Zitnick, Parikh: CIDEr: consensus-based image description evaluation, CVPR
    2015.

    Args:
        references: the tokens of each image's reference captions, or prepared references.

    Raises:
        DataError: see `PreparedReferences`.
    """

    names = ("cider_d",)
    formula: ClassVar = {"formula": "cider_d", "sigma": f"{SIGMA:g}", "df": "refs"}

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        super().__init__(references)
        self._vectors = TfIdf(self._references)
        if len(self._references) == 1:
            self.note = "one image only: every n-gram of its references has weight 0"

    def score(
        self, hypotheses: Sequence[Tokens], images: Sequence[int] | Ints | None = None
    ) -> Floats:
        """Score single captions, for example as rewards of sampled captions.

        Args:
            hypotheses: tokens of B captions.
            images: for each caption, the index of its image in the references; None: one caption
                for each image, in order.

        Returns:
            float64 (B,) in [0, 10]; NaN if there is only one image.

        Raises:
            DataError: if the numbers of hypotheses and images differ, or an index is out of range.
        """
        references = self._references
        described = references.check(hypotheses, images)
        if self.note:
            return np.full(len(described), np.nan)
        counts = references.count(hypotheses)
        rows, matches = references.match(counts, described)
        number = references.per_image[described]
        pair = np.cumsum(number) - number  # index of each hypothesis's first (hyp, ref) pair
        caption = counts.caption[rows]
        slot = references.counts.caption[matches] - references.first[described[caption]]
        vectors, weights = self._vectors, self._vectors.weigh(counts)
        from_references = vectors.weights[matches]  # clipping ends the reward for repeated words
        products = np.bincount(
            (pair[caption] + slot) * MAX_ORDER + counts.order[rows],
            weights=np.minimum(weights[rows], from_references) * from_references,
            minlength=int(number.sum()) * MAX_ORDER,
        )
        dots = products.astype(np.float64).reshape(-1, MAX_ORDER)
        owner = np.repeat(np.arange(len(described)), number)
        reference = spans(references.first[described], number)
        norms = _norms(counts, weights, len(described))[owner] * vectors.norms[reference]
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        lengths = np.array([len(hypothesis) for hypothesis in hypotheses], np.int64)
        similar = cosines.mean(axis=1)
        difference = lengths[owner] - references.lengths[reference]
        similar *= np.exp(-(difference**2) / (2 * SIGMA**2))
        return np.asarray(10.0 * np.bincount(owner, similar, len(described)) / number)


class Cider(CiderD):
    """CIDEr as the COCO scorer reports it, equal to CIDEr-D."""

    names = ("cider",)


def _norms(counts: NgramCounts, weights: Floats, captions: int) -> Floats:
    """Return the norm of each caption's vector for each order, float64 (captions, MAX_ORDER)."""
    squares = np.bincount(
        counts.caption * MAX_ORDER + counts.order, weights**2, captions * MAX_ORDER
    )
    return np.sqrt(squares).reshape(-1, MAX_ORDER)
