"""What some metrics read besides the tokens of one caption an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from captioner.errors import DataError, must_be
from captioner.metrics.references import Tokens
from captioner.text import PTB


@dataclass(frozen=True)
class SystemCaptions:
    """The captions of one system as written: of N images, one or more each, the best first.

    Attributes:
        texts: the captions of each image.
        words: splits a caption into the words that scores compare.

    Raises:
        ConfigError: if the texts are no lists of texts.
        DataError: if an image has no caption.
    """

    texts: Sequence[Sequence[str]]
    words: Callable[[str], list[str]] = PTB.words

    def __post_init__(self) -> None:
        must_be("texts", self.texts, Sequence)
        for image, captions in enumerate(self.texts):
            must_be(f"texts[{image}]", captions, list, tuple)
            for caption in captions:
                must_be(f"a caption of image {image}", caption, str)
            if not captions:
                raise DataError(f"image {image} (counting from 0) has no caption")

    @cached_property
    def best(self) -> list[list[str]]:
        """The tokens of each image's first caption."""
        return [self.words(captions[0]) for captions in self.texts]

    @cached_property
    def tokens(self) -> list[list[list[str]]]:
        """The tokens of all captions of each image."""
        return [[self.words(caption) for caption in captions] for captions in self.texts]


@dataclass(frozen=True)
class MetricInputs:
    """What some metrics need; a metric whose input is missing is undefined and says so.

    Attributes:
        train: the tokens of the captions that a system learnt from; for `novel`.
    """

    train: Iterable[Tokens] = ()
    kept: dict[str, Any] = field(default_factory=dict, repr=False)  # computed once for all systems
