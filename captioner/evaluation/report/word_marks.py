"""The words of captions as the report shows them: each with its probability and alternatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from captioner.text import Caption, Vocabulary

LEVELS = ((0.75, "sure"), (0.5, "likely"), (0.25, "open"), (0.0, "unsure"))  # CSS classes, from
LEAST_CONFIDENT = 8  # captions listed
END = Vocabulary.specials[Vocabulary.eos_id]


class WordMark(NamedTuple):
    """A word in a caption, and what a reader sees when pointing at it."""

    gap: str  # the space before it, or none
    text: str  # empty for the end token
    level: str  # see `LEVELS`
    hints: list[str]  # lines


def marks_of(caption: Caption) -> list[WordMark]:
    """Return the words of a caption; empty if its probabilities are not known."""
    marks, place = [], 0
    for word in caption.words:
        text = "" if word.text == END else word.text
        start = caption.text.find(text, place) if text else place
        gap = caption.text[place : max(place, start)]
        if start >= 0:  # else a piece that is part of a character
            place = start + len(text)
        probability = math.exp(word.log_prob)
        level = next(name for least, name in LEVELS if probability >= least)
        hints = [f"{text or 'end of the caption'}: {probability:.1%}"]
        for other, log_prob in word.alternatives:
            hints.append(f"{'end' if other == END else other}: {math.exp(log_prob):.1%}")
        marks.append(WordMark(gap, text, level, hints))
    return marks


def least_confident(captions: Sequence[Caption]) -> list[tuple[float, list[WordMark]]]:
    """Return the captions of lowest confidence and their confidence, lowest first."""
    known = {caption.text: caption for caption in captions if caption.words}
    lowest = sorted(known.values(), key=lambda caption: caption.confidence)[:LEAST_CONFIDENT]
    return [(caption.confidence, marks_of(caption)) for caption in lowest]
