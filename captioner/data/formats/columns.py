"""Data sets in tables, CSV or JSONL: finds files and columns, and merges rows.

All rows of an image become one example, in order. A row may also hold a list of captions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from captioner.data.dataset import SPLIT_NAMES, Dataset, Options, split_in, split_name
from captioner.data.formats.collect import Collector, Entry, annotation_files, picture_folders
from captioner.errors import DataError
from captioner.images.decode import SUFFIXES
from captioner.system.foreign import excerpt
from captioner.system.text_files import is_missing, text_head

# Names of columns, as `column_key` spells them.
IMAGE_COLUMNS = (
    *("filename", "image", "imagename", "imagepath", "path", "file", "filepath", "imagefile"),
    *("imagefilename", "img", "imgname", "imgpath", "imgfile", "photo", "picture", "images"),
    *("imageurl", "imgurl", "url"),
)
FILE_COLUMNS = tuple(name for name in IMAGE_COLUMNS if not name.endswith("url"))
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentence", "sentences", "comment", "raw"),
    *("description", "captiontext", "captionstr", "alttext"),
)
ID_COLUMNS = ("imageid", "imgid", "id")
_INNER = "annotations"
_PEEK = 1 << 16  # bytes
_MOST_JSON = 100  # files of a data set
_FEW = 100  # rows
_USUAL = {*SPLIT_NAMES.values(), "restval"}
_ENDINGS = "|".join(sorted(ending.strip(".") for ending in SUFFIXES))
_DATA = re.compile(rf'\s*"?[^"\t,;|]+\.(?:{_ENDINGS})(?:#\d+)?"?\s*([,\t;|:]|\Z)', re.IGNORECASE)

Row: TypeAlias = Mapping[str, object]
Rows: TypeAlias = Iterable[tuple[str, Row]]  # where, cells by column


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; None if the data set has no such column."""

    image: str
    captions: Sequence[str]
    split: str | None
    image_id: str | None


def column_key(name: str) -> str:
    """Return a column's name in lower case, without spaces, hyphens and underscores."""
    return re.sub(r"[\W_]+", "", name).lower()


def find_column(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """Return the column with the first of the usual names that there is, or None."""
    by_key = {column_key(name): name for name in reversed([*names])}
    return next((by_key[key] for key in usual if key in by_key), None)


def find_captions(names: Iterable[str]) -> list[str]:
    """Return the columns of captions: one, or numbered ones such as caption_1 and caption_2."""
    names = [*names]
    for usual in CAPTION_COLUMNS:
        if found := [name for name in names if re.fullmatch(rf"{usual}\d*", column_key(name))]:
            return found
    return []


def headless(line: str) -> str | None:
    """Return the delimiter of a table that begins with the name of an image; None for a header.

    The delimiter is "" if the line is only a name.
    """
    found = _DATA.match(line)
    return found and found[1]


def is_rows(path: Path, *, surely: bool = False) -> bool:
    """Return whether JSON holds a list of objects or a map of images, from its first bytes.

    Objects that are not `surely` a map of images count, unless they look like COCO's.
    """
    start = text_head(path, _PEEK).lstrip()
    if re.match(r"\[\s*\{", start):
        return True
    if re.search(r'"data"\s*:\s*\[\s*\{', start):  # TextCaps
        return True
    if surely:
        key = start.lstrip("{ \r\n\t").partition(":")[0].strip()
        return headless(key) is not None
    return start.startswith("{") and not re.search('"(images|annotations)"', start)


def is_table(root: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether this is a table, or a folder with some."""
    return root.suffix.lower() in suffixes if root.is_file() else bool(_table_files(root, suffixes))


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
    files = _table_files(root, suffixes)
    collector.note_others(files)
    for file in files:
        names, rows = read(collector, file)
        if len(files) > 1 and not options.caption_column and not find_captions(names):
            collector.notes.append(f"{collector.place(file)} holds no captions; passed over")
            continue
        columns = choose_columns(names, options, str(file))
        scan = read(Collector(root, format, ()), file)[1]  # its problems come again below
        columns = _check_columns(collector, collector.place(file), columns, names, list(scan))
        _add_rows(collector, file, columns, rows)
    return collector.dataset(report_unnamed=root.is_dir())


def _table_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the tables of a data set.

    In a folder or its `annotations/`, the first of these that exists: `metadata.*`, `captions.*`,
    one `metadata.*` per subfolder, files named after splits, a single table. JSON counts if it
    holds rows.
    """
    if root.is_file():
        return [root]
    patterns = [f"{inner}*{ending}" for ending in suffixes for inner in ("", f"{_INNER}/")]
    tables = [file for pattern in patterns for file in annotation_files(root, pattern)]
    if ".json" in suffixes:
        # img2dataset writes one JSON file for each image.
        few = len(tables) <= _MOST_JSON
        tables = [file for file in tables if few and is_rows(file, surely=True)]
    for stem in ("metadata", "captions"):
        if named := [file for file in tables if file.stem.lower() == stem]:
            return named[:1]
    inner = sorted(file for e in suffixes for file in annotation_files(root, f"*/metadata{e}"))
    if ".json" in suffixes:
        inner = inner or annotation_files(root, "*/caption_*_annotations_*.json")  # AI Challenger
    exact = [file for file in tables if file.stem.lower() in SPLIT_NAMES]
    splits = exact or [file for file in tables if split_in(file.stem)]
    return inner or splits or (tables if len(tables) == 1 else [])


def choose_columns(names: Collection[str], options: Options, where: str) -> Columns:
    """Return the columns of the options, and guess the others from the usual names.

    Raises:
        DataError: if a column is missing, or two have the same name.
    """
    listed = ", ".join(map(excerpt, names)) or "none"
    named = [name for name in names if name]  # a spreadsheet may leave empty columns
    if len(set(named)) < len(named):
        raise DataError(f"{where}: two columns have the same name; columns: {listed}")

    def pick(given: str | None, guessed: str | None, role: str) -> str:
        if given is not None and given not in names:
            raise DataError(
                f"{where}: no column {excerpt(given)} (data.{role}_column); columns: {listed}"
            )
        if not (choice := given or guessed):
            message = f"{where}: no known {role} column; set data.{role}_column; columns: "
            raise DataError(message + listed)
        return choice

    default = Options().split_column
    if options.split_column != default:
        pick(options.split_column, None, "split")
    captions = find_captions(names)
    image = pick(options.image_column, find_column(names, (*IMAGE_COLUMNS, "imageid")), "image")
    caption = pick(options.caption_column, next(iter(captions), None), "caption")
    image_id = find_column(names, ID_COLUMNS)
    return Columns(
        image=image,
        captions=[caption] if options.caption_column else captions,
        split=find_column(names, [default])
        if options.split_column == default
        else options.split_column,
        image_id=None if image_id == image else image_id,
    )


def _check_columns(
    collector: Collector,
    place: str,
    columns: Columns,
    names: list[str],
    rows: list[tuple[str, Row]],
) -> Columns:
    """Find a split column of any name by its cells; drop an id column that numbers other things."""
    columns = with_split_column(collector, place, columns, names, [row for _, row in rows])
    few = [row.get(columns.image) for _, row in rows[:_FEW]]
    if few and all(map(_is_url, few)):
        columns = _without_urls(collector, place, columns, rows)
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


def _is_url(name: object) -> bool:
    return isinstance(name, str) and "://" in name


def _without_urls(
    collector: Collector, place: str, columns: Columns, rows: list[tuple[str, Row]]
) -> Columns:
    """Take file names in the id column instead of URLs (AI Challenger).

    Raises:
        DataError: if there are only URLs, and no image of the names at their ends.
    """
    few = [row for _, row in rows[:_FEW]]
    ids = [str(row.get(columns.image_id)) for row in few] if columns.image_id else []
    if columns.image_id and all(headless(name) == "" for name in ids):
        return replace(columns, image=columns.image_id, image_id=None)
    pictures = collector.pictures
    if pictures.folders and not any(pictures.resembling(str(row[columns.image])) for row in few):
        raise DataError(
            f"{place}: names its images by URL, and none of them is on disk; download them with "
            f"img2dataset, with --output_format webdataset, and name its folder as data.root"
        )
    return columns


def with_split_column(
    collector: Collector, place: str, columns: Columns, names: Iterable[str], rows: Sequence[Row]
) -> Columns:
    """Find a split column of any name by its cells; note this, and several columns of captions."""
    if len(columns.captions) > 1:
        listed = ", ".join(map(excerpt, columns.captions))
        collector.notes.append(f"{place}: the captions are in the columns {listed}")
    if columns.split is not None or not rows:
        return columns
    for name in names:
        cells = (row.get(name) for row in rows)
        if all(isinstance(cell, str) and split_name(cell) in _USUAL for cell in cells):
            note = f"{place}: column {excerpt(name)} holds only names of splits: it is the split"
            collector.notes.append(note)
            return replace(columns, split=name)
    return columns


def _add_rows(collector: Collector, file: Path, columns: Columns, rows: Rows) -> None:
    """Merge the rows of one table into the data set.

    Without a split column, the name of the table or of its folder gives the split.
    """
    folder = collector.place(file.parent)
    prefix = "" if collector.root.is_file() or folder in (".", _INNER) else f"{folder}/"
    stem = folder.rpartition("/")[2] if prefix else file.stem
    file_split = split_in(stem) or "train"
    if columns.split is None:
        collector.expect(file_split, collector.place(file))
    entries: dict[str, Entry] = {}
    for where, row in rows:
        name, texts = row.get(columns.image), captions_of(row, columns)
        split = row.get(columns.split) if columns.split else file_split
        if is_missing(name):
            collector.problem("caption without image", where, excerpt(texts))
            continue
        name = str(name) if isinstance(name, int) else name  # an image id
        if not isinstance(name, str):
            detail = f"the image is not a file name: {excerpt(name, 60)}"
            collector.problem("malformed line", where, detail)
            continue
        if not isinstance(split, str) or is_missing(split):
            missing = is_missing(split)
            detail = "has no split" if missing else f"split {excerpt(split)} is not text"
            collector.problem("malformed line", where, f"image {excerpt(name)}: {detail}")
            continue
        given = row.get(columns.image_id) if columns.image_id else None
        image_id = str(given) if isinstance(given, int | str) and not is_missing(given) else ""
        new = Entry(image_id or prefix + name, prefix + name, split, where)
        if entry := _entry(collector, entries, new):
            for text in texts:
                collector.caption(entry, text, where)


def captions_of(row: Row, columns: Columns) -> list[object]:
    """Return the captions of a row; of several columns, the empty ones do not count.

    A cell holds a caption, an object with one, such as `{raw: ...}`, or a list of these.
    """
    values = [row.get(name) for name in columns.captions]
    values = [value for value in values if not is_missing(value)] or values[:1]
    return [text for value in values for text in _texts(value)]


def _texts(value: object, depth: int = 3) -> list[object]:
    if isinstance(value, list) and depth:
        return [text for each in value for text in _texts(each, depth - 1)]
    if isinstance(value, dict) and depth and (name := find_column(value, CAPTION_COLUMNS)):
        return _texts(value[name], depth - 1)
    return [value]


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
