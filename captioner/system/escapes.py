r"""Escapes of names and captions in output files, and their inverse.

In text and CSV, what a terminal, an editor or a spreadsheet would interpret becomes an escape such
as `\x1b`. JSON has its own escapes; there, only bytes that are not UTF-8 use these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

COLUMNS = ("file_name", "image_id", "caption", "score", "status")  # mark a file as captioner's
_NAMES = COLUMNS[:2]

_BELOW_SPACE = r"\x00-\x1f"
_OBEYED = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff"
_SURROGATES = r"\ud800-\udfff"  # bytes that are not UTF-8, as Python holds them
CONTROL = re.compile(f"[{_BELOW_SPACE}{_OBEYED}{_SURROGATES}]")
CELL = re.compile(rf"{CONTROL.pattern}|\A[=+\-@＝＋－＠]")
# In Flickr's token files, `#0` after the name numbers the captions of an image.
LINE_NAME = re.compile(rf"{CELL.pattern}|#(?=\d+\Z)")
NOT_UTF8 = re.compile(f"[{_SURROGATES}]")
OBEYED = re.compile(f"[{_OBEYED}{_SURROGATES}]")  # characters that JSON and YAML would not escape

# Letters that are written from right to left: Hebrew, Arabic and others.
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}
_READ = {written: character for character, written in _SHORT.items()}
_ESCAPE = r"\\(?:[\\tn]|x[0-9a-f]{2}|u[0-9a-f]{4})"
_ESCAPED = re.compile(rf"(?:[^\\]|{_ESCAPE})*+")
_NOT_UTF8_ESCAPE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


def escape(text: str, unsafe: re.Pattern[str] = CELL) -> str:
    """Escape unsafe characters, such that `unescape` returns the original.

    A text without unsafe characters stays unchanged unless `unescape` would change it. `unsafe`
    matches single characters.
    """
    if not unsafe.search(text) and unescape(text) == text:
        return text
    return re.sub(rf"{unsafe.pattern}|\\", _written, text)


def unescape(text: str) -> str:
    """Undo `escape`; a text with any other backslash stays unchanged."""
    if "\\" not in text or not _ESCAPED.fullmatch(text):
        return text
    return re.sub(_ESCAPE, _read, text)


def visible(text: str) -> str:
    """Escape control characters for display; `unescape` does not undo this."""
    return CONTROL.sub(_written, text)


def isolated(text: str) -> str:
    """Keep what stands beside a right-to-left text in its place: for terminals, not for files.

    The text gets the direction of its first letter, by a first strong isolate of UAX #9.
    """
    return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.search(text) else text


def utf8_name(name: str) -> str:
    """Return a file name as valid UTF-8; other bytes become escapes."""
    if NOT_UTF8.search(name) or _NOT_UTF8_ESCAPE.search(name):
        return escape(name, NOT_UTF8)
    return name


def own_cells(names: Sequence[str], cells: Sequence[str]) -> list[str] | None:
    """Unescape a row of CSV that captioner wrote; None if the columns are not captioner's."""
    return [*map(unescape, cells)] if tuple(names) == COLUMNS else None


def is_own(fields: Any) -> bool:
    """Return whether captioner wrote a JSON Lines object."""
    return isinstance(fields, dict) and tuple(fields)[: len(COLUMNS)] == COLUMNS


def own_fields(fields: Any) -> Any:
    """Unescape a JSON Lines object that captioner wrote; return anything else unchanged."""
    if not is_own(fields):
        return fields
    return {
        name: unescape(value)
        if name in _NAMES and isinstance(value, str) and _NOT_UTF8_ESCAPE.search(value)
        else value
        for name, value in fields.items()
    }


def to_json(value: Any, **options: Any) -> str:
    """Return JSON with readable non-ASCII letters and escaped control characters."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _read(match: re.Match[str]) -> str:
    written = match[0]
    return _READ.get(written) or chr(int(written[2:], 16))
