"""Read caption files of any format: one `Row` for each line, table row or JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from captioner.data.formats.columns import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS
from captioner.errors import DataError
from captioner.system.escapes import own_cells, own_fields, unescape
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import (
    guess_delimiter,
    is_utf8,
    parse_json,
    read_json,
    read_lines,
    read_rows,
    unpack_list,
)

REFERENCES = "references"  # key of the references in a prediction
MAX_CAPTION = 10_000  # characters; ROUGE-L's time grows with the product of two captions' lengths


@dataclass(frozen=True, slots=True)
class Row:
    """One line, table row or JSON object of a caption file, or all of them for one image."""

    where: str  # file and line, for messages
    captions: tuple[str, ...]
    image_id: str = ""
    file: str = ""  # name of the image file, without its folder
    references: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The image id, or else the file name; "" if only the order identifies the image."""
        return self.image_id or self.file


def read_captions(path: Path) -> Iterator[Row]:
    """Read a caption file: `.jsonl`, `.ndjson`, `.json` (COCO results or captions), `.csv`, `.tsv`.

    Any other file, and a `.tsv` without column names, is text. The path may be a pipe.

    Raises:
        DataError: if the file cannot be read or a caption is invalid; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _json_rows(path, read_json(path, stream=True))
        return
    lines = read_lines(path, stream=True)
    if suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield _object_row(where, own_fields(parse_json(where, line)))
    elif suffix == ".csv" or (suffix == ".tsv" and _has_header(lines)):
        yield from _table_rows(path, lines)
    else:
        yield from _text_rows(path, lines)


def _json_rows(path: Path, document: Any) -> Iterator[Row]:
    match document:
        case list(results):
            for index, result in enumerate(results):
                yield _object_row(f"{path}: [{index}]", result)
        case {"annotations": list(annotations), **rest}:
            images = rest.get("images")
            files = {
                str(image["id"]): PurePath(str(image.get("file_name", ""))).name
                for image in (images if isinstance(images, list) else [])
                if isinstance(image, dict) and "id" in image
            }
            for index, annotation in enumerate(annotations):
                where = f"{path}: annotations[{index}]"
                # The `id` of an annotation is not an image id.
                row = _object_row(where, annotation, id_columns=("image_id",))
                yield replace(row, file=files.get(row.image_id, ""))
        case _:
            raise DataError(
                f"{path}: neither COCO results ([{{image_id, caption}}, ...]) nor COCO captions "
                f"({{images, annotations}})"
            )


def _table_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    rows = read_rows(lines, guess_delimiter(lines[0] if lines else ""))
    header = [cell.strip() for cell in next(rows, (0, []))[1]]
    for number, cells in rows:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        values = own_cells(header, cells) or map(unpack_list, cells)
        yield _object_row(where, dict(zip(header, values, strict=True)))


def _has_header(lines: list[str]) -> bool:
    """Return whether a TSV starts with column names; captioner's own TSV does not."""
    names = {name.strip().lower() for name in lines[0].split("\t")} if lines else set()
    return not names.isdisjoint((*CAPTION_COLUMNS, *ID_COLUMNS, *IMAGE_COLUMNS, REFERENCES))


def _text_rows(path: Path, lines: Sequence[str]) -> Iterator[Row]:
    """Read one caption a line, or image, tab, caption, as `captioner caption` writes."""
    texts = [line.rstrip("\r\n") for line in lines]
    with_images = all("\t" in text for text in texts)
    for number, text in enumerate(texts, start=1):
        where = f"{path}:{number}"
        if with_images:
            image, caption = text.split("\t", 1)
            # Flickr's token files number the captions of an image: name.jpg#0
            file = unescape(re.sub(r"(?<=.)#\d+\Z", "", image))
            yield Row(where, _captions(where, unescape(caption)), file=PurePath(file).name)
        else:
            yield Row(where, _captions(where, text))


def _object_row(where: str, values: object, *, id_columns: tuple[str, ...] = ID_COLUMNS) -> Row:
    """Read one JSON object or table row by the known field names."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: not an object with a caption: {excerpt(values)}")
    fields = {str(name).lower(): value for name, value in values.items() if value is not None}

    def first(names: Sequence[str], default: object) -> object:
        return next((fields[name] for name in names if name in fields), default)

    captions = _captions(where, first(CAPTION_COLUMNS, []))
    references = _captions(where, fields.get(REFERENCES, []))
    if not captions and not references:
        raise DataError(f"{where}: no caption; fields: {plain(', '.join(fields)) or 'none'}")
    file = PurePath(str(first(IMAGE_COLUMNS, ""))).name
    return Row(where, captions, str(first(id_columns, "")), file, references)


def _captions(where: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: a caption must be text, was {excerpt(text)}")
        if not is_utf8(text):
            raise DataError(f"{where}: not UTF-8: {excerpt(text)}")
        if len(text) > MAX_CAPTION:
            raise DataError(
                f"{where}: a caption of {len(text):,} characters, more than {MAX_CAPTION:,}"
            )
    return tuple(texts)
