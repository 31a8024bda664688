"""What every tokeniser does: split captions into tokens, and join tokens to captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar


class Tokenizer(ABC):
    """Splits captions into the tokens that a model writes, and joins tokens to captions.

    Two tokenisers are equal if they split every caption alike.
    """

    name: ClassVar[str]  # in `text.tokenizer` and in signatures

    @property
    def pieces(self) -> tuple[str, ...]:
        """The tokens that a vocabulary needs although no caption may hold them."""
        return ()

    @property
    def joints(self) -> tuple[str, ...]:
        """Tokens, one of each kind that `detokenize` tells apart; empty if it adds no spaces."""
        return ()

    @abstractmethod
    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into tokens, in lower case."""

    @abstractmethod
    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join tokens to a readable caption."""

    def words(self, caption: str) -> list[str]:
        """Split a caption into the words that scores compare."""
        return self.words_in(self.tokenize(caption))

    def words_in(self, tokens: list[str]) -> list[str]:
        """Return the words that tokens of a caption spell, for scores."""
        return tokens

    def shown(self, token: str) -> str:
        """Return a token as captions show it."""
        return token

    def spelt(self, token: str) -> bytes:
        """Return what a token adds to a caption, beside spaces, in UTF-8."""
        return self.shown(token).encode()
