"""CSV and TSV: a header line, then rows with one caption or a JSON list of captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector, picture_folders
from captioner.data.formats.columns import Row, add_rows, choose_columns, table_files
from captioner.errors import DataError
from captioner.system.escapes import own_cells
from captioner.system.foreign import excerpt
from captioner.system.text_files import (
    guess_delimiter,
    is_utf8,
    read_lines,
    read_rows,
    unpack_list,
)

LOOKS_FOR = (
    "a .csv or .tsv file, or a folder with metadata.csv, captions.csv, train.csv or one .csv"
)

_SUFFIXES = (".csv", ".tsv")


def recognise(root: Path) -> bool:
    """Return whether this is a CSV or TSV file, or a folder with some."""
    return root.suffix in _SUFFIXES if root.is_file() else bool(table_files(root, _SUFFIXES))


def load(root: Path, options: Options) -> Dataset:
    """Read CSV or TSV files; guess the delimiter from the header line.

    Args:
        root: a file, or a folder (see `table_files`).
        options: uses `images` and the columns.

    Raises:
        DataError: if there is no table, or a column is missing.
    """
    files = table_files(root, _SUFFIXES)
    if not files:
        raise DataError(f"{root}: no CSV or TSV data set: expected {LOOKS_FOR}")
    base = root.parent if root.is_file() else root
    collector = Collector(root, "csv", picture_folders(base, options.images))
    for file in files:
        lines = read_lines(file)
        delimiter = guess_delimiter(lines[0] if lines else "")
        header = next(read_rows(lines[:1], delimiter), (1, []))[1]
        names = [name.strip() for name in header]
        columns = choose_columns(names, options, str(file))
        rows = read_rows(lines, delimiter, first=1)
        add_rows(collector, file, columns, _rows(collector, file, rows, names, columns.caption))
    return collector.dataset(report_unnamed=root.is_dir())


def _rows(
    collector: Collector,
    file: Path,
    rows: Iterable[tuple[int, list[str]]],
    names: list[str],
    caption: str,
) -> Iterator[tuple[str, Row]]:
    place = collector.place(file)
    for number, cells in rows:
        where = f"{place}:{number}"
        if not all(map(is_utf8, cells)):
            collector.problem("not UTF-8", where, excerpt(cells))
        elif len(cells) != len(names):
            collector.problem(
                "malformed line", where, f"{len(cells)} cells instead of {len(names)}"
            )
        else:
            own = own_cells(names, cells)
            row = dict(zip(names, own or map(str.strip, cells), strict=True))
            yield where, {**row, caption: row[caption] if own else unpack_list(row[caption])}
