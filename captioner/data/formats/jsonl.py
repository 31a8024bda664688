"""JSON Lines, Hugging Face's `metadata.jsonl` among them: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector, picture_folders
from captioner.data.formats.columns import Row, add_rows, choose_columns, table_files
from captioner.errors import DataError
from captioner.system.escapes import own_fields
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import read_lines

LOOKS_FOR = (
    "a .jsonl file, or a folder with metadata.jsonl, captions.jsonl, train.jsonl or one .jsonl"
)

_SUFFIXES = (".jsonl", ".ndjson")


def recognise(root: Path) -> bool:
    """Whether this is a JSON Lines file, or a folder with some."""
    return root.suffix in _SUFFIXES if root.is_file() else bool(table_files(root, _SUFFIXES))


def load(root: Path, options: Options) -> Dataset:
    """Read JSON Lines files; the first object of each says which columns there are.

    Args:
        root: a file, or a folder (see `table_files`).
        options: `images` and the columns are used.

    Raises:
        DataError: if there is no such file, it holds no object, or a column is missing.
    """
    files = table_files(root, _SUFFIXES)
    if not files:
        raise DataError(f"{root}: no JSON Lines: expected {LOOKS_FOR}")
    base = root.parent if root.is_file() else root
    found = Collector(root, "jsonl", picture_folders(base, options.images))
    for file in files:
        rows = _rows(found, file)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{file}: not one JSON object, one per line, in it")
        columns = choose_columns(list(first[1]), options, str(file))
        add_rows(found, file, columns, chain([first], rows))
    return found.dataset(report_unnamed=root.is_dir())


def _rows(found: Collector, file: Path) -> Iterator[tuple[str, Row]]:
    for where, line in found.lines(file, read_lines(file)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            found.problem("malformed line", where, f"not JSON: {plain(error)}")
            continue
        if isinstance(row, dict):
            yield where, own_fields(row)
        else:
            found.problem("malformed line", where, f"no JSON object: {excerpt(row)}")
