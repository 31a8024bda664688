"""Code for both CSV and JSONL data sets: finds files and columns, and merges rows.

All rows of an image become one example, in order. A row may also hold a list of captions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from captioner.data.dataset import SPLIT_NAMES, Options, split_name
from captioner.data.formats.collect import Collector, Entry
from captioner.errors import DataError
from captioner.system.foreign import excerpt

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "path", "file")
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "comment", "raw"),
    "description",
)
ID_COLUMNS = ("image_id", "id")

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None if the data set has no such column."""

    image: str
    caption: str
    split: str | None
    image_id: str | None


def table_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the tables of a data set.

    Returns:
        The file itself. For a folder, the first that exists of: `metadata.*`, `captions.*`, one
        `metadata.*` per sub-folder, files named after splits, a single table.
    """
    if root.is_file():
        return [root]
    tables = [file for file in sorted(root.glob("*")) if file.suffix in suffixes]
    for stem in ("metadata", "captions"):
        if named := [file for file in tables if file.stem == stem]:
            return named[:1]
    inner = sorted(file for suffix in suffixes for file in root.glob(f"*/metadata{suffix}"))
    splits = [file for file in tables if file.stem.lower() in SPLIT_NAMES]
    return inner or splits or (tables if len(tables) == 1 else [])


def choose_columns(names: Collection[str], options: Options, where: str) -> Columns:
    """Return the columns of the options, and guess the others from the usual names.

    Raises:
        DataError: with the names of the columns, if a column of the options does not exist, a guess
            fails or two columns have the same name.
    """
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
    if options.split_column != default and options.split_column not in names:
        pick(options.split_column, (), "split")
    return Columns(
        image=pick(options.image_column, IMAGE_COLUMNS, "image"),
        caption=pick(options.caption_column, CAPTION_COLUMNS, "caption"),
        split=options.split_column if options.split_column in names else None,
        image_id=next((name for name in ID_COLUMNS if name in names), None),
    )


def add_rows(
    collector: Collector, file: Path, columns: Columns, rows: Iterable[tuple[str, Row]]
) -> None:
    """Merge the rows of one table into the data set.

    Args:
        collector: collects the examples and the problems.
        file: the table; without a split column, its name or its folder's name gives the split.
        columns: from `choose_columns`.
        rows: (where, cells by column) of each row.
    """
    prefix = _prefix(collector, file)
    file_split = _file_split(file)
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
        file_name = prefix + name
        new = Entry(_image_id(row, columns) or file_name, file_name, split, where)
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


def _image_id(row: Row, columns: Columns) -> str:
    value = row.get(columns.image_id) if columns.image_id else None
    return str(value) if isinstance(value, int | str) else ""


def _prefix(collector: Collector, file: Path) -> str:
    """Return the folder of the names in a table: `train/` for `train/metadata.jsonl`."""
    folder = collector.place(file.parent)
    return "" if collector.root.is_file() or folder == "." else f"{folder}/"


def _file_split(file: Path) -> str:
    stem = file.parent.name if file.stem == "metadata" else file.stem
    return stem if stem.lower() in SPLIT_NAMES else "train"
