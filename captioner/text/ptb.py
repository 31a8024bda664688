"""English words: the tokens of the COCO evaluation, without Java or downloads.

They are those of the Stanford PTB tokeniser, in lower case, without punctuation.
`docs/reference/metrics.md` lists the differences.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from captioner.errors import must_be
from captioner.text.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class Ptb(Tokenizer):
    """The functions of this file as a tokeniser."""

    name: ClassVar[str] = "ptb"

    @property
    def joints(self) -> tuple[str, ...]:
        """A word, a number, a clitic, brackets, and the words that are spelt together."""
        return ("a", "1", "'s", *_MARKS, *(word for pair in _SPELT_TOGETHER for word in pair))

    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into lower-case PTB tokens; see the function `tokenize`."""
        return tokenize(caption)

    def detokenize(self, tokens: Iterable[str]) -> str:
        """Join tokens to a readable caption; see the function `detokenize`."""
        return detokenize(tokens)

    def shown(self, token: str) -> str:
        """Return a token as captions show it: `(` for `-lrb-`."""
        return _MARKS.get(token, token)


PTB = Ptb()
