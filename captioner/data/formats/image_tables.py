"""Data sets that hold their images in tables: finds the columns, and joins rows of one image.

`parquet` and `huggingface` open the tables. An image is a cell of bytes, or of `{bytes, path}`, as
in Hugging Face's Image feature. It stays in its table and is read when it is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from captioner.data.dataset import Dataset, Options, split_name
from captioner.data.formats.collect import Collector, Entry
from captioner.data.formats.columns import (
    FILE_COLUMNS,
    IMAGE_COLUMNS,
    Columns,
    Row,
    captions_of,
    choose_columns,
    find_column,
    with_split_column,
)
from captioner.errors import DataError, ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import check_bytes
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import is_missing

NEEDED = "pip install 'captioner[data]'"
BATCH = 1024  # rows whose cells are read together
# What pyarrow raises for damaged files.
ERRORS = (OSError, ValueError, TypeError, LookupError, NotImplementedError, MemoryError)
# Other names of columns that hold images, as `column_key` spells them.
_BYTES_COLUMNS = ("imagebytes", "imgbytes", "bytes", "content", "jpg", "jpeg", "png", "webp")
_OTHER_THAN_IMAGES = ("Audio", "Video", "Pdf", "Nifti")  # features of Hugging Face with bytes
_NO_BYTES = "no image in this row"


class ImageTable(Protocol):
    """A table whose images are read one by one; hashable."""

    @property
    def place(self) -> str:
        """Its name in messages, such as `data/train-00000-of-00002.parquet`."""

    @property
    def split(self) -> str | None:
        """The split that its name tells, if any."""

    def schema(self) -> Any:
        """Return its columns, a `pyarrow.Schema`; a `DataError` if it cannot be read."""

    def rows(self, columns: Sequence[str], image: str) -> Iterator[dict[str, Any]]:
        """Yield the cells of some columns, row by row; of the image only its path.

        Raises:
            DataError: if the rest of the table cannot be read.
        """

    def without_bytes(self, image: str) -> Collection[int]:
        """Return the rows, from 0, whose image has no bytes."""

    def size(self, image: str, row: int) -> int:
        """Return the bytes of an image; an estimate."""

    def read(self, image: str, row: int) -> bytes | None:
        """Return the bytes of an image; None without bytes; an `ImageError` if it is damaged."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An image in a table, read when it is needed."""

    table: ImageTable
    column: str
    row: int  # from 0
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.table.place}/{self.name or f'row {self.row + 1}'}"

    @property
    def size(self) -> int:
        """Bytes of the image; an estimate."""
        return self.table.size(self.column, self.row)

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        content = self.table.read(self.column, self.row)
        if content is None:
            raise ImageError(_NO_BYTES, kind="missing")
        check_bytes(len(content))
        return content


@dataclass(slots=True)
class _Picture:
    """One row of a table."""

    image: ImageFile
    name: str  # of the file that the image was; "" if unknown
    image_id: str  # of its column; "" without one
    split: str
    captions: list[object]
    where: str


def image_columns(schema: Any) -> list[str]:
    """Return the columns of a `pyarrow.Schema` that hold images: bytes, or structs with bytes."""
    from pyarrow import types

    def is_bytes(type: Any) -> bool:
        return bool(types.is_binary(type) or types.is_large_binary(type))

    features = _features(schema)
    others = [name for name in features if features[name].get("_type") in _OTHER_THAN_IMAGES]
    return [
        column.name
        for column in schema
        if column.name not in others
        and (
            is_bytes(column.type)
            or (
                types.is_struct(column.type)
                and column.type.get_field_index("bytes") >= 0
                and is_bytes(column.type.field("bytes").type)
            )
        )
    ]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's library says of the columns of a `pyarrow.Schema`, if anything."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def label_names(schema: Any) -> dict[str, list[str]]:
    """Return the columns that number their values, such as 0 for "train", each with the names."""
    labels = {
        name: feature.get("names")
        for name, feature in _features(schema).items()
        if feature.get("_type") == "ClassLabel"
    }
    return {name: names for name, names in labels.items() if isinstance(names, list)}


def with_labels(row: dict[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a row with names for numbers; -1 is no value, an unknown number stays."""
    known = {
        name: None if row[name] == -1 else names[row[name]]
        for name, names in labels.items()
        if isinstance(row.get(name), int) and -1 <= row[name] < len(names)
    }
    return {**row, **known}


def leaf(schema: Any, image: str, part: str) -> str | None:
    """Return the name of a part of an image column: `bytes`, or `path` if there is one."""
    from pyarrow import types

    column = schema.field(image)
    if not types.is_struct(column.type):
        return image if part == "bytes" else None
    return f"{image}.{part}" if column.type.get_field_index(part) >= 0 else None


def choose_image(schema: Any, given: str | None, where: str, option: str) -> str:
    """Return the column of images: the given one, or else the one that looks like it.

    Raises:
        DataError: if there is none, or none of several is named as usual.
    """
    found = image_columns(schema)
    columns = f"columns: {', '.join(map(excerpt, schema.names)) or 'none'}"
    if given is not None:
        if given in found:
            return given
        what = "holds no images, as bytes" if given in schema.names else "does not exist"
        raise DataError(f"{where}: column {excerpt(given)} ({option}) {what}; {columns}")
    usual = (*IMAGE_COLUMNS, *_BYTES_COLUMNS)
    column = find_column(found, usual) or (found[0] if len(found) == 1 else None)
    if column is None:
        what = "several columns of bytes" if found else "no column of images, as bytes"
        hint = f"; set {option}" if found else ""
        urls = [name for name in schema.names if find_column([name], ("url", "imageurl"))]
        if urls and not found:
            hint = f"; {excerpt(urls[0])} holds addresses, which img2dataset downloads"
        raise DataError(f"{where}: {what}{hint}; {columns}")
    return column


def cells(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `RecordBatch`; text that is not UTF-8 holds lone surrogates."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            yield {name: _cell(batch.column(name)[row]) for name in batch.schema.names}


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")


def base_of(path: object) -> str:
    """Return the file name at the end of a path of any system; "" if it is none."""
    return PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else ""


def name_cells(table: ImageTable, image: str, names: Sequence[str]) -> list[Cell]:
    """Return the images of a table, each with its file's name, unless another has it too."""
    counts = Counter(names)
    return [
        Cell(table, image, row, name if counts[name] == 1 else "") for row, name in enumerate(names)
    ]


def load_image_tables(
    collector: Collector, tables: Sequence[ImageTable], options: Options
) -> Dataset:
    """Read tables with images into a data set.

    Rows of one split are joined if they have the same id, or the same file name without ids, and
    the same image. An unusable table is a problem if others are usable.

    Raises:
        DataError: if there is no usable image.
    """
    pictures: list[_Picture] = []
    errors: list[DataError] = []
    for table in tables:
        try:
            pictures += _pictures(collector, table, options)
        except DataError as error:
            errors.append(error)
            place, message = table.place, str(error)
            detail = message.partition(f"{place}: ")[2] or message
            collector.problem("unreadable file", place, detail)
    if errors and not pictures:
        raise errors[0]
    _add(collector, pictures)
    return collector.dataset()


def _pictures(collector: Collector, table: ImageTable, options: Options) -> list[_Picture]:
    """Return the rows of a table."""
    schema = table.schema()
    place = table.place
    image = choose_image(schema, options.image_column, place, "data.image_column")
    others = [name for name in schema.names if name not in image_columns(schema)]
    columns = choose_columns([image, *others], replace(options, image_column=image), place)
    wanted = {*columns.captions, *filter(None, (columns.split, columns.image_id))}
    file = find_column([name for name in others if name not in wanted], FILE_COLUMNS)
    labels = label_names(schema)
    wanted |= {name for name in others if name == file or _is_text(schema.field(name).type)}
    wanted |= labels.keys() & others
    found = _rows(collector, table, [name for name in others if name in wanted], image)
    rows = [with_labels(row, labels) for row in found]
    where = [f"{place}: row {number}" for number in range(1, len(rows) + 1)]
    columns = with_split_column(collector, place, columns, others, rows)
    split = table.split or "train"
    if columns.split is None:
        collector.expect(split, place)
        if table.split is None:
            collector.notes.append(f"{place}: its name holds no split, so its images are train")
    names = [base_of(row[file or image]) for row in rows]
    empty = {*table.without_bytes(image)}
    pictures = []
    for number, (row, cell) in enumerate(zip(rows, name_cells(table, image, names), strict=True)):
        content: ImageFile | None = cell
        if number in empty:
            content = _beside(collector, row[image], where[number])
        given = row.get(columns.split) if columns.split else split
        if not isinstance(given, str) or is_missing(given):
            detail = "no split" if is_missing(given) else f"split {excerpt(given)} is not text"
            collector.problem("malformed line", where[number], detail)
        elif content is not None:
            pictures.append(
                _Picture(
                    content,
                    names[number],
                    _id(row, columns),
                    split_name(given),
                    captions_of(row, columns),
                    where[number],
                )
            )
    return pictures


def _is_text(type: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(type) or types.is_large_string(type))


def _rows(
    collector: Collector, table: ImageTable, columns: list[str], image: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table up to a damaged one; that is a problem."""
    number = 0
    try:
        for row in table.rows(columns, image):
            yield row
            number += 1
    except DataError as error:
        if not number:
            raise
        where = f"{table.place}: row {number + 1}"
        collector.problem("unreadable file", where, f"the table ends here: {error}")


def _beside(collector: Collector, path: object, where: str) -> Path | None:
    """Return the file of an image that is not in its table, or None, with a problem."""
    if not path or not isinstance(path, str):
        collector.problem("missing image", where, _NO_BYTES)
        return None
    found = collector.pictures.find(path)
    if found is None:
        detail = f"{_NO_BYTES}, and there is no file {plain(path)}"
        collector.problem("missing image", where, detail)
    return found


def _id(row: Row, columns: Columns) -> str:
    given = row.get(columns.image_id) if columns.image_id else None
    return str(given) if isinstance(given, int | str) and not is_missing(given) else ""


def _add(collector: Collector, pictures: list[_Picture]) -> None:
    """Join the rows of one image, and give each image an id of its own."""
    same = _Comparison()
    firsts: dict[tuple[str, str], _Picture] = {}
    with_id = [picture for picture in pictures if picture.image_id]
    wrong = sum(
        not same(firsts.setdefault((each.split, each.image_id), each), each, named=True)
        for each in with_id
    )
    if wrong > max(1, len(with_id) // 10):
        collector.notes.append(
            f"the column of ids gives {wrong:,} rows the id of another image, so it is not used"
        )
        pictures = [replace(picture, image_id="") for picture in pictures]
    entries: dict[tuple[str, str], tuple[_Picture, Entry]] = {}
    renamed = 0
    for picture in pictures:
        named = bool(picture.image_id)
        key = (picture.split, picture.image_id or picture.name)
        known = entries.get(key) if key[1] else None
        if known and same(known[0], picture, named=named):
            entry: Entry | None = known[1]
        elif known and named:
            detail = f"{picture.image_id} ({picture.split}) is another image at {known[0].where}"
            collector.problem("duplicate id", picture.where, detail)
            continue
        else:
            image_id = "" if known else key[1]
            if image_id in collector.entries:  # in another split
                image_id = f"{picture.split}/{image_id}"
                renamed += 1
            if not image_id or image_id in collector.entries:
                image_id = f"{picture.where.replace(': row ', '/row ')}"
            file = str(picture.image)
            entry = collector.add(image_id, file, picture.split, picture.where, picture.image)
            if entry and key[1]:
                entries.setdefault(key, (picture, entry))
        if entry:
            for caption in picture.captions:
                collector.caption(entry, caption, picture.where)
    if renamed:
        collector.notes.append(
            f"{renamed:,} images have the id of an image in another split; their ids begin with "
            f"the split"
        )


class _Comparison:
    """Tells whether rows hold the same image; reads only images that are compared."""

    def __init__(self) -> None:
        self._digests: dict[ImageFile, bytes] = {}

    def __call__(self, first: _Picture, second: _Picture, *, named: bool) -> bool:
        """Compare two rows of one id, by file names if they have some, or else of one name."""
        if first is second:
            return True
        if named and first.name and second.name:
            return first.name == second.name
        return self._digest(first.image) == self._digest(second.image)

    def _digest(self, image: ImageFile) -> bytes:
        if image not in self._digests:
            try:
                content = image.read_bytes()
            except (ImageError, OSError):
                content = str(image).encode()  # broken: like no other
            self._digests[image] = hashlib.blake2b(content, digest_size=16).digest()
        return self._digests[image]
