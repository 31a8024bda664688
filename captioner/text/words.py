"""What a model writes: captions, their words, and where the model looks before each word."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WordAttention:
    """Where the model looks before it writes a word: weights that sum to 1.

    Attributes:
        places: weight of each place of the image, 0 to 1; S rows from top to bottom, each with S
            places from left to right.
        sentinel: weight of the sentinel, 0 to 1: the model does not look at the image.
    """

    places: tuple[tuple[float, ...], ...]
    sentinel: float


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption, or the end token, and how probable it was at its place.

    Attributes:
        text: the word, or a clitic such as "n't"; `<eos>` is the end token.
        log_prob: natural logarithm of its probability, given the image and the words before it.
        alternatives: the most probable other words at its place, best first, each with its
            log-probability; empty if they were not asked for. Words that the search may not write
            are left out.
        attention: where the model looked before it; None if it was not asked for, or the model has
            no attention.
    """

    text: str
    log_prob: float
    alternatives: tuple[tuple[str, float], ...] = ()
    attention: WordAttention | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of one image.

    Attributes:
        text: the caption in lower case.
        log_prob: natural logarithm of the caption's probability, end token included, before
            `start`, `forbid` and `min_length` steer the search: as `Captioner.score` computes it.
        score: the ranking score. Beam search: log_prob / length ** length_penalty plus the
            neighbours' votes. Sampling: log_prob.
        finished: False if max_length cut the caption off before an end token.
        words: its words and, if it is finished, the end token; empty if they were not asked for.
            Their log-probabilities add up to `log_prob`.
    """

    text: str
    log_prob: float
    score: float
    finished: bool
    words: tuple[Word, ...] = ()

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of `words`, end token included; NaN without words."""
        return math.exp(self.log_prob / len(self.words)) if self.words else math.nan
