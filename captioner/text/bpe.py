"""Pieces of words: byte-level byte-pair encoding, trained on captions.

Source: Sennrich et al. (2016), "Neural Machine Translation of Rare Words with Subword Units"; on
bytes: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar

from captioner.errors import ConfigError
from captioner.system.foreign import excerpt
from captioner.text.tokenizer import Tokenizer
from captioner.text.unicode import UNICODE

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

MAX_MERGES = 2**16
LONGEST = 64  # bytes of a piece: without spaces, captions that repeat would become one piece
_NEEDED = "text.tokenizer bpe needs the library tokenizers: pip install 'captioner[text]'"


def _alphabet() -> dict[int, str]:
    """Return the character that stands for each byte, as GPT-2 chose them: none is invisible."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    shifted = {byte: chr(256 + number) for number, byte in enumerate(others)}
    return {byte: chr(byte) for byte in plain} | shifted


_CHARACTERS = _alphabet()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


@dataclass(frozen=True)
class Bpe(Tokenizer):
    """Pieces of the words of `Unicode`: bytes that merges join, most frequent pair first.

    A piece is written with one printable character for each byte; the space before a word is part
    of its first piece. Scores compare the words, not the pieces.
    """

    merges: tuple[str, ...]  # of two pieces, such as "Ġd og", in order

    name: ClassVar[str] = "bpe"

    def __post_init__(self) -> None:
        known = set(_BYTES)
        if len(self.merges) > MAX_MERGES:
            raise ValueError(f"more than {MAX_MERGES:,} merges")
        for number, merge in enumerate(self.merges, start=1):
            pair = merge.split(" ") if isinstance(merge, str) else []
            if len(pair) != 2 or not known.issuperset(pair):
                raise ValueError(f"merge {number:,} is not two known pieces: {excerpt(merge, 60)}")
            known.add("".join(pair))

    @classmethod
    def train(cls, captions: Iterable[str], size: int) -> Bpe:
        """Learn the merges of captions.

        Args:
            captions: of the train split.
            size: pieces in all, those of one byte included.

        Raises:
            ConfigError: if the library is missing.
        """
        try:
            from tokenizers import trainers
        except ImportError as error:
            raise ConfigError(_NEEDED) from error
        library = _library((), {})
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            max_token_length=LONGEST,
            show_progress=False,
            initial_alphabet=[*_BYTES],
        )
        words = (word for caption in captions for word in _spaced(caption))
        library.train_from_iterator(words, trainer)
        merges = json.loads(library.to_str())["model"]["merges"]
        return cls(tuple(each if isinstance(each, str) else " ".join(each) for each in merges))

    @property
    def pieces(self) -> tuple[str, ...]:
        """All pieces: those of one byte spell every text, so no word is unknown."""
        joined = (merge.replace(" ", "") for merge in self.merges)
        return tuple(dict.fromkeys((*_BYTES, *joined)))

    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into pieces of words.

        Raises:
            ConfigError: if the library is missing.
        """
        return [piece for word in _spaced(caption) for piece in self._pieces(word)]

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join pieces to a caption; bytes that are no text become the replacement character."""
        return " ".join(_text(tokens, "replace").split())

    def words(self, caption: str) -> list[str]:
        """Split a caption into the words of `Unicode`."""
        return UNICODE.tokenize(caption)

    def words_in(self, tokens: list[str]) -> list[str]:
        """Return the words of `Unicode` that pieces spell."""
        return UNICODE.tokenize(self.detokenize(tokens))

    def shown(self, token: str) -> str:
        r"""Return a piece without the space before it; bytes that are no text become `\xe4`."""
        return _text([token], "backslashreplace").strip() or token

    def spelt(self, token: str) -> bytes:
        """Return the bytes of a piece, with the space before it."""
        return bytes(_BYTES[char] for char in token if char in _BYTES)

    @cached_property
    def _pieces(self) -> _Pieces:
        return _Pieces(self.merges, self.pieces)

    def __getstate__(self) -> tuple[str, ...]:
        return self.merges

    def __setstate__(self, merges: tuple[str, ...]) -> None:
        object.__setattr__(self, "merges", merges)


class _Pieces:
    """Splits a word, with the space before it, into pieces; each word once."""

    def __init__(self, merges: Sequence[str], pieces: Sequence[str]):
        self._library = _library(
            [(left, right) for left, right in (merge.split(" ") for merge in merges)],
            {piece: number for number, piece in enumerate(pieces)},
        )
        self._split = lru_cache(maxsize=1 << 16)(self._encode)

    def __call__(self, word: str) -> tuple[str, ...]:
        return self._split(word)

    def _encode(self, word: str) -> tuple[str, ...]:
        return tuple(self._library.encode(word).tokens)


def _library(merges: Sequence[tuple[str, str]], pieces: dict[str, int]) -> Library:
    try:
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers
    except ImportError as error:
        raise ConfigError(_NEEDED) from error
    library = Library(models.BPE(vocab=pieces, merges=[*merges]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return library


def _spaced(caption: str) -> list[str]:
    """Return the written words of a caption, each with a space before it."""
    return [f" {word}" for word in UNICODE.detokenize(UNICODE.tokenize(caption)).split()]


def _text(tokens: Iterable[str], errors: str) -> str:
    codes = bytes(_BYTES[char] for token in tokens for char in token if char in _BYTES)
    return codes.decode("utf-8", errors)
