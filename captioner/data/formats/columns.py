"""Data sets in tables, CSV or JSONL: finds files and columns, and merges rows.

All rows of an image become one example, in order. A row may also hold a list of captions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from captioner.data.dataset import SPLIT_NAMES, Dataset, Options, split_in, split_name
from captioner.data.formats.collect import Collector, Entry, annotation_files, picture_folders
from captioner.errors import DataError
from captioner.system.foreign import excerpt

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "file")
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "comment", "raw"),
    "description",
)
ID_COLUMNS = ("image_id", "id")
_USUAL = {*SPLIT_NAMES.values(), "restval"}

Row: TypeAlias = Mapping[str, object]
Rows: TypeAlias = Iterable[tuple[str, Row]]  # where, cells by column


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None if the data set has no such column."""

    image: str
    caption: str
    split: str | None
    image_id: str | None


def is_table(root: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether this is a table, or a folder with some."""
    return root.suffix in suffixes if root.is_file() else bool(_table_files(root, suffixes))


def load_tables(
    root: Path,
    options: Options,
    format: str,
    suffixes: tuple[str, ...],
    read: Callable[[Collector, Path], tuple[list[str], Rows]],
) -> Dataset:
    """Read a table, or a folder with some; `read` returns a table's column names and its rows.

    Raises:
        DataError: if a column is missing, or there is no usable image.
    """
    base = root if root.is_dir() else root.parent
    collector = Collector(root, format, picture_folders(base, options.images))
    for file in _table_files(root, suffixes):
        names, rows = read(collector, file)
        columns = _choose_columns(names, options, str(file))
        scan = read(Collector(root, format, ()), file)[1]  # its problems come again below
        columns = _check_columns(collector, collector.place(file), columns, names, list(scan))
        _add_rows(collector, file, columns, rows)
    return collector.dataset(report_unnamed=root.is_dir())


def _table_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the tables of a data set.

    In a folder, the first of these that exists: `metadata.*`, `captions.*`, one `metadata.*` per
    subfolder, files named after splits, a single table.
    """
    if root.is_file():
        return [root]
    tables = [file for file in annotation_files(root, "*") if file.suffix in suffixes]
    for stem in ("metadata", "captions"):
        if named := [file for file in tables if file.stem == stem]:
            return named[:1]
    inner = sorted(file for suffix in suffixes for file in root.glob(f"*/metadata{suffix}"))
    exact = [file for file in tables if file.stem.lower() in SPLIT_NAMES]
    splits = exact or [file for file in tables if split_in(file.stem)]
    return inner or splits or (tables if len(tables) == 1 else [])


def _choose_columns(names: Collection[str], options: Options, where: str) -> Columns:
    """Return the columns of the options, and guess the others from the usual names."""
    listed = ", ".join(map(excerpt, names)) or "none"
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two columns have the same name; columns: {listed}")

    def pick(given: str | None, usual: tuple[str, ...], role: str) -> str:
        if given is not None and given not in names:
            raise DataError(
                f"{where}: no column {excerpt(given)} (data.{role}_column); columns: {listed}"
            )
        by_lower = {name.lower(): name for name in names}
        choice = given or next((by_lower[name] for name in usual if name in by_lower), None)
        if choice is None:
            message = f"{where}: no known {role} column; set data.{role}_column; columns: "
            raise DataError(message + listed)
        return choice

    default = Options().split_column
    if options.split_column != default:
        pick(options.split_column, (), "split")
    by_lower = {name.lower(): name for name in names}
    return Columns(
        image=pick(options.image_column, IMAGE_COLUMNS, "image"),
        caption=pick(options.caption_column, CAPTION_COLUMNS, "caption"),
        split=by_lower.get(default) if options.split_column == default else options.split_column,
        image_id=next((by_lower[name] for name in ID_COLUMNS if name in by_lower), None),
    )


def _check_columns(
    collector: Collector,
    place: str,
    columns: Columns,
    names: list[str],
    rows: list[tuple[str, Row]],
) -> Columns:
    """Find a split column of any name by its cells; drop an id column that numbers other things."""
    if columns.split is None and rows:
        for name in names:
            cells = (row.get(name) for _, row in rows)
            if all(isinstance(cell, str) and split_name(cell) in _USUAL for cell in cells):
                note = (
                    f"{place}: column {excerpt(name)} holds only names of splits: it is the split"
                )
                collector.notes.append(note)
                columns = replace(columns, split=name)
                break
    if columns.image_id:
        pairs = [(row.get(columns.image), row.get(columns.image_id)) for _, row in rows]
        known = {(str(file), str(number)) for file, number in pairs if file and number is not None}
        files, numbers = {file for file, _ in known}, {number for _, number in known}
        # One wrong cell is a `duplicate id`; a column that is wrong in many cells is no image id.
        if len(known) - min(len(files), len(numbers)) > max(1, len(known) // 10):
            collector.notes.append(
                f"{place}: column {excerpt(columns.image_id)} does not identify images; "
                "the file names do"
            )
            columns = replace(columns, image_id=None)
    return columns


def _add_rows(collector: Collector, file: Path, columns: Columns, rows: Rows) -> None:
    """Merge the rows of one table into the data set.

    Without a split column, the name of the table or of its folder gives the split.
    """
    folder = collector.place(file.parent)
    prefix = "" if collector.root.is_file() or folder == "." else f"{folder}/"
    stem = folder.rpartition("/")[2] if prefix else file.stem
    file_split = split_in(stem) or "train"
    if columns.split is None:
        collector.expect(file_split, collector.place(file))
    entries: dict[str, Entry] = {}
    for where, row in rows:
        name, value = row.get(columns.image), row.get(columns.caption)
        split = row.get(columns.split) if columns.split else file_split
        if name is None or name == "":
            collector.problem("caption without image", where, excerpt(value))
            continue
        if not (isinstance(name, str) and isinstance(split, str) and split):
            detail = f"image {excerpt(name)}, split {excerpt(split)}: both must be text"
            collector.problem("malformed line", where, detail)
            continue
        given = row.get(columns.image_id) if columns.image_id else None
        image_id = str(given) if isinstance(given, int | str) else ""
        new = Entry(image_id or prefix + name, prefix + name, split, where)
        if entry := _entry(collector, entries, new):
            for text in value if isinstance(value, list) else [value]:
                collector.caption(entry, text, where)


def _entry(collector: Collector, entries: dict[str, Entry], new: Entry) -> Entry | None:
    """Return the entry of the row's image; None, with a problem, if the row is unusable."""
    known = entries.get(new.file)
    if known is None:
        added = collector.add(new.image_id, new.file, new.split, new.where)
        return added and entries.setdefault(new.file, added)
    if known.split != split_name(new.split):
        detail = f"{new.file} ({new.split}) is already at {known.where} ({known.split})"
        collector.problem("duplicate id", new.where, detail)
        return None
    return known
