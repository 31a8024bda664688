"""What some metrics read besides the tokens of one caption an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.errors import DataError, checked_names, must_be
from captioner.metrics.references import Floats, Tokens
from captioner.text import PTB


@checked_names
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


class TokenVectors(NamedTuple):
    """The pieces that a language model splits a caption into."""

    vectors: Floats  # of unit length, (T, D)
    inner: NDArray[np.bool_]  # those that are not the tokens at the ends, (T,)


@dataclass(frozen=True)
class ClipVectors:
    """What CLIPScore compares: vectors of unit length from one model."""

    name: str  # of the model, for signatures
    pictures: Floats  # of each image, (N, D)
    texts: Callable[[Sequence[str]], Floats]  # returns those of texts, (T, D)


@dataclass(frozen=True)
class BertVectors:
    """What BERTScore compares: vectors from one layer of a language model."""

    name: str  # of the model, for signatures
    tokens: Callable[[Sequence[str]], list[TokenVectors]]  # returns those of each text


@checked_names
@dataclass(frozen=True)
class MetricInputs:
    """What some metrics need; a metric whose input is missing is undefined and says so.

    Attributes:
        references: each image's reference captions as written; for `clip_score`, `bert_score`.
        train: the tokens of the captions that a system learnt from; for `novel`.
        clip: for `clip_score`.
        bert: for `bert_score`.
        missing: why a metric, by name, has no input.
    """

    references: Sequence[Sequence[str]] = ()
    train: Iterable[Tokens] = ()
    clip: ClipVectors | None = None
    bert: BertVectors | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)  # computed once for all systems
