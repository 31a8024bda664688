"""The encoding of a text: its byte order mark, else `data.encoding`, else UTF-8; never a guess."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from encodings.aliases import aliases
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONE = "captioner.lone"  # an error handler: bytes without a meaning become lone surrogates
EXAMPLES = "utf-16, windows-1252, windows-1251, shift_jis, gb18030"

_ODD = ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "mbcs", "oem")
_SHOWN = 30  # characters of a reading
_LEAST = 0.5  # of the characters that are not ASCII are usual ones


@dataclass(slots=True)
class Reading:
    """How a data set is read."""

    encoding: str | None
    utf8: dict[Path, None] = field(default_factory=dict)  # files that are UTF-8 all the same


_reading: ContextVar[Reading | None] = ContextVar("reading", default=None)


def _lone(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 | byte) for byte in bad), error.end


codecs.register_error(LONE, _lone)


@contextmanager
def reading_as(encoding: str | None) -> Iterator[Reading]:
    """Read texts without a byte order mark in an encoding of Python; None: UTF-8."""
    reading = Reading(encoding)
    token = _reading.set(reading)
    try:
        yield reading
    finally:
        _reading.reset(token)


def given_encoding() -> str | None:
    """Return the encoding of `reading_as`, or None; without a mark, UTF-16 and 32 begin low."""
    reading = _reading.get()
    name = reading.encoding if reading else None
    return f"{name}-le" if name and codecs.lookup(name).name in ("utf-16", "utf-32") else name


def mark_of(head: bytes) -> tuple[bytes, str | None]:
    """Return the byte order mark at the start of a file, and the encoding that it tells."""
    return next((each for each in MARKS if head.startswith(each[0])), (b"", None))


def encoding_of(head: bytes) -> str:
    """Return the encoding of a file, from its first bytes."""
    return mark_of(head)[1] or given_encoding() or "utf-8"


def decode(data: bytes, path: Path | None = None, *, errors: str = LONE) -> str:
    """Return the text of a file without its byte order mark.

    If `errors` is `LONE`, bytes without a meaning become lone surrogates.
    """
    mark, told = mark_of(data)
    reading = _reading.get()
    if path and reading and reading.encoding and not told and _is_utf8(data):
        reading.utf8[path] = None
    return data[len(mark) :].decode(encoding_of(data), errors)


def decode_head(head: bytes) -> str:
    """Return the text at the start of a file, of which the last character may be cut."""
    decoder = codecs.getincrementaldecoder(encoding_of(head))("replace")
    return decoder.decode(head[len(mark_of(head)[0]) :])


def bad_encoding(name: str) -> str | None:
    """Return why Python has no text encoding of this name, with a suggestion, or None."""
    if _is_text_codec(name):
        return None
    names = {known.replace("_", "-") for known in {*aliases, *aliases.values()}}
    spelled = name.lower().replace("_", "-").replace(" ", "-")
    close = get_close_matches(spelled, names, n=5, cutoff=0.75)
    usual = next(filter(_is_text_codec, close), None)
    hint = f"did you mean {usual}?" if usual else f"known: {EXAMPLES} and others"
    return f"no text encoding of Python ({hint})"


def _is_text_codec(name: str) -> bool:
    try:
        "a".encode(name)  # codecs such as base64 are not for text
    except (LookupError, UnicodeError, ValueError):
        return False
    return codecs.lookup(name).name not in _ODD


def readings(data: bytes, most: int = 3) -> str:
    """Return the encodings in which bytes would be a usual text, with it; empty if there are none.

    A hint for a person, who can tell which one is right; nothing is read by it.
    """
    scored = []
    for encoding, is_usual in _USUAL.items():
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        spots = [index for index, c in enumerate(text) if not c.isascii()]
        usual = sum(is_usual(text, index) for index in spots)
        if spots and usual >= _LEAST * len(spots):
            start = max(text.rfind("\n", 0, spots[0]) + 1, spots[0] - _SHOWN // 3)
            shown = text[start : start + _SHOWN].split("\n")[0].strip()
            scored.append((usual / len(spots), encoding, shown))
    best = sorted(scored, key=lambda each: each[0], reverse=True)[:most]
    return ", ".join(f"{encoding} reads {shown!r}" for _, encoding, shown in best)


def advice(text: str) -> str:
    """Return what to set to read a text with lone surrogates; empty if a JSON escape made them."""
    if given := given_encoding():
        return f"data.encoding is {given}"
    found = readings_of(text)
    if found is None:
        return ""
    return f"set data.encoding ({found or f'such as {EXAMPLES}'}), or save the file as UTF-8"


def readings_of(text: str) -> str | None:
    """Return the `readings` of a text with lone surrogates for bytes; None if it has others."""
    try:
        return readings(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None


def _is_utf8(data: bytes) -> bool:
    """Return whether bytes are UTF-8 with other characters than ASCII."""
    try:
        return not data.isascii() and bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _beside_ascii(text: str, index: int) -> bool:
    beside = text[max(0, index - 1) : index] + text[index + 1 : index + 2]
    return any(c.isascii() and c.isalpha() for c in beside)


def _latin(letters: str) -> Callable[[str, int], bool]:
    return lambda text, index: text[index].lower() in letters and _beside_ascii(text, index)


def _other(is_letter: Callable[[str], bool]) -> Callable[[str, int], bool]:
    return lambda text, index: is_letter(text[index]) and not _beside_ascii(text, index)


def _cyrillic(c: str) -> bool:
    return "а" <= c <= "я" or c in "ёіїєґў"


def _first_byte(encoding: str, c: str) -> int:
    return c.encode(encoding, "replace")[0]


# Encodings, the likelier first, and which characters are usual in texts that are not English.
_USUAL: dict[str, Callable[[str, int], bool]] = {
    "windows-1252": _latin("äöüßéèêëàâçñóíáúîôåøæœ‘’“”–…"),
    "windows-1251": _other(_cyrillic),
    "shift_jis": _other(lambda c: "ぁ" <= c <= "ー" or 0x88 <= _first_byte("cp932", c) < 0x98),
    "euc_kr": _other(lambda c: "가" <= c <= "힣"),
    "gb18030": _other(lambda c: 0xB0 <= _first_byte("gb2312", c) < 0xD8 or c in "，。"),
    "big5": _other(lambda c: 0xA4 <= _first_byte("big5", c) < 0xC7 or c in "，。"),
    "windows-1250": _latin("ąćęłńóśźżěščřžýáíéůúőűäöüß"),
    "koi8-r": _other(_cyrillic),
}
