"""CSV, TSV, JSON Lines, JSON and Parquet tables -> images, row by row.

A column holds their paths. In Parquet it may hold the images themselves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

from captioner.captioning.sources.item import NO_FILE, Item, failure, kind_of, unreachable
from captioner.data.dataset import split_in
from captioner.data.formats import parquet
from captioner.data.formats.collect import Pictures, picture_folders
from captioner.data.formats.columns import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    IMAGE_COLUMNS,
    find_column,
    headless,
)
from captioner.data.formats.image_tables import (
    Cell,
    base_of,
    choose_image,
    image_columns,
    name_cells,
)
from captioner.data.formats.jsonl import json_rows
from captioner.errors import DataError, ImageError
from captioner.images.remote_content import RemoteFile
from captioner.system.addresses import is_address, shown
from captioner.system.escapes import is_own, own_cells, own_fields, unescape
from captioner.system.files import no_stream, not_text, read_head, read_json
from captioner.system.foreign import excerpt, plain
from captioner.system.object_store import check_installed
from captioner.system.text_encodings import LONE, encoding_of
from captioner.system.text_files import (
    guess_delimiter,
    is_list,
    is_preamble,
    json_line,
    read_rows,
    text_head,
)

DELIMITED = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITED, *JSON_LINES, ".json", parquet.SUFFIX)
IMAGE_IDS = ("cocoid", "imageid", "imgid")  # as `column_key` spells them
MAX_LINE = 2**26  # characters; without a limit one line could fill the memory

# Line number from 1; the path, the image or the error; the image id, if any.
Row = tuple[int, object | ImageError, object]


def table_images(
    name: str,
    image_column: str | None = None,
    *,
    shown_as: str = "",
    row: Callable[[str, str], Item] | None = None,
) -> Iterator[Item]:
    r"""List the files that a table names, and a failure for each row without a file.

    Paths are in `image_column`, or in the first column with a common name. Relative paths are tried
    from the table's folder, then from the current folder; then in another case, Unicode form or
    folder, or with `/` for `\`, if only one file fits.

    A table that was copied here from an address is `shown_as` that, and `row` makes an item from
    the line's name and its path.
    """
    shown_as = shown_as or name
    table = Path(name)
    folders = [table.parent, Path()]
    if table.parent.name == "annotations":  # as in COCO, with images in the folders beside it
        with suppress(OSError):
            folders += sorted(path for path in table.parent.parent.iterdir() if path.is_dir())
    folders += picture_folders(table.parent, None)
    pictures = Pictures(folders, splits=[table.parent])
    row = row or partial(_file, table, pictures)
    suffix = table.suffix.lower()
    rows = _READERS.get(suffix, _json)
    has_rows = False
    try:
        for number, value, image_id in rows(table, image_column):
            is_id = isinstance(value, int) and not isinstance(value, bool)
            item = _item(f"{shown_as}:{number}", str(value) if is_id else value, row)
            if is_id and isinstance(item.source, ImageError):
                if not has_rows:
                    raise ImageError(
                        f"names images by number ({value}), not by path, as COCO results do; give "
                        f"the images, or a table with their paths"
                    )
                item = _item(f"{shown_as}:{number}", value, row)
            has_rows = True
            yield replace(item, image_id=_text(image_id))
    except OSError as error:
        yield failure(shown_as, f"cannot be read: {error.strerror or plain(error)}", "unreadable")
    except DataError as error:
        yield failure(shown_as, str(error).removeprefix(f"{name}: "), "unreadable")
    except ImageError as error:
        yield Item(shown_as, error)
    else:
        if not has_rows:
            yield failure(shown_as, "no rows in this table", "missing")


def _text(image_id: object) -> str:
    """Return an image id as text; pandas writes whole numbers as `12.0`."""
    if not isinstance(image_id, str | int | float) or isinstance(image_id, bool):
        return ""
    return re.sub(r"\A(\d+)\.0\Z", r"\1", str(image_id).strip())


def _item(where: str, value: object | ImageError, row: Callable[[str, str], Item]) -> Item:
    if isinstance(value, ImageError):
        return Item(where, value)
    if isinstance(value, Cell):
        return Item(str(value), value)
    if not (isinstance(value, str) and value):
        return failure(where, f"not a path: {excerpt(value)}", "missing")
    try:
        os.fsencode(value)
    except UnicodeError:
        return failure(where, f"not a valid file name: {excerpt(value)}", "missing")
    if "://" in value:
        return _addressed(value)
    return row(where, value)


def _addressed(value: str) -> Item:
    """Return the picture at an address in a table; never a pattern, a folder or an archive."""
    if not is_address(value):
        return unreachable(value)
    check_installed(value)
    return Item(shown(value), RemoteFile(value))


def remote_row(folder: str, where: str, value: str) -> Item:
    """Return the item of a path in a table at an address; it stays below the table's folder."""
    parts = value.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts:
        return failure(where, f"not below the table's folder: {excerpt(value)}", "missing")
    address = f"{folder}/{value}"
    return Item(shown(address), RemoteFile(address))


def _file(table: Path, pictures: Pictures, where: str, value: str) -> Item:
    # A table may be untrusted: its names are only opened as files, never as patterns, archives or
    # commands.
    in_table_folder, here = table.parent / value, Path(value)
    kinds = {path: kind_of(path) for path in (in_table_folder, here)}
    for path, kind in kinds.items():
        if kind == "file":
            return Item(str(path), path)
    if set(kinds.values()) == {"nothing"}:
        with suppress(DataError):  # a folder that cannot be listed
            split = split_in(table.stem) or ""
            if found := pictures.in_split(value, split) or pictures.resembling(value):
                return Item(str(found), found, written=value)
    kind = kinds[in_table_folder]
    reason = {"folder": "a folder, not a file", "nothing": "no such file"}.get(kind, NO_FILE)
    message = f"{reason} ({where})"
    return failure(str(in_table_folder), message, "unreadable" if reason == NO_FILE else "missing")


def _lines(table: Path) -> Iterator[str]:
    """Yield lines with their line ends; bytes that are not UTF-8 become lone surrogates."""
    head = read_head(table)
    if what := not_text(head):
        raise ImageError(what)
    with open(table, encoding=encoding_of(head), errors=LONE, newline="", opener=no_stream) as text:
        for number in count():
            line = text.readline(MAX_LINE)
            if len(line) == MAX_LINE:
                raise ImageError(f"not a table: a line has more than {MAX_LINE:,} characters")
            if not line:
                return
            yield line if number else line.removeprefix("\ufeff")


def _delimited(table: Path, image_column: str | None) -> Iterator[Row]:
    lines = _lines(table)
    passed = 0
    while is_preamble(header := next(lines, "")) and header:
        passed += 1
    if image_column is None and (first := headless(header)) is not None:
        for number, cells in read_rows(chain([header], lines), first or ","):
            name = cells[0] if first != "\t" else unescape(re.sub(r"#\d+\Z", "", cells[0]))
            yield number + passed, name.strip(), None
        return
    delimiter = guess_delimiter(header)
    spaced = f"{delimiter} " in header
    first_row = next(read_rows([header], delimiter, spaced=spaced), (1, []))[1]
    names = [name.strip() for name in first_row]
    column = _column(names, image_column)
    index, id_column = names.index(column), _id_column(names, column)
    for place, cells in read_rows(chain([header], lines), delimiter, first=1, spaced=spaced):
        number = place + passed
        if len(cells) != len(names):
            yield number, ImageError(f"{len(cells)} cells, expected {len(names)}"), None
        else:
            own = own_cells(names, cells)
            row = dict(zip(names, own or cells, strict=True))
            value = own[index] if own else cells[index].strip()
            yield number, value, row[id_column] if id_column else None


def _json(table: Path, image_column: str | None) -> Iterator[Row]:
    try:
        document = read_json(table)
    except ValueError:  # perhaps JSON Lines; else their lines say what is wrong
        yield from _objects(_parsed(table), image_column)
        return
    match document:
        case {"images": [*rows]}:  # of COCO, nocaps or Karpathy
            pass
        case _:
            rows = [row for _, row in json_rows(document) or ()]
    if not rows:
        raise ImageError("not a table: expected a list of objects, or one in images, as in COCO")
    yield from _objects(enumerate(rows, 1), image_column)


def _json_lines(table: Path, image_column: str | None) -> Iterator[Row]:
    if is_list(text_head(table)):
        yield from _json(table, image_column)
    else:
        yield from _objects(_parsed(table), image_column)


def _parsed(table: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(_lines(table), start=1):
        if not (text := json_line(line)):
            continue
        try:
            yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            yield number, ImageError(f"not JSON: {plain(error)}")


def _objects(rows: Iterable[tuple[int, object]], image_column: str | None) -> Iterator[Row]:
    """Read the path and the image id of each object; the first one's keys are the columns."""
    column, id_column = None, None
    for number, row in rows:
        if isinstance(row, dict):
            if column is None:
                column = _column(row, image_column)
                id_column = _id_column(row, column)
            own = own_fields(row)
            value, folder = own.get(column), own.get("filepath")
            if column == "filename" and isinstance(value, str) and isinstance(folder, str):
                value = f"{folder}/{value}"  # as in Karpathy's files
            image_id = own.get(id_column) if id_column else None
            is_text = isinstance(image_id, str) and image_id.isdecimal() and not is_own(row)
            yield number, value, f'"{image_id}"' if is_text else image_id
        else:
            error = ImageError(f"not a JSON object: {excerpt(row)}")
            yield number, row if isinstance(row, ImageError) else error, None


def _parquet(file: Path, image_column: str | None) -> Iterator[Row]:
    """Read the images of a Parquet file, or their paths, and the image ids."""
    table = parquet.ParquetTable(file.absolute(), str(file))
    schema = table.schema()
    inside = image_columns(schema)
    if not inside or (image_column in schema.names and image_column not in inside):
        yield from _objects(enumerate(table.rows(schema.names, None), 1), image_column)
        return
    image = choose_image(schema, image_column, str(file), "--image-column")
    others = [name for name in schema.names if name not in inside]
    names, ids = find_column(others, FILE_COLUMNS), _id_column(others, image)
    wanted = [*filter(None, dict.fromkeys((names, ids)))]
    rows = [*table.rows(wanted, image)]
    found = name_cells(table, image, [base_of(row[names or image]) for row in rows])
    outside = {*table.without_bytes(image)}
    for number, (row, cell) in enumerate(zip(rows, found, strict=True)):
        value = row[image] if number in outside and row[image] else cell
        yield number + 1, value, row[ids] if ids else None


def _id_column(names: Collection[str], column: str) -> str | None:
    """Return the column of image ids; in a table of captions, `id` may number the captions."""
    usual = IMAGE_IDS if find_column(names, CAPTION_COLUMNS) else (*IMAGE_IDS, "id")
    return find_column((name for name in names if name != column), usual)


_READERS = {
    **dict.fromkeys(DELIMITED, _delimited),
    **dict.fromkeys(JSON_LINES, _json_lines),
    parquet.SUFFIX: _parquet,
}


def _column(names: Collection[str], given: str | None) -> str:
    """Choose the column of paths."""
    listed = ", ".join(map(excerpt, names)) or "none"
    column = find_column(names, (*IMAGE_COLUMNS, "imageid")) if given is None else given
    if column is None:
        raise ImageError(f"cannot guess the column of paths; set --image-column; columns: {listed}")
    if column not in names:
        raise ImageError(f"no column {excerpt(column)} (--image-column); columns: {listed}")
    if list(names).count(column) > 1:
        raise ImageError(f"two columns are named {excerpt(column)}; columns: {listed}")
    return column
