r"""Text files as people really write them: UTF-8 with or without BOM, any line ending, some damage.

Bytes that are not UTF-8 survive reading as lone surrogates (`surrogateescape`), so one bad line
costs that line and not the file; `is_utf8` finds them wherever they end up. It also finds the
lone surrogates of a JSON escape such as `"\ud83d"`, which could never be written again.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.system.files import no_stream
from captioner.system.foreign import plain


def read_text(path: Path, *, stream: bool = False) -> str:
    """The whole file; bytes that are not UTF-8 become lone surrogates.

    Args:
        path: of the file.
        stream: whether it may be a pipe, which only the user may name.

    Raises:
        DataError: if it cannot be read, or is UTF-16.
    """
    try:
        with open(path, "rb", opener=None if stream else no_stream) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")


def read_lines(path: Path, *, stream: bool = False) -> list[str]:
    """Lines with their endings; only line feeds and carriage returns end a line.

    Args:
        path: of the file.
        stream: see `read_text`.

    Raises:
        DataError: if the file cannot be read, or is UTF-16.
    """
    # str.splitlines would also cut at U+2028 and other characters a caption may hold.
    data = read_text(path, stream=stream).encode("utf-8", errors="surrogateescape")
    return [line.decode("utf-8", errors="surrogateescape") for line in data.splitlines(True)]


def read_json(path: Path, *, stream: bool = False) -> Any:
    """The parsed document.

    Args:
        path: of the file.
        stream: see `read_text`.

    Raises:
        DataError: if the file cannot be read or is not JSON, with line and column.
    """
    try:
        return json.loads(read_text(path, stream=stream))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: not valid JSON: {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable JSON: {plain(error)}") from error


def read_rows(
    lines: Iterable[str], delimiter: str, first: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row of a delimited text, quoted or not.

    A row whose quotes make no sense (a caption that begins with a quotation) is cut at every
    delimiter instead, so that a stray quote never swallows the rows below it.

    Args:
        lines: the file, line endings included; read as rows are asked for.
        delimiter: one character.
        first: index of the line to start at.

    Yields:
        (line number from 1, cells); a quoted cell may span lines, blank lines are passed over.
    """
    source = islice(lines, first, None)
    row: list[str] = []  # lines of the row that is being read
    again: deque[str] = deque()  # lines that a stray quote had swallowed

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
    """The separator a line of column names uses most; a comma if none."""
    return max(",\t;|", key=header.count)


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
