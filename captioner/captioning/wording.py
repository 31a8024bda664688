"""How a caption is written out: words replaced, then the style, then the template.

The model's own text stays in the journal, so another wording needs no captioning.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from captioner.errors import ConfigError, DataError, must_be
from captioner.system.escapes import CONTROL
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import read_lines
from captioner.text import UNSPACED

Style: TypeAlias = Literal["plain", "sentence"]
STYLES: tuple[str, ...] = get_args(Style)
CAPTION = "{caption}"  # its place in a template
MOST_CHARACTERS = 10_000  # of a template, or of a line of a map

_CLOSED_UP = (
    (re.compile(r"`` ?| ?''"), '"'),
    (re.compile(r'(?<!\S)" ([^"]*) "(?![^\s.,;:!?])'), r'"\1"'),
    (re.compile(r"(?<=\w) (?=(?:['’](?:s|m|d|ll|re|ve)|n['’]t)(?!\w))", re.IGNORECASE), ""),
    (re.compile(r"(?<=s) (?=['’](?: |\Z))", re.IGNORECASE), ""),
    (re.compile(r" (?=[.,;:!?…]+(?:[ \"”’)\]}]|\Z))|(?<=[(\[{]) | (?=[)\]}])"), ""),
)
_STOPS = tuple(".!?…。！？।؟۔։።။។")
_AFTER_STOP = "\"'”’»)]}"  # may follow the full stop
# Full stops of scripts, by the first word of a letter's Unicode name; elsewhere ".".
_FULL_STOPS = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA"), "。"),
    **dict.fromkeys(("DEVANAGARI", "BENGALI", "GURMUKHI", "ORIYA"), "।"),
    **dict.fromkeys(("THAI", "LAO"), ""),
    "ARMENIAN": "։",
    "ETHIOPIC": "።",
    "MYANMAR": "။",
    "KHMER": "។",
}


def sentence(caption: str) -> str:
    """Write a caption as a sentence: capital, full stop, clitics and punctuation closed up.

    Names stay in lower case. A second call changes nothing.

    Args:
        caption: for example `"the man 's dog does n't bark"`.

    Returns:
        For example `"The man's dog doesn't bark."`; a text without letters and digits only loses
        needless spaces.

    Raises:
        ConfigError: if the caption is not a string.
    """
    must_be("caption", caption, str)
    text = " ".join(caption.split())
    for pattern, closed in _CLOSED_UP:
        text = pattern.sub(closed, text)
    letters = [index for index, character in enumerate(text) if character.isalnum()]
    if not letters:
        return text
    first = letters[0]
    capital = text[first].title()
    if len(capital) == 1 and capital.lower() == text[first]:
        text = text[:first] + capital + text[first + 1 :]
    if text.rstrip(_AFTER_STOP).endswith(_STOPS):
        return text
    script = unicodedata.name(text[letters[-1]], "").partition(" ")[0]
    return text + _FULL_STOPS.get(script, ".")


@dataclass(frozen=True)
class Wording:
    """How captions are written out; call it with the text of one."""

    style: Style = "plain"
    replaced: Mapping[str, str] = field(default_factory=dict)  # see `read_map`
    template: str = CAPTION

    def __post_init__(self) -> None:
        if problem := _problem_of(self.template):
            raise ConfigError(f"--template: {problem}, given {excerpt(self.template, 60)}")

    def __call__(self, text: str) -> str:
        """Write out one caption."""
        if self.replaced:
            text = self._map(text)
        if self.style == "sentence":
            text = sentence(text)
        return self.template.replace(CAPTION, text)

    @cached_property
    def _map(self) -> _Map:
        return _Map(self.replaced)

    @property
    def key(self) -> str:
        """What identifies the wording; empty for the model's own text."""
        if self == Wording():
            return ""
        parts = repr((self.style, sorted(self.replaced.items()), self.template))
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _problem_of(template: str) -> str | None:
    if CAPTION not in template:
        return f'must contain {CAPTION}, such as "sks style, {CAPTION}"'
    if len(template) > MOST_CHARACTERS:
        return f"must have at most {MOST_CHARACTERS:,} characters"
    if bad := CONTROL.search(template):
        return f"must be one line of printable text; it holds {excerpt(bad[0])}"
    return None


def read_map(path: Path) -> dict[str, str]:
    """Read words or phrases to replace: on each line FROM, a tab, and TO, which may be empty.

    Blank lines are skipped. Case does not matter in FROM.

    Raises:
        DataError: if the file cannot be read, or a line is malformed; names file and line.
    """
    replaced: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, stream=True), start=1):
        if not line.strip():
            continue
        before, tab, after = line.rstrip("\r\n").partition("\t")
        before = _folded(before)
        after = after.strip(" ")
        problem = None
        if not tab:
            problem = f"no tab; write FROM, a tab, and TO, given {excerpt(line.strip(), 60)}"
        elif not before:
            problem = "nothing to replace before the tab"
        elif bad := CONTROL.search(before + after):
            problem = f"must be two columns of UTF-8 text; it holds {excerpt(bad[0])}"
        elif len(line) > MOST_CHARACTERS:
            problem = f"more than {MOST_CHARACTERS:,} characters"
        elif before in first:
            problem = f"line {first[before]:,} replaces {plain(before, 60)} already"
        if problem:
            raise DataError(f"{path}:{number}: {problem}")
        replaced[before], first[before] = after, number
    if not replaced:
        raise DataError(f"{path}: nothing to replace; write lines of FROM, a tab, and TO")
    return replaced


def _folded(phrase: str) -> str:
    return " ".join(phrase.lower().split())


class _Piece(NamedTuple):
    """A word, or another character, with its place in a text."""

    text: str  # in lower case
    is_spaced: bool  # whether white space comes before it
    start: int
    end: int


class _Map:
    """Replaces whole words and phrases."""

    def __init__(self, replaced: Mapping[str, str]):
        self.ways: dict[str, list[tuple[list[_Piece], str]]] = defaultdict(list)  # by first piece
        for phrase, after in replaced.items():
            pieces = _pieces(phrase)
            self.ways[pieces[0].text].append((pieces, after))
        for ways in self.ways.values():
            ways.sort(key=lambda way: len(way[0]), reverse=True)

    def __call__(self, text: str) -> str:
        """Replace the longest phrases first; what was put in is not replaced again."""
        pieces, at, end, parts = _pieces(text), 0, 0, []
        while at < len(pieces):
            for phrase, after in self.ways.get(pieces[at].text, ()):
                found = pieces[at : at + len(phrase)]
                if [each.text for each in found] == [each.text for each in phrase] and all(
                    each.is_spaced == own.is_spaced
                    for each, own in zip(found[1:], phrase[1:], strict=True)
                ):
                    parts += [text[end : found[0].start], after]
                    end = found[-1].end
                    at += len(found) - 1
                    break
            at += 1
        return " ".join("".join([*parts, text[end:]]).split())


def _pieces(text: str) -> list[_Piece]:
    """Split a text into words and other characters, without white space."""
    return [
        _Piece(match[0].lower(), text[match.start() - 1 : match.start()].isspace(), *match.span())
        for match in _piece().finditer(text)
    ]


@lru_cache(maxsize=1)
def _piece() -> re.Pattern[str]:
    r"""Return a pattern of a word or one other character; `\w` lacks the vowel signs of Hindi.

    In scripts without spaces, a character with its marks is a word.
    """
    codes: Iterator[str] = map(chr, range(sys.maxunicode + 1))
    marks = "".join(code for code in codes if unicodedata.category(code)[0] == "M")
    marks, single = re.escape(marks), UNSPACED.pattern
    return re.compile(rf"{single}[{marks}]*|(?:(?!{single})[\w\-{marks}])+|\S")
