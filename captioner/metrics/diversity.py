"""How different several captions of one image are, and which captions are not in the train split.

The scores of a set are means over images. Only mBLEU-4 and `novel` sum counts first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from captioner.metrics.bleu import Bleu
from captioner.metrics.cider import TfIdf
from captioner.metrics.inputs import MetricInputs, SystemCaptions
from captioner.metrics.metric import Metric, as_written, with_count
from captioner.metrics.references import (
    MAX_ORDER,
    Floats,
    Ints,
    NgramCounts,
    PreparedReferences,
    Tokens,
)


class _OfSets(Metric):
    """A metric of all captions of an image; `of_image` returns the statistics of one set."""

    one_caption = False
    fewest = 2  # captions of an image
    width: ClassVar[int]  # numbers that `of_image` returns
    _numbers: frozenset[int] = frozenset()  # of captions an image, of all systems measured

    def fields(self) -> dict[str, str]:
        """Return the fields of the formula and how many captions an image has."""
        low, high = min(self._numbers), max(self._numbers)
        return {**self.formula, "caps": str(low) if low == high else f"{low}-{high}"}

    def measure(self, captions: SystemCaptions | Sequence[Tokens]) -> Floats:
        """Return the statistics of each image, (N, S): `of_image` and the count 1.

        They are NaN, with a note, if an image has too few captions or there is another note.

        Raises:
            ConfigError: if the captions are tokens.
            DataError: if the images are not those of the references.
        """
        sets = as_written(captions, self.names[0]).tokens
        self._references.check([each[0] for each in sets])
        self._numbers |= {len(each) for each in sets}
        few = [image for image, each in enumerate(sets) if len(each) < self.fewest]
        if few:
            self.note = (
                f"needs {self.fewest} captions or more for each image; "
                f"{len(few):,} of {len(sets):,} images have fewer"
            )
        if self.note:
            return with_count(np.full((len(sets), self.width), np.nan))
        return with_count(np.array([self.of_image(each) for each in sets], np.float64))

    def of_image(self, captions: Sequence[Tokens]) -> Sequence[float] | Floats:
        """Return the statistics of the captions of one image, (width,)."""
        raise NotImplementedError


class Diversity(_OfSets):
    """Div-1, Div-2 and mBLEU-4 of the captions of each image.

    Div-n: different n-grams of an image's captions over all their words, 0 to 1. mBLEU-4: BLEU-4
    of each caption with the image's other captions as references, counts summed over captions and
    images, 0 to 1; low is diverse.

    Source: Shetty, Rohrbach, Hendricks, Fritz, Schiele: Speaking the same language: matching
    machine to human captions by adversarial training, ICCV 2017.
    """

    names = ("div_1", "div_2", "mbleu_4")
    formula: ClassVar = Bleu.formula
    width = 2 + 2 * MAX_ORDER + 1

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        super().__init__(references)
        self._bleu = Bleu(self._references)

    def of_image(self, captions: Sequence[Tokens]) -> Floats:
        """Return Div-1, Div-2 and the statistics of BLEU, summed over the captions."""
        words = sum(map(len, captions))
        different = [
            len({word for caption in captions for word in caption}),
            len({pair for caption in captions for pair in pairwise(caption)}),
        ]
        others = [[*captions[:n], *captions[n + 1 :]] for n in range(len(captions))]
        bleu = Bleu(PreparedReferences(others)).statistics(captions).sum(axis=0)
        return np.concatenate([np.divide(different, max(1, words)), bleu])

    def combine(self, sums: Floats) -> Floats:
        """Compute the three scores, (..., 3), from statistics of one image or summed."""
        div = sums[..., :2] / sums[..., -1:]
        bleu = self._bleu.combine(sums[..., 2:-1])[..., -1:]
        return np.concatenate([div, np.where(np.isnan(div[..., :1]), np.nan, bleu)], axis=-1)


class SelfCider(_OfSets):
    r"""Self-CIDEr: how evenly an image's captions spread in the space of CIDEr's vectors, 0 to 1.

    Of m captions, K[i, j] is the mean over n = 1 to 4 of the cosine of their tf-idf vectors of
    n-grams, with document frequencies from the references. With eigenvalues l of K,

        self-CIDEr = -log_m(sqrt(l_max) / sum(sqrt(l)))

    It is 0 if all captions are equal, and 1 if no two share an n-gram that counts.

    Source: Wang, Chan: Describing like humans: on diversity in image captioning, CVPR 2019. Their
    program takes CIDEr-D for K, which is not symmetric, and reads one half of it; the cosine, as
    in the paper, is what Luo, Shakhnarovich: Analysis of diversity-accuracy tradeoff in image
    captioning, 2020, take too.
    """

    names = ("self_cider",)
    formula: ClassVar = {"kernel": "cider", "df": "refs"}
    width = 1

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        super().__init__(references)
        self._vectors = TfIdf(self._references)
        if len(self._references) == 1:
            self.note = "one image only: every n-gram of its references has weight 0"

    def of_image(self, captions: Sequence[Tokens]) -> list[float]:
        """Return the self-CIDEr of one image; 0 if no n-gram has a weight."""
        counts = self._references.count(captions)
        eigenvalues = np.linalg.eigvalsh(self._kernel(counts, len(captions)))
        if not eigenvalues[-1] > 0:
            return [0.0]
        # What rounding leaves of an eigenvalue of 0 has a root that is not small.
        roots = np.sqrt(np.where(eigenvalues > 1e-12 * eigenvalues[-1], eigenvalues, 0.0))
        return [float(np.log(roots.sum() / roots[-1]) / np.log(len(captions)))]

    def _kernel(self, counts: NgramCounts, captions: int) -> Floats:
        """Return the mean cosine of every two captions, float64 (captions, captions)."""
        weights = self._vectors.weigh(counts)
        kernel = np.zeros((captions, captions))
        for order in range(MAX_ORDER):
            rows = counts.order == order
            vectors = _dense(counts.caption[rows], counts.ngram[rows], weights[rows], captions)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
            kernel += unit @ unit.T / MAX_ORDER
        return kernel


class Novel(_OfSets):
    """The fraction of captions that no caption of the train split equals, as tokens; 0 to 1."""

    names = ("novel",)
    formula: ClassVar = {}
    fewest = 1
    width = 2
    _known: frozenset[tuple[str, ...]] = frozenset()
    _train = ""

    def use(self, inputs: MetricInputs, tokenizer: str) -> None:  # noqa: ARG002
        """Take the train captions; without any, a note says so."""
        if "train" not in inputs.kept:
            known = frozenset(map(tuple, inputs.train))
            digest = hashlib.sha256("\n".join(sorted(map(" ".join, known))).encode())
            inputs.kept["train"] = known, f"{len(known)}-{digest.hexdigest()[:8]}"
        self._known, self._train = inputs.kept["train"]
        if not self._known:
            self.note = "needs the captions of the train split; `score` and `compare`: --train"

    def fields(self) -> dict[str, str]:
        """Return the fields of all sets, and the number and a digest of the train captions."""
        return {**super().fields(), "train": self._train}

    def of_image(self, captions: Sequence[Tokens]) -> tuple[int, int]:
        """Return the number of novel captions and of all captions."""
        return sum(tuple(caption) not in self._known for caption in captions), len(captions)

    def combine(self, sums: Floats) -> Floats:
        """Compute the fraction, (..., 1), from statistics of one image or summed."""
        return np.asarray(sums[..., :1] / sums[..., 1:2])


def _dense(captions: Ints, ngrams: Ints, weights: Floats, rows: int) -> Floats:
    """Return the vectors of captions over the n-grams that occur, float64 (rows, n-grams)."""
    columns, place = np.unique(ngrams, return_inverse=True)
    vectors = np.zeros((rows, len(columns)))
    vectors[captions, place] = weights
    return vectors
