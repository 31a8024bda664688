"""JSON Lines, such as Hugging Face's `metadata.jsonl`: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector
from captioner.data.formats.columns import Row, is_table, load_tables
from captioner.errors import DataError
from captioner.system.escapes import own_fields
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import read_json, read_lines

LOOKS_FOR = (
    "a .jsonl file, or a folder with metadata.jsonl, captions.jsonl, train.jsonl or one .jsonl"
)

_SUFFIXES = (".jsonl", ".ndjson")


def recognise(root: Path) -> bool:
    """Return whether this is a JSON Lines file, or a folder with some."""
    return is_table(root, _SUFFIXES) or (root.is_file() and root.suffix == ".json")


def load(root: Path, options: Options) -> Dataset:
    """Read JSON Lines files; the keys of the first object are the columns."""
    return load_tables(root, options, "jsonl", _SUFFIXES, _read)


def _read(collector: Collector, file: Path) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    rows = _rows(collector, file)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file}: no JSON object; expected one per line")
    return list(first[1]), chain([first], rows)


def _rows(collector: Collector, file: Path) -> Iterator[tuple[str, Row]]:
    if file.suffix == ".json":  # a list of objects
        for index, row in enumerate(read_json(file)):
            where = f"{collector.place(file)}: [{index}]"
            if isinstance(row, dict):
                yield where, own_fields(row)
            else:
                collector.problem("malformed line", where, f"not a JSON object: {excerpt(row)}")
        return
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
