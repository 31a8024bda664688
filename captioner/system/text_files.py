r"""Read text files: UTF-8 or another encoding, any line ending, some damage.

Bytes that are not of the encoding become lone surrogates; `is_utf8` detects these and those of a
JSON escape such as `"\ud83d"`.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.system.escapes import NOT_UTF8, unescape
from captioner.system.files import no_stream, not_text, read_head
from captioner.system.foreign import plain
from captioner.system.text_encodings import advice, decode, decode_head

_N_BEST = re.compile(r"([^\t]*\t.*)\t-?\d+(?:\.\d+)?(?:e-?\d+)?")  # a score after the caption
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*\Z', re.IGNORECASE)
_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
# Cells without a value as pandas, R and Excel write them; no caption consists of such a word.
_NO_VALUE = frozenset(
    ("", "nan", "-nan", "nat", "null", "none", "na", "n/a", "<na>", "#na", "#n/a", "#name?")
)
_LIST = re.compile(rf"[\[(][\s,]*(?:(?:{_TEXT.pattern})[\s,]*)+[\])]|\[\s*\]")


def read_text(path: Path, *, stream: bool = False) -> str:
    """Return the text of a file in the encoding of `text_encodings.encoding_of`.

    Bytes that are not of the encoding become lone surrogates.

    A `stream` may be a pipe; only for a name that the user typed.

    Raises:
        DataError: if the file cannot be read, or is an image or another binary file.
    """
    try:
        with open(path, "rb", opener=None if stream else no_stream) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if what := not_text(data[:512]):
        raise DataError(f"{path}: {what}")
    return decode(data, path)


def text_head(path: Path, size: int = 512) -> str:
    """Return the text of the first bytes of a file, enough to recognise it; see `read_head`."""
    return decode_head(read_head(path, size))


def read_lines(path: Path, *, stream: bool = False) -> list[str]:
    """Return the lines with their line ends; only LF, CR and CRLF end one; see `read_text`."""
    return io.StringIO(read_text(path, stream=stream), newline="").readlines()


def filled_lines(path: Path) -> list[str]:
    """Return the lines of a file; a `DataError` if all are blank; see `read_lines`."""
    lines = read_lines(path)
    if not any(map(str.strip, lines)):
        raise DataError(f"{path}: empty file")
    return lines


def json_line(line: str) -> str:
    """Return the text of a line of JSON Lines, without the comma of a list of objects."""
    return line.strip().removesuffix(",")


def is_list(start: str) -> bool:
    """Return whether JSON is one list instead of JSON Lines, from its start."""
    return start.removeprefix("\ufeff").lstrip().startswith("[")


def read_json(path: Path, repeated: list[str], *, stream: bool = False) -> Any:
    """Return the parsed document; a list if the file holds JSON Lines.

    See `load_json` for keys that are `repeated`.

    Raises:
        DataError: if the file cannot be read, is empty, or is not JSON.
    """
    text = read_text(path, stream=stream)
    if not text.strip():
        raise DataError(f"{path}: empty file")
    first, _, rest = text.partition("\n")
    if rest.lstrip().startswith("{") and first.rstrip().endswith(("}", "},")):
        lines = enumerate(map(json_line, text.split("\n")), start=1)
        return [parse_json(f"{path}:{n}", line, repeated) for n, line in lines if line]
    return parse_json(str(path), text, repeated)


def parse_json(where: str, text: str, repeated: list[str]) -> Any:
    """Return what `load_json` returns.

    Raises:
        DataError: if the text is not JSON; names `where`, line and column.
    """
    try:
        return load_json(text, repeated)
    except (ValueError, RecursionError) as error:
        say = "" if is_utf8(text) else advice(_around(text))
        hint = f"; it is not UTF-8: {say}" if say else ""
        raise DataError(f"{where}: not valid JSON: {plain(error)}{hint}") from error


def load_json(text: str, repeated: list[str]) -> Any:
    """Parse JSON; if an object holds a key again, its first value counts.

    Args:
        text: the JSON.
        repeated: receives the keys whose values are left out.

    Raises:
        ValueError: if the text is not JSON.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=partial(_first_of_each, repeated))


def _first_of_each(repeated: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = {}
        for key, value in pairs:
            if key in found:
                repeated.append(key)
            else:
                found[key] = value
    return found


def _around(text: str) -> str:
    """Return a part of a text around its first byte that is not UTF-8."""
    match = NOT_UTF8.search(text)
    start = match.start() if match else 0
    return text[max(0, start - 20) : start + 1000]


def read_rows(
    lines: Iterable[str], delimiter: str, first: int = 0, *, spaced: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, cells) for each row of a delimited text, quoted or not.

    A row with invalid quotes (such as a caption that begins with a quotation) is split at every
    delimiter instead, so that a stray quote does not swallow the following rows. Blank lines, and
    those before the index `first`, are skipped. If `spaced`, a space may precede a quote.
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
        reader = csv.reader(following(), delimiter=delimiter, strict=True, skipinitialspace=spaced)
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


def read_named(
    place: str, lines: Iterable[str], notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, [image, caption]) of lines of image, tab, caption; blank ones are none.

    `captioner caption` writes such lines. Of an n-best list, only the best captions count; `notes`
    receives the number of the others.
    """
    texts = [(number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1)]
    # A line may be a name of white space without a caption.
    texts = [(n, text) for n, text in texts if text.strip() or ("\t" in text and text.strip("\t"))]
    ranked = all(_N_BEST.fullmatch(text) for _, text in texts)
    known: set[str] = set()
    for number, text in texts:
        name, _, caption = (_N_BEST.sub(r"\1", text) if ranked else text).partition("\t")
        if not (ranked and name in known):
            # Flickr's token files number the captions of an image: name.jpg#0
            yield number, [unescape(re.sub(r"(?<=.)#\d+\Z", "", name)), unescape(caption)]
        known.add(name)
    if left := len(texts) - len(known) if ranked else 0:
        notes.append(f"{place}: an n-best list; {left:,} captions after the best are left out")


def guess_delimiter(header: str) -> str:
    """Return the most frequent delimiter in a line of column names; a comma if there is none."""
    return max(",\t;|", key=header.count)


def split_table(lines: list[str]) -> tuple[list[str], str, Iterator[tuple[int, list[str]]]]:
    """Return the column names, the delimiter, and (line number, cells) of each row below them."""
    top = next((index for index, line in enumerate(lines) if not is_preamble(line)), 0)
    header = "".join(lines[top : top + 1])
    delimiter = guess_delimiter(header)
    spaced = f"{delimiter} " in header
    names = next(read_rows([header], delimiter, spaced=spaced), (1, []))[1]
    rows = read_rows(lines, delimiter, first=top + 1, spaced=spaced)
    return [name.strip() for name in names], delimiter, rows


def is_preamble(line: str) -> bool:
    """Return whether a line before the column names says nothing: blank, or Excel's `sep=;`."""
    return not line.strip() or _SEPARATOR.match(line) is not None


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


def is_missing(value: object) -> bool:
    """Return whether a cell or a JSON value says nothing: null, blank, or a word such as `nan`."""
    if isinstance(value, str):
        return value.strip().casefold() in _NO_VALUE
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8."""
    return text.isascii() or not NOT_UTF8.search(text)
