"""CSV and TSV: a header line, then rows with one caption or a JSON list of captions.

Without a header line, the first column is the image and the rest of the row the caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector
from captioner.data.formats.columns import Row, headless, is_table, load_tables
from captioner.system.escapes import own_cells
from captioner.system.text_files import (
    filled_lines,
    is_utf8,
    read_named,
    read_rows,
    split_table,
    unpack_list,
)

LOOKS_FOR = (
    "a .csv or .tsv file, or a folder with metadata.csv, captions.csv, train.csv or one .csv"
)

_SUFFIXES = (".csv", ".tsv")


def recognise(root: Path) -> bool:
    """Return whether this is a CSV or TSV file, or a folder with some."""
    return is_table(root, _SUFFIXES)


def load(root: Path, options: Options) -> Dataset:
    """Read CSV or TSV files; guess the delimiter from the header line."""
    return load_tables(root, options, "csv", _SUFFIXES, _read)


def _read(collector: Collector, file: Path) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    lines = filled_lines(file)
    if delimiter := headless("".join(lines[:1])):
        names = ["image", "caption"]
        rows = headless_rows(collector.place(file), lines, delimiter, collector.notes)
    elif names := _beside_urls("".join(lines[:1])):
        rows = read_rows(lines, "\t")
    else:
        names, _, rows = split_table(lines)
    return names, _rows(collector, file, names, rows)


def _beside_urls(line: str) -> list[str]:
    """Return the column names of captions and URLs without a header (Conceptual Captions)."""
    match ["://" in cell for cell in line.split("\t")]:
        case [False, True]:
            return ["caption", "image"]
        case [True, False]:
            return ["image", "caption"]
    return []


def headless_rows(
    place: str, lines: list[str], delimiter: str, notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, [image, caption]) of a table without column names."""
    if delimiter == "\t":
        yield from read_named(place, lines, notes)
    else:
        for number, [image, *rest] in read_rows(lines, delimiter):
            yield number, [image, delimiter.join(rest).strip()] if rest else [image]


def _rows(
    collector: Collector, file: Path, names: list[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[str, Row]]:
    place = collector.place(file)
    for number, cells in rows:
        where = f"{place}:{number}"
        if not all(map(is_utf8, cells)):
            collector.not_utf8(where, cells)
        elif len(cells) != len(names):
            detail = f"{len(cells)} cells, expected {len(names)}"
            collector.problem("malformed line", where, detail)
        else:
            own = own_cells(names, cells)
            values: Iterable[object] = own or (unpack_list(cell.strip()) for cell in cells)
            yield where, dict(zip(names, values, strict=True))
