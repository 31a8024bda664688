r"""Read text files: UTF-8 with or without BOM, any line ending, some damage.

Bytes that are not UTF-8 become lone surrogates; `is_utf8` detects these and those of a JSON escape
such as `"\ud83d"`.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.system.escapes import NOT_UTF8
from captioner.system.files import no_stream
from captioner.system.foreign import plain

_SEPARATOR = re.compile(r'"?sep=(.)"?\s*\Z', re.IGNORECASE)
_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_LIST = re.compile(rf"[\[(][\s,]*(?:(?:{_TEXT.pattern})[\s,]*)+[\])]|\[\s*\]")


def read_text(path: Path, *, stream: bool = False) -> str:
    """Return the text of a file; bytes that are not UTF-8 become lone surrogates.

    A `stream` may be a pipe; only for a name that the user typed.

    Raises:
        DataError: if the file cannot be read, or is UTF-16.
    """
    try:
        with open(path, "rb", opener=None if stream else no_stream) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: the file is encoded as UTF-16; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


def read_lines(path: Path, *, stream: bool = False) -> list[str]:
    """Return the lines with their line ends; only LF, CR and CRLF end one; see `read_text`."""
    return io.StringIO(read_text(path, stream=stream), newline="").readlines()


def read_json(path: Path, *, stream: bool = False) -> Any:
    """Return the parsed document; see `read_text` and `parse_json`."""
    return parse_json(str(path), read_text(path, stream=stream))


def parse_json(where: str, text: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: if the text is not JSON; names `where`, line and column.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {plain(error)}") from error


def read_rows(
    lines: Iterable[str], delimiter: str, first: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) for each row of a delimited text, quoted or not.

    A row with invalid quotes (such as a caption that begins with a quotation) is split at every
    delimiter instead, so that a stray quote does not swallow the following rows. Blank lines, and
    those before the index `first`, are skipped.
    """
    source = islice(lines, first, None)
    row: list[str] = []  # lines of the current row
    again: deque[str] = deque()  # lines to read again after a stray quote

    def following() -> Iterator[str]:
        for line in iter(lambda: again.popleft() if again else next(source, None), None):
            row.append(line)
            yield line

    begin, ended = first, False
    while not ended:
        reader = csv.reader(following(), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield begin + 1, cells
                begin += len(row)
                row.clear()
            ended = True
        except csv.Error:
            yield begin + 1, row[0].rstrip("\r\n").split(delimiter)
            begin += 1
            again.extendleft(reversed(row[1:]))
            row.clear()


def guess_delimiter(header: str) -> str:
    """Return the most frequent delimiter in a line of column names; a comma if there is none."""
    return max(",\t;|", key=header.count)


def is_preamble(line: str) -> bool:
    """Return whether a line before the column names says nothing: blank, or Excel's `sep=;`."""
    return not line.strip() or _SEPARATOR.match(line) is not None


def header_index(lines: list[str]) -> int:
    """Return the index of the line with the column names; 0 without any."""
    return next((index for index, line in enumerate(lines) if not is_preamble(line)), 0)


def unpack_list(cell: str) -> object:
    """Return the list in a cell, as JSON, Python and NumPy write it; other cells as they are."""
    if not _LIST.fullmatch(cell):
        return cell
    with suppress(ValueError, RecursionError):
        return json.loads(cell)
    # An odd backslash is a `SyntaxWarning`, a line end in a text a `SyntaxError`.
    with suppress(ValueError, SyntaxError), warnings.catch_warnings(action="ignore"):
        return [ast.literal_eval(text) for text in _TEXT.findall(cell)]
    return cell


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8."""
    return text.isascii() or not NOT_UTF8.search(text)
