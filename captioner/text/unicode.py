"""Words of any language, and characters.

Words are those of UAX #29, "Unicode Text Segmentation". Scripts without spaces between words have
no rule there: each of their characters is a word, as sacrebleu's `zh` does it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from captioner.errors import must_be
from captioner.text.tokenizer import Tokenizer

SPACE = "▁"  # stands for a space between characters

# Scripts that are written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u303c"  # radicals and marks of Han
    "\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Han
)
UNSPACED = re.compile(f"[{_UNSPACED}]")
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Hindi are spelt with them, and emoji
_APOSTROPHE = "’"


class _Clean(dict[int, str]):
    """A table for `str.translate`: what captions hold, without invisible characters."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        cleaned = char
        if category[0] in "CZ" and char not in _JOINERS:
            # Marks of direction and soft hyphens stand inside words; U+200B ends a word.
            cleaned = "" if category == "Cf" and char != "\u200b" else " "
        self[code] = cleaned
        return cleaned


_CLEAN = _Clean({ord(_APOSTROPHE): "'", ord(SPACE): " "})


@dataclass(frozen=True)
class Unicode(Tokenizer):
    """Words of UAX #29 in lower case, without punctuation; single characters without spaces."""

    name: ClassVar[str] = "unicode"

    @property
    def joints(self) -> tuple[str, ...]:
        """A word, a word without spaces around it, and a vowel that joins the character before."""
        return ("a", "一", "\u0e33")

    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into words in lower case, without punctuation."""
        must_be("caption", caption, str)
        clean = unicodedata.normalize("NFC", caption.lower()).translate(_CLEAN)
        return [word for chunk in clean.split() for word in _words(chunk)]

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join words with spaces; characters of scripts without spaces close up."""
        caption, previous = "", ""
        for token in tokens:
            caption += token if _close_up(previous, token) else f" {token}"
            previous = token
        return caption.strip()


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Characters as a reader counts them, with their marks; `SPACE` is the space between words."""

    name: ClassVar[str] = "characters"

    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into characters in lower case, without punctuation."""
        text = UNICODE.detokenize(UNICODE.tokenize(caption))
        tokens: list[str] = []
        for word in text.split():
            tokens += (SPACE, *_characters(word)) if tokens else _characters(word)
        return tokens

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join characters."""
        return " ".join("".join(tokens).replace(SPACE, " ").split())

    def words_in(self, tokens: list[str]) -> list[str]:
        """Return the characters without spaces."""
        return [token for token in tokens if token != SPACE]

    def shown(self, token: str) -> str:
        """Return a character, or a space."""
        return token.replace(SPACE, " ")


UNICODE = Unicode()
CHARACTERS = Characters()


@lru_cache(maxsize=1 << 16)
def _words(chunk: str) -> tuple[str, ...]:
    """Split a text without white space into words."""
    pieces = [
        word
        for match in _pieces().finditer(chunk)
        for word in ([match[0]] if UNSPACED.match(match[0]) else _segments(match[0]))
    ]
    return tuple(word for piece in pieces if (word := _without_punctuation(piece)))


@lru_cache(maxsize=1)
def _pieces() -> re.Pattern[str]:
    """Return a pattern of a character of a script without spaces, or a text of other scripts."""
    codes = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    marks = "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] == "M")
    # The vowels AM of Thai and Lao are letters, but part of the character before them.
    marks = re.escape(f"{marks}{_JOINERS}\u0e33\u0eb3\uff9e\uff9f")
    return re.compile(f"[{_UNSPACED}][{marks}]*|[^{_UNSPACED}]+")


def _segments(text: str) -> Iterable[str]:
    """Split a text without white space at the word boundaries of UAX #29."""
    if text.isascii() and text.isalpha():
        return [text]
    from uniseg.wordbreak import words  # not needed to write captions

    segments: Iterable[str] = words(text)
    return segments


def _characters(word: str) -> Iterable[str]:
    if word.isascii():
        return word
    from uniseg.graphemecluster import grapheme_clusters

    clusters: Iterable[str] = grapheme_clusters(word)
    return clusters


def _without_punctuation(piece: str) -> str:
    """Cut punctuation at both ends; empty if no letter, number or symbol is left."""
    kinds = [unicodedata.category(char)[0] for char in piece]
    places = [place for place, kind in enumerate(kinds) if kind in "LNS"]
    if not places:
        return ""
    end = places[-1] + 1
    while end < len(kinds) and kinds[end] == "M":
        end += 1
    return piece[places[0] : end]


@lru_cache(maxsize=1 << 16)
def _close_up(previous: str, token: str) -> bool:
    """Return whether there is no space between two words: one is of a script without spaces."""
    if not (UNSPACED.match(previous) or UNSPACED.match(token)):
        return False
    return _words(previous + token) == (previous, token)
