"""Calibration: the stated probability of words against how often references hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from captioner.metrics.references import Tokens
from captioner.text import PTB, Caption

BINS = 10  # of equal width


@dataclass(frozen=True, slots=True)
class Bin:
    """The words whose probability is in one of the ten equal parts of 0 to 1."""

    low: float  # the part's lower end
    words: int
    stated: float  # their mean probability
    held: float  # fraction that a reference of their image holds


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the probabilities of words are from how often references hold the words."""

    words: int
    error: float  # expected calibration error: mean of |stated - held| over words, by bin
    bins: tuple[Bin, ...]  # those with words, from low to high


def calibration(
    captions: Iterable[Caption],
    references: Iterable[Sequence[Tokens]],
    shown: Callable[[str], str] = PTB.shown,
) -> Calibration | None:
    """Compare the probability of each word with whether a reference of its image holds it.

    A reference holds a word at any place. The end token does not count.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", for the error and bins.

    Args:
        captions: of each image, with `words`.
        references: of each image, as the tokens that the model writes.
        shown: returns a token as `Word.text` shows it.

    Returns:
        None if there is no word.
    """
    groups: dict[int, list[tuple[float, bool]]] = {}
    for caption, texts in zip(captions, references, strict=True):
        tokens = {shown(token) for text in texts for token in text}
        for word in caption.words[: len(caption.words) - caption.finished]:
            stated = math.exp(word.log_prob)
            number = min(int(stated * BINS), BINS - 1)
            groups.setdefault(number, []).append((stated, word.text in tokens))
    bins = []
    for number, rows in sorted(groups.items()):
        stated, held = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        bins.append(Bin(number / BINS, len(rows), stated, held))
    count = sum(each.words for each in bins)
    if not count:
        return None
    error = sum(each.words * abs(each.stated - each.held) for each in bins) / count
    return Calibration(count, error, tuple(bins))
