"""Reference captions prepared once, so that hypotheses are scored by array arithmetic.

Every n-gram gets a number: order by order, the number of its first n - 1 words joined with its
last word. The numbers are exact (no hashing, so no collisions), and everything the metrics need
is then sorting, searching and counting of integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError

Tokens: TypeAlias = Sequence[str]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

MAX_ORDER = 4


class NgramCounts(NamedTuple):
    """How often each caption holds each of its n-grams; parallel arrays, int64 (E,)."""

    caption: Ints  # index of the caption
    ngram: Ints  # its number among those of its order; `size` or more: in no reference
    order: Ints  # length of the n-gram less one, in [0, MAX_ORDER)
    times: Ints  # at least 1


class PreparedReferences:
    """The references of a set of images, checked and counted.

    Args:
        references: for each image its reference captions, each a list of tokens.

    Attributes:
        captions: all references in one list, image after image.
        image: image of each of them, int64 (R,).
        first: index of the first reference of each image, int64 (N,).
        per_image: number of references of each image, int64 (N,).
        lengths: tokens of each reference, int64 (R,).
        counts: their n-grams, sorted by image and n-gram.
        size: number of distinct n-grams in all references.
        words: the number of each of their words, in order.

    Raises:
        DataError: if there is no image, an image has no reference, or a caption is a string.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        if not len(references):
            raise DataError("no references: there is nothing to score against")
        for image, captions in enumerate(references):
            if not len(captions):
                raise DataError(f"image {image} (counting from 0) has no reference caption")
            _check_tokens(captions, f"a reference of image {image}")
        self.captions = [caption for captions in references for caption in captions]
        self.per_image = np.array([len(captions) for captions in references], np.int64)
        self.first = np.cumsum(self.per_image) - self.per_image
        self.image = np.repeat(np.arange(len(references)), self.per_image)
        self.lengths = np.array([len(caption) for caption in self.captions], np.int64)
        self.size = 0
        self.words: dict[str, int] = {}
        self._keys: list[Ints] = []
        counts = self._learn()
        places = self.image[counts.caption] * self.size + counts.ngram
        by_place = np.argsort(places, kind="stable")
        self._places = places[by_place]
        self.counts = NgramCounts(*(column[by_place] for column in counts))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.first)

    def check(
        self, hypotheses: Sequence[Tokens], images: Sequence[int] | Ints | None = None
    ) -> Ints:
        """Return the image of each hypothesis, int64 (B,): `images`, or one each in order.

        Raises:
            DataError: if hypotheses and images do not pair up, or a hypothesis is a string.
        """
        _check_tokens(hypotheses, "a hypothesis")
        chosen = np.arange(len(self)) if images is None else np.asarray(images, np.int64)
        if len(hypotheses) != len(chosen):
            raise DataError(
                f"{len(hypotheses)} hypotheses for {len(chosen)} images; give one for each image"
            )
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise DataError(f"image numbers must be in [0, {len(self)}), the prepared references")
        return chosen

    def count(self, captions: Sequence[Tokens]) -> NgramCounts:
        """Count the n-grams of captions, numbered as those of the references."""
        fresh: dict[str, int] = {}
        known = self.words
        ids = [
            known[word] if word in known else fresh.setdefault(word, len(known) + len(fresh))
            for caption in captions
            for word in caption
        ]
        return self._count(captions, np.array(ids, np.int64))

    def _learn(self) -> NgramCounts:
        """Number the references' own words and n-grams."""
        known = self.words
        ids = [known.setdefault(word, len(known)) for text in self.captions for word in text]
        return self._count(self.captions, np.array(ids, np.int64))

    def _count(self, captions: Sequence[Tokens], words: Ints) -> NgramCounts:
        """Number and count n-grams of `words`, the word ids of all captions in one row."""
        learning = not self._keys
        lengths = np.array([len(caption) for caption in captions], np.int64)
        owner = np.repeat(np.arange(len(captions)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))
        start, grams = np.arange(len(words)), words
        offset, blocks = 0, []
        for order in range(MAX_ORDER):
            if order:
                long_enough = left[start] > order
                start = start[long_enough]
                grams = (grams[long_enough] << 32) | words[start + order]
            if learning:
                self._keys.append(np.unique(grams))
            known = len(self._keys[order])
            grams = _number(grams, self._keys[order])
            numbers = np.where(grams < known, offset + grams, self.size + grams - known)
            blocks.append(_tally(owner[start], numbers, order))
            offset += known
        if learning:
            self.size = offset
        return NgramCounts(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))

    def ngrams(self) -> list[Ints]:
        """Return the words of every n-gram, in the order of their numbers.

        Returns:
            For each order n the places of the words in `words`, int64 (n-grams, n).
        """
        ngrams = [np.arange(len(self.words))[:, None]]
        for keys in self._keys[1:]:  # each the number of its first n - 1 words, and its last word
            ngrams.append(np.column_stack([ngrams[-1][keys >> 32], keys & 0xFFFFFFFF]))
        return ngrams

    def match(self, counts: NgramCounts, images: Ints) -> tuple[Ints, Ints]:
        """Pair each n-gram of a hypothesis with the references of its image that hold it.

        Args:
            counts: n-grams of the hypotheses.
            images: image of each hypothesis, int64 (B,).

        Returns:
            Rows of `counts` and rows of `self.counts`, two int64 arrays of one length.
        """
        known = np.flatnonzero(counts.ngram < self.size)
        places = images[counts.caption[known]] * self.size + counts.ngram[known]
        low = np.searchsorted(self._places, places, side="left")
        found = np.searchsorted(self._places, places, side="right") - low
        return np.repeat(known, found), spans(low, found)


def spans(starts: Ints, lengths: Ints) -> Ints:
    """Return the ranges `start, start + 1, ...` of the given lengths one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def prepare(references: PreparedReferences | Sequence[Sequence[Tokens]]) -> PreparedReferences:
    """Prepare references unless they already are."""
    if isinstance(references, PreparedReferences):
        return references
    return PreparedReferences(references)


def _number(keys: Ints, known: Ints) -> Ints:
    """Give each key its place in `known` (sorted); keys not in it get numbers beyond, one each."""
    numbers = np.searchsorted(known, keys)
    missing = np.ones(len(keys), bool)
    inside = numbers < len(known)
    missing[inside] = known[numbers[inside]] != keys[inside]
    if missing.any():
        numbers[missing] = len(known) + np.unique(keys[missing], return_inverse=True)[1]
    return numbers


def _tally(caption: Ints, ngram: Ints, order: int) -> NgramCounts:
    """Count equal (caption, n-gram) pairs."""
    base = int(ngram.max(initial=0)) + 1
    pairs, count = np.unique(caption * base + ngram, return_counts=True)
    return NgramCounts(pairs // base, pairs % base, np.full_like(pairs, order), count)


def _check_tokens(captions: Sequence[Tokens], what: str) -> None:
    """Refuse a caption given as text: its letters would be scored as words."""
    if isinstance(captions, str) or any(isinstance(caption, str) for caption in captions):
        raise DataError(f"{what} is a string; give its list of tokens (captioner.text.tokenize)")
