r"""Names and captions as output files hold them, and back again.

In text and CSV what a terminal, an editor or a spreadsheet would obey is written as an escape such
as `\x1b`: control characters, marks that turn the direction of writing, bytes that are not UTF-8,
and a sign at the beginning that would make a cell a formula. In JSON, which has escapes of its own,
only bytes that are not UTF-8 need ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

COLUMNS = ("file_name", "image_id", "caption", "score", "status")  # a file with them is ours
_NAMES = COLUMNS[:2]

_BELOW_SPACE = r"\x00-\x1f"
_OBEYED = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff"
_SURROGATES = r"\ud800-\udfff"  # bytes that are not UTF-8, as Python holds them
CONTROL = re.compile(f"[{_BELOW_SPACE}{_OBEYED}{_SURROGATES}]")
CELL = re.compile(rf"{CONTROL.pattern}|\A[=+\-@＝＋－＠]")
# Flickr's token files number the captions of a picture: the name before `#0` is another's.
LINE_NAME = re.compile(rf"{CELL.pattern}|#(?=\d+\Z)")
NOT_UTF8 = re.compile(f"[{_SURROGATES}]")
OBEYED = re.compile(f"[{_OBEYED}{_SURROGATES}]")  # what JSON and YAML would leave as it is

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}
_READ = {written: character for character, written in _SHORT.items()}
_ESCAPE = r"\\(?:[\\tn]|x[0-9a-f]{2}|u[0-9a-f]{4})"
_ESCAPED = re.compile(rf"(?:[^\\]|{_ESCAPE})*+")
_NOT_UTF8_ESCAPE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


def escape(text: str, unsafe: re.Pattern[str] = CELL) -> str:
    """Write escapes for what is unsafe, if anything is, or if `unescape` would change the text.

    Args:
        text: of a name or a caption.
        unsafe: matches single characters.

    Returns:
        What `unescape` turns back into the text.
    """
    if not unsafe.search(text) and unescape(text) == text:
        return text
    return re.sub(rf"{unsafe.pattern}|\\", _written, text)


def unescape(text: str) -> str:
    """Undo `escape`; a text in which one backslash begins no escape of ours stays as it is."""
    if "\\" not in text or not _ESCAPED.fullmatch(text):
        return text
    return re.sub(_ESCAPE, _read, text)


def visible(text: str) -> str:
    """Write escapes for control characters alone, for people to read: not to be undone."""
    return CONTROL.sub(_written, text)


def utf8_name(name: str) -> str:
    """Return a file's name as UTF-8 can hold it; bytes that are none are written as escapes."""
    if NOT_UTF8.search(name) or _NOT_UTF8_ESCAPE.search(name):
        return escape(name, NOT_UTF8)
    return name


def own_cells(names: Sequence[str], cells: Sequence[str]) -> list[str] | None:
    """Return the cells of a CSV row as they were before they were written.

    Args:
        names: of the columns.
        cells: of a row, as many.

    Returns:
        None for a file that is not ours: its cells mean what they say.
    """
    return [*map(unescape, cells)] if tuple(names) == COLUMNS else None


def own_fields(fields: Any) -> Any:
    """Return an object of JSON Lines as it was before it was written; anything else as it is."""
    if not isinstance(fields, dict) or tuple(fields)[: len(COLUMNS)] != COLUMNS:
        return fields
    return {
        name: unescape(value)
        if name in _NAMES and isinstance(value, str) and _NOT_UTF8_ESCAPE.search(value)
        else value
        for name, value in fields.items()
    }


def to_json(value: Any, **options: Any) -> str:
    """Return readable JSON: with the letters of every script, but with no control character.

    Args:
        value: what `json.dumps` takes.
        **options: of `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _written(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _read(match: re.Match[str]) -> str:
    written = match[0]
    return _READ.get(written) or chr(int(written[2:], 16))
