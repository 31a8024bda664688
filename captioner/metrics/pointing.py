"""Pointing accuracy: whether a model looks at the thing that it names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioner.text import Word


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing in an image, or several equal ones."""

    words: frozenset[str]  # that name its kind or its colour
    places: NDArray[np.bool_]  # on which it lies, (S, S)
    area: float  # in any unit


@dataclass(frozen=True, slots=True)
class Pointing:
    """Pointing accuracy and what to compare it with; fractions of the words, 0 to 1."""

    words: int  # that name the kind or the colour of a thing in the image
    accuracy: float  # their strongest place lies on such a thing
    chance: float  # a random place would
    largest_thing: float  # a place on the image's largest thing would

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.3f} of {self.words:,} words (chance {self.chance:.3f}, always the "
            f"largest thing {self.largest_thing:.3f})"
        )


def pointing(
    captions: Iterable[tuple[Sequence[Word], Sequence[Thing]]],
) -> Pointing | None:
    """Compute how often a word's strongest place lies on a thing that the word names.

    The sentinel is no place. A place lies on a thing if its cell, one of S x S equal parts of what
    the CNN sees, overlaps the thing. Words that name no thing in the image do not count. Equal
    things are one `Thing`, so that "always the largest thing" is always right about them.

    Source: the pointing game of Zhang et al. (2016), "Top-down Neural Attention by Excitation
    Backprop", with words instead of classes.

    Args:
        captions: the words of each image's caption, with attention, and the image's things.

    Returns:
        None if no word counts.
    """
    rows: list[tuple[bool, float, bool]] = []
    for words, things in captions:
        largest = max((thing.area for thing in things), default=0.0)
        for word in words:
            named = [thing for thing in things if word.text in thing.words and thing.places.any()]
            if named and word.attention:
                right = np.any([thing.places for thing in named], axis=0)
                strongest = np.argmax(word.attention.places)
                rows.append(
                    (
                        bool(right.flat[strongest]),
                        float(right.mean()),
                        any(thing.area == largest for thing in named),
                    )
                )
    if not rows:
        return None
    accuracy, chance, of_largest = np.mean(rows, axis=0).tolist()
    return Pointing(len(rows), accuracy, chance, of_largest)
