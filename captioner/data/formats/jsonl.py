"""JSON Lines, such as Hugging Face's `metadata.jsonl`: one object per line."""

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
    """Return whether this is a JSON Lines file, or a folder with some."""
    return root.suffix in _SUFFIXES if root.is_file() else bool(table_files(root, _SUFFIXES))


def load(root: Path, options: Options) -> Dataset:
    """Read JSON Lines files; the keys of the first object are the columns.

    Args:
        root: a file, or a folder (see `table_files`).
        options: uses `images` and the columns.

    Raises:
        DataError: if there is no file, a file has no object, or a column is missing.
    """
    files = table_files(root, _SUFFIXES)
    if not files:
        raise DataError(f"{root}: no JSON Lines data set: expected {LOOKS_FOR}")
    base = root.parent if root.is_file() else root
    collector = Collector(root, "jsonl", picture_folders(base, options.images))
    for file in files:
        rows = _rows(collector, file)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{file}: no JSON object; expected one per line")
        columns = choose_columns(list(first[1]), options, str(file))
        add_rows(collector, file, columns, chain([first], rows))
    return collector.dataset(report_unnamed=root.is_dir())


def _rows(collector: Collector, file: Path) -> Iterator[tuple[str, Row]]:
    for where, line in collector.lines(file, read_lines(file)):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            collector.problem("malformed line", where, f"not JSON: {plain(error)}")
            continue
        if isinstance(row, dict):
            yield where, own_fields(row)
        else:
            collector.problem("malformed line", where, f"not a JSON object: {excerpt(row)}")
