"""The words of a model and their ids."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from captioner.errors import ModelError
from captioner.system.escapes import to_json
from captioner.system.files import read_json, write_text
from captioner.system.foreign import excerpt, plain
from captioner.text.bpe import Bpe
from captioner.text.languages import read_tokenizer
from captioner.text.ptb import PTB
from captioner.text.tokenizer import Tokenizer

_JOINERS = str.maketrans("", "", "\u200c\u200d")  # inside words of Persian and Hindi, and in emoji

COMMON = 0.02  # of all words; a word as frequent connects others, such as "and"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model and their ids; ids 0 to 3 are padding, start, end and unknown."""

    counts: dict[str, int]  # word -> occurrences in the training captions, in the order of ids
    min_count: int  # minimum number of occurrences of a word
    tokenizer: Tokenizer = PTB  # whose tokens are the words
    words: tuple[str, ...] = field(init=False, repr=False)  # without special tokens, from id 4
    _tokens: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    specials: ClassVar[tuple[str, ...]] = ("<pad>", "<bos>", "<eos>", "<unk>")
    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1
    eos_id: ClassVar[int] = 2
    unk_id: ClassVar[int] = 3
    longest: ClassVar[int] = 200  # characters of a word
    unwritable: ClassVar[tuple[int, ...]] = (pad_id, bos_id, unk_id)  # never in a caption

    def __post_init__(self) -> None:
        for number, word in enumerate(self.counts, start=1):
            if not _is_word(word):
                raise ModelError(
                    f"vocabulary: invalid word number {number:,}: {excerpt(word, 100)}; a word has "
                    f"1 to {self.longest} characters, none of them white space or invisible"
                )
            if word in self.specials:
                raise ModelError(f"vocabulary: duplicate word: {word}")
        tokens = (*self.specials, *self.counts)
        object.__setattr__(self, "words", tuple(self.counts))
        object.__setattr__(self, "_tokens", tokens)
        object.__setattr__(self, "_ids", {token: i for i, token in enumerate(tokens)})

    @classmethod
    def build(
        cls,
        captions_tokens: Iterable[Sequence[str]],
        min_count: int = 5,
        base: Vocabulary | None = None,
        tokenizer: Tokenizer = PTB,
    ) -> Vocabulary:
        """Build the vocabulary of captions: most frequent words first, ties in alphabetical order.

        Words of fewer than `min_count` occurrences or more than `longest` characters are left out;
        the pieces that the tokeniser needs are not.
        All words of `base` stay, with their ids and counts, and new words follow. The captions are
        tokens of the tokeniser.
        """
        counts = Counter(token for tokens in captions_tokens for token in tokens)
        return cls.of_counts(counts, min_count, base, tokenizer)

    @classmethod
    def of_counts(
        cls,
        counts: Mapping[str, int],
        min_count: int,
        base: Vocabulary | None = None,
        tokenizer: Tokenizer = PTB,
    ) -> Vocabulary:
        """Build the vocabulary of captions from the number of each token; see `build`."""
        kept = [
            (word, count)
            for word, count in counts.items()
            if count >= min_count and word not in cls.specials and len(word) <= cls.longest
        ]
        ordered = dict(sorted(kept, key=lambda item: (-item[1], item[0])))
        ordered |= {piece: 0 for piece in sorted(tokenizer.pieces) if piece not in ordered}
        words = ordered if base is None else base.counts | ordered | base.counts
        return cls(words, min_count, tokenizer)

    @cached_property
    def common_ids(self) -> tuple[int, ...]:
        """The ids of words that make up 2% of all words or more, such as "a" and "in"."""
        least = COMMON * sum(self.counts.values())
        return tuple(self._ids[word] for word, count in self.counts.items() if count >= least)

    def __len__(self) -> int:
        """Return the number of ids, special tokens included."""
        return len(self._tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Convert tokens to ids, unknown tokens to `unk_id`; adds no start or end token."""
        return [self._ids.get(token, self.unk_id) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Convert ids to tokens up to the first end token; leaves out padding and start tokens.

        Raises:
            IndexError: if an id is outside [0, len(self)).
        """
        tokens = []
        for token_id in map(int, ids):
            if token_id == self.eos_id:
                break
            if not 0 <= token_id < len(self):
                raise IndexError(f"token id {token_id} is outside the vocabulary [0, {len(self)})")
            if token_id not in (self.pad_id, self.bos_id):
                tokens.append(self._tokens[token_id])
        return tokens

    def shown(self, token_id: int) -> str:
        """Return a token as captions show it: `(` for `-lrb-`."""
        return self.tokenizer.shown(self._tokens[token_id])

    def encode_text(self, caption: str) -> list[int]:
        """Convert a caption to ids, as `encode` does with its tokens."""
        return self.encode(self.tokenizer.tokenize(caption))

    def coverage(self, captions_tokens: Iterable[Sequence[str]]) -> float:
        """Return the fraction of tokens that are in the vocabulary, 0 to 1; 1 without tokens."""
        known = [token in self._ids for tokens in captions_tokens for token in tokens]
        return sum(known) / len(known) if known else 1.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a readable JSON file: `min_count`, the special tokens, and each word's count.

        The tokeniser is in it too, unless it is `ptb`.
        """
        content: dict[str, Any] = {"min_count": self.min_count, "specials": self.specials}
        if self.tokenizer != PTB:
            content["tokenizer"] = self.tokenizer.name
        if isinstance(self.tokenizer, Bpe):
            content["merges"] = self.tokenizer.merges
        content["words"] = self.counts
        write_text(Path(path), to_json(content, indent=1), "vocabulary")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read a file that `save` wrote.

        Raises:
            ModelError: if the file cannot be read or does not hold a vocabulary.
        """
        try:
            content = read_json(Path(path), object_pairs_hook=_without_duplicates)
            return cls._from_json(content)
        except (OSError, ValueError, ModelError) as error:
            reason = plain(error).removeprefix("vocabulary: ")
            raise ModelError(f"{os.fspath(path)}: not a vocabulary: {reason}") from error

    @classmethod
    def _from_json(cls, content: Any) -> Vocabulary:
        if not isinstance(content, dict) or not {"min_count", "specials", "words"} <= set(content):
            raise ValueError("must hold min_count, specials and words")
        if content["specials"] != list(cls.specials):
            given = excerpt(content["specials"])
            raise ValueError(f"specials are {given}; must be {list(cls.specials)} in this order")
        words, min_count = content["words"], content["min_count"]
        if not isinstance(words, dict):
            raise ValueError("words must map each word to its count")
        if not all(type(number) is int and number >= 0 for number in (min_count, *words.values())):
            raise ValueError("min_count and every count must be a whole number of at least 0")
        return cls(words, min_count, read_tokenizer(content))


def _is_word(text: str) -> bool:
    """Return whether `text` can be a token: no white space, no terminal control characters."""
    if not 1 <= len(text) <= Vocabulary.longest or not (text := text.translate(_JOINERS)):
        return False
    if text.isalpha():
        return True
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
    return hidden.isdisjoint(map(unicodedata.category, text))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise if a JSON object has duplicate keys; `json` would keep the last one."""
    for key, count in Counter(key for key, _ in pairs).most_common(1):
        if count > 1:
            raise ValueError(f"duplicate word: {key}")
    return dict(pairs)
