"""The tokeniser, the vocabulary and the caption, shared by training, captioning and scoring.

`tokenize` returns the tokens of the COCO evaluation (Stanford PTB tokeniser, lower case, no
punctuation) without Java or downloads. `docs/reference/metrics.md` lists the differences.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from captioner.errors import ModelError, must_be
from captioner.system.escapes import to_json
from captioner.system.files import read_json, write_text
from captioner.system.foreign import excerpt, plain

# The COCO evaluation removes these tokens. Its list also holds upper-case brackets, but it
# compares after lower-casing: "(" remains as "-lrb-", so it remains here.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BRACKETS = {
    "(": "-lrb-", ")": "-rrb-",
    "[": "-lsb-", "]": "-rsb-",
    "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip
_MARKS = {name: mark for mark, name in _BRACKETS.items()}

# The PTB conventions for single characters. Double quotes, long dashes and ellipses become
# spaces here, because they are punctuation that is removed later.
_FOLDED = {
    **{mark: f" {name} " for mark, name in _BRACKETS.items()},
    **dict.fromkeys("\"`“”«»‹›–—―‒…", " "),
    **dict.fromkeys("‘’", "'"),
    **{symbol: f" {symbol} " for symbol in "=~^|\\"},
    "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ",
    "€": " $ ", "£": " # ", "¢": " cents ",
    "‐": "‐", "‑": "‑",  # hyphens inside a word
    "\u00ad": "",  # the soft hyphen is invisible
}  # fmt: skip

_CLITICS = "'s|'m|'d|'ll|'re|'ve|n't"
_ABBREVIATIONS = (
    "adm al ala apr ariz assn assoc atty aug ave bldg blvd brig bros calif capt cf cmdr co col "
    "colo conn corp cpl ct dec dept det dr esq est etc ext feb fla fri ft ga gen gov hon inc ind "
    "insp intl jan jr jul jun kan lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs "
    "ms mt natl neb nev nov oct okla penn ph.d prof pvt rd rep reps rev sen sep sept sgt sq sr st "
    "ste supt tel tenn thu thurs tue tues univ va vs vt wed wis wyo"
)

# Chunks that are one token, although a rule below would split them.
_ATOM = re.compile(
    rf"{'|'.join(_BRACKETS.values())}|{_CLITICS}|[?!]{{2,}}|\*+"
    r"|'t|'n'?|'em|'till?|'cause|'[0-9]{2}s?|y'|o'|ol'|ma'am|d'ye|c'mon|s'mores|li'l|nat'l|cap'n"
    r"|hallowe'en|hawai'i|ne'er|e'er|o'er|ev'ry"
    r"|(?!i\.$)[^\W\d_]\.(?:[^\W\d_]\.)*"  # u.s., p.m., the b. of "plan b."
    rf"|(?:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\."
)

_MAX_CHUNK = 1000  # characters; some rules remove one per pass, which is slow for a long chunk

# The first rule that changes a chunk splits it; all rules are then tried on the pieces.
_RULES = [
    (re.compile(r"[,;:]+$|(?<![.?!])[.?!]$"), " "),
    (re.compile(r"^('t)(is|was)$|^(y')(all)$"), r"\1\3 \2\4"),
    (re.compile(rf"('n'|(?:{_CLITICS}|'n)(?!\w))"), r" \1 "),
    (re.compile(r"(?<!^[dlo])'|'(?![^\W\d_])"), " "),  # a quote, unless it is o'clock, d'angelo
    (re.compile(r"\.{2,}|^\.(?!\d)"), " "),
    (re.compile(r"^-+(?![.\d])|-+$"), " "),
    (re.compile(r"([?!]{2,}|\*+|^/|/$|\+(?!\d))"), r" \1 "),
]

# Words that the Treebank splits without an apostrophe; `detokenize` joins them.
_SPELT_TOGETHER = {("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("wan", "na")}
_CLITIC = re.compile(rf"(?:{_CLITICS})\Z")
_PLAIN_WORD = re.compile(r"[^\W\d_]+\Z")


class _Fold(dict[int, str]):
    """A table for `str.translate` that computes and stores the entries of other characters."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        hidden = category[0] == "C" or category in ("Nl", "Me") or 0xFE00 <= code <= 0xFE0F
        if hidden or code > 0xFFFF:
            folded = " "  # control characters and emoji, which the PTB tokeniser cannot read
        elif code > 0x7F and category[0] in "SP":
            folded = f" {char} "
        else:
            folded = char
        self[code] = folded
        return folded


_FOLD = _Fold({ord(char): text for char, text in _FOLDED.items()})


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case PTB tokens without punctuation, as the COCO evaluation does.

    Each chunk between white space is split on its own; a chunk of more than 1,000 characters is
    cut first. Tokenising a token returns the token.

    Args:
        caption: any text; may be empty.

    Returns:
        The tokens, for example `["a", "man", "'s", "hat"]`.

    Raises:
        ConfigError: if the caption is not a string.
    """
    must_be("caption", caption, str)
    chunks = caption.lower().translate(_FOLD).split()
    return [
        token
        for chunk in chunks
        for start in range(0, len(chunk), _MAX_CHUNK)
        for token in _pieces(chunk[start : start + _MAX_CHUNK])
    ]


@lru_cache(maxsize=1 << 16)
def _pieces(chunk: str) -> tuple[str, ...]:
    """Split one chunk without white space until no piece can be split further."""
    tokens, stack = [], [chunk]
    while stack:
        piece = stack.pop()
        pieces = _split(piece)
        if pieces != [piece]:
            stack += reversed(pieces)
        elif piece not in PUNCTUATION:
            tokens.append(piece)
    return tuple(tokens)


def _split(chunk: str) -> list[str]:
    if _ATOM.fullmatch(chunk):
        return [chunk]
    for pattern, replacement in _RULES:
        pieces = pattern.sub(replacement, chunk).split()
        if pieces != [chunk]:
            return pieces
    return _treebank()(chunk)


@lru_cache(maxsize=1)
def _treebank() -> Callable[[str], list[str]]:
    """Import nltk here: captioning does not tokenise, so it need not load nltk."""
    from nltk.tokenize.treebank import TreebankWordTokenizer

    split: Callable[[str], list[str]] = TreebankWordTokenizer().tokenize
    return split


def detokenize(tokens: Iterable[str]) -> str:
    """Join tokens to a readable caption: no space before clitics and inside brackets.

    For the result of `tokenize`, `tokenize(detokenize(tokens)) == tokens`.

    Args:
        tokens: for example `["it", "does", "n't", "-lrb-", "yet", "-rrb-", "bark"]`.

    Returns:
        For example `"it doesn't (yet) bark"`.

    Raises:
        ConfigError: if the tokens are not strings.
    """
    must_be("tokens", tokens, Iterable)
    tokens = list(tokens)
    for token in tokens:
        must_be("tokens", token, str)
    words: list[str] = []
    previous = ""
    for token in tokens:
        word = _MARKS.get(token, token)
        if words and _joins(previous, token):
            words[-1] += word
        else:
            words.append(word)
        previous = token
    return " ".join(words)


def _joins(previous: str, token: str) -> bool:
    """Return whether `token` follows `previous` without a space."""
    if token in ("-rrb-", "-rsb-", "-rcb-") or previous in ("-lrb-", "-lsb-", "-lcb-"):
        return True
    if _CLITIC.match(token):
        return bool(_PLAIN_WORD.match(previous))
    return (previous, token) in _SPELT_TOGETHER


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


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model and their ids; ids 0 to 3 are padding, start, end and unknown."""

    counts: dict[str, int]  # word -> occurrences in the training captions, in the order of ids
    min_count: int  # minimum number of occurrences of a word
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
    ) -> Vocabulary:
        """Build the vocabulary of captions: most frequent words first, ties in alphabetical order.

        Words of fewer than `min_count` occurrences or more than `longest` characters are left out.
        All words of `base` stay, with their ids and counts, and new words follow.
        """
        counts = Counter(token for tokens in captions_tokens for token in tokens)
        kept = [
            (word, count)
            for word, count in counts.items()
            if count >= min_count and word not in cls.specials and len(word) <= cls.longest
        ]
        ordered = dict(sorted(kept, key=lambda item: (-item[1], item[0])))
        return cls(ordered if base is None else base.counts | ordered | base.counts, min_count)

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
        token = self._tokens[token_id]
        return _MARKS.get(token, token)

    def coverage(self, captions_tokens: Iterable[Sequence[str]]) -> float:
        """Return the fraction of tokens that are in the vocabulary, 0 to 1; 1 without tokens."""
        known = [token in self._ids for tokens in captions_tokens for token in tokens]
        return sum(known) / len(known) if known else 1.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a readable JSON file: `min_count`, the special tokens, and each word's count."""
        content = {"min_count": self.min_count, "specials": self.specials, "words": self.counts}
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
        return cls(words, min_count)


def _is_word(text: str) -> bool:
    """Return whether `text` can be a token: no white space, no terminal control characters."""
    if not 1 <= len(text) <= Vocabulary.longest:
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
