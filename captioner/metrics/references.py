"""Reference captions, prepared once for scoring by array arithmetic.

Every n-gram gets an integer id. Order by order, the ids of the first n - 1 words and of the last
word are looked up as one pair. No hashing: no collisions. The metrics then sort,
search and count integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError, must_be
from captioner.system.foreign import excerpt

Tokens: TypeAlias = Sequence[str]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

MAX_ORDER = 4


class NgramCounts(NamedTuple):
    """Counts of each caption's n-grams; parallel arrays, int64 (E,)."""

    caption: Ints  # index of the caption
    ngram: Ints  # id of the n-gram; `size` or more: in no reference
    order: Ints  # length of the n-gram minus 1, in [0, MAX_ORDER)
    times: Ints  # occurrences, at least 1


class PreparedReferences:
    """The R references of N images, validated, with n-gram counts.

    Args:
        references: the reference captions of each image, each a list of tokens.

    Raises:
        ConfigError: if the references are no lists.
        DataError: if there is no image, an image has no reference, or a caption is a string.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        must_be("references", references, Sequence)
        if not len(references):
            raise DataError("no references; give the reference captions of at least one image")
        for image, captions in enumerate(references):
            must_be("references", captions, Sequence)
            if not len(captions):
                raise DataError(f"image {image} (counting from 0) has no reference caption")
            _check_tokens(captions, f"a reference of image {image}")
        self.captions = [caption for captions in references for caption in captions]
        self.per_image = np.array([len(captions) for captions in references], np.int64)  # (N,)
        self.first = np.cumsum(self.per_image) - self.per_image  # each image's first reference
        self.image = np.repeat(np.arange(len(references)), self.per_image)  # of each reference
        self.lengths = np.array([len(caption) for caption in self.captions], np.int64)  # (R,)
        self.size = 0  # distinct n-grams
        self.words: dict[str, int] = {}  # the id of each word
        self._keys: list[Ints] = []
        ids = [
            self.words.setdefault(word, len(self.words)) for text in self.captions for word in text
        ]
        counts = self._count(self.captions, np.array(ids, np.int64))
        places = self.image[counts.caption] * self.size + counts.ngram
        by_place = np.argsort(places, kind="stable")
        self._places = places[by_place]
        # Sorted by image and n-gram.
        self.counts = NgramCounts(*(column[by_place] for column in counts))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.first)

    def of(self, image: int) -> list[Tokens]:
        """Return the references of one image."""
        start = int(self.first[image])
        return self.captions[start : start + int(self.per_image[image])]

    def check(
        self, hypotheses: Sequence[Tokens], images: Sequence[int] | Ints | None = None
    ) -> Ints:
        """Return the image of each hypothesis, int64 (B,): `images`, or all images in order.

        Raises:
            DataError: if the numbers of hypotheses and images differ, an index is out of range,
                or a hypothesis is a string.
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
        """Count the n-grams of captions, with the n-gram ids of the references."""
        unknown: dict[str, int] = {}
        known = self.words
        ids = [
            known[word] if word in known else unknown.setdefault(word, len(known) + len(unknown))
            for caption in captions
            for word in caption
        ]
        return self._count(captions, np.array(ids, np.int64))

    def _count(self, captions: Sequence[Tokens], words: Ints) -> NgramCounts:
        """Count the n-grams of captions; `words` holds the word ids of all captions."""
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
        """Return the word ids of every n-gram of order n, int64 (n-grams, n), for each n."""
        ngrams = [np.arange(len(self.words))[:, None]]
        for keys in self._keys[1:]:  # a key packs the id of the first n - 1 words and the last word
            ngrams.append(np.column_stack([ngrams[-1][keys >> 32], keys & 0xFFFFFFFF]))
        return ngrams

    def match(self, counts: NgramCounts, images: Ints) -> tuple[Ints, Ints]:
        """Find the references of hypotheses' images, int64 (B,), that hold their n-grams.

        Returns:
            Pairs of a row of `counts` and a row of `self.counts`, as two int64 arrays.
        """
        known = np.flatnonzero(counts.ngram < self.size)
        places = images[counts.caption[known]] * self.size + counts.ngram[known]
        low = np.searchsorted(self._places, places, side="left")
        found = np.searchsorted(self._places, places, side="right") - low
        return np.repeat(known, found), spans(low, found)


def spans(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate the ranges `start, start + 1, ...` of the given lengths."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def prepare(references: PreparedReferences | Sequence[Sequence[Tokens]]) -> PreparedReferences:
    """Prepare references unless they are prepared."""
    if isinstance(references, PreparedReferences):
        return references
    return PreparedReferences(references)


def _number(keys: Ints, known: Ints) -> Ints:
    """Return the index of each key in `known` (sorted); other keys get len(known) and above."""
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
    """Raise if a caption is no list of words: a string's letters would be scored as words."""
    if isinstance(captions, str) or any(isinstance(caption, str) for caption in captions):
        raise DataError(f"{what} is a string; give its list of tokens (captioner.text.tokenize)")
    must_be(what, captions, Sequence)
    for caption in captions:
        must_be(what, caption, Sequence)
        if not all(isinstance(word, str) for word in caption):
            raise DataError(f"{what} holds {excerpt(caption, 60)}; give its list of tokens")
