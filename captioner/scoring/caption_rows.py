"""Read caption files of any format: one `Row` for each line, table row or JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.data.formats.columns import CAPTION_COLUMNS, ID_COLUMNS, IMAGE_COLUMNS
from captioner.errors import DataError
from captioner.system.escapes import own_cells, own_fields, unescape
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import (
    guess_delimiter,
    is_utf8,
    read_json,
    read_lines,
    read_rows,
)

REFERENCES = "references"  # key of the references in a prediction
MAX_CAPTION = 10_000  # characters; ROUGE-L's time grows with the product of two captions' lengths


@dataclass(frozen=True, slots=True)
class Row:
    """One line, table row or JSON object of a caption file.

    Attributes:
        where: file and line, for messages.
        captions: its captions.
        image_id: image id, if given.
        file: file name of the image, if given.
        references: reference captions of the image, if given.
    """

    where: str
    captions: tuple[str, ...]
    image_id: str | None = None
    file: str | None = None
    references: tuple[str, ...] | None = None


def read_captions(path: Path) -> Iterator[Row]:
    """Read a caption file; the file extension gives the format.

    Args:
        path: `.jsonl`, `.ndjson`, `.json` (COCO results or captions), `.csv` or `.tsv`. Any other
            file, and a `.tsv` without column names, is text. The path may be a pipe.

    Raises:
        DataError: if the file cannot be read or a caption is invalid; the message names the line.
    """
    for row in _rows(path):
        longest = max(map(len, (*row.captions, *(row.references or ()))), default=0)
        if longest > MAX_CAPTION:
            raise DataError(
                f"{row.where}: a caption of {longest:,} characters, more than the "
                f"limit of {MAX_CAPTION:,}"
            )
        yield row


def _rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _json_rows(path, read_json(path, stream=True))
        return
    lines = read_lines(path, stream=True)
    for number, line in enumerate(lines, start=1):
        if not is_utf8(line):
            raise DataError(f"{path}:{number}: not UTF-8: {excerpt(line)}")
    if suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield _object_row(where, own_fields(_parse(where, line)))
    elif suffix == ".csv" or (suffix == ".tsv" and _has_header(lines)):
        yield from _table_rows(path, lines)
    else:
        yield from _text_rows(path, lines)


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {plain(error)}") from error


def _json_rows(path: Path, document: Any) -> Iterator[Row]:
    match document:
        case list(results):
            for index, result in enumerate(results):
                yield _object_row(f"{path}: [{index}]", result)
        case {"annotations": list(annotations), **rest}:
            images = rest.get("images")
            files = {
                str(image["id"]): image.get("file_name")
                for image in (images if isinstance(images, list) else [])
                if isinstance(image, dict) and "id" in image
            }
            for index, annotation in enumerate(annotations):
                where = f"{path}: annotations[{index}]"
                # The `id` of an annotation is not an image id.
                row = _object_row(where, annotation, id_columns=("image_id",))
                file = files.get(row.image_id or "")
                yield Row(where, row.captions, row.image_id, None if file is None else str(file))
        case _:
            raise DataError(
                f"{path}: neither COCO results ([{{image_id, caption}}, ...]) nor COCO captions "
                f"({{images, annotations}})"
            )


def _table_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    header: list[str] = []
    delimiter = guess_delimiter(lines[0]) if lines else ","
    for number, cells in read_rows(lines, delimiter):
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        own = own_cells(header, cells)
        yield _object_row(where, dict(zip(header, own or map(_cell, cells), strict=True)))


def _has_header(lines: list[str]) -> bool:
    """Return whether a TSV starts with column names; captioner's own TSV does not."""
    names = {name.strip().lower() for name in lines[0].split("\t")} if lines else set()
    return not names.isdisjoint((*CAPTION_COLUMNS, *ID_COLUMNS, *IMAGE_COLUMNS, REFERENCES))


def _cell(text: str) -> object:
    """Parse a cell that holds a JSON list of captions; return any other cell unchanged."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _text_rows(path: Path, lines: Sequence[str]) -> Iterator[Row]:
    """Read one caption a line, or image, tab, caption, as `captioner caption` writes."""
    texts = [line.rstrip("\r\n") for line in lines]
    with_images = bool(texts) and all("\t" in text for text in texts)
    for number, text in enumerate(texts, start=1):
        image, _, caption = text.partition("\t") if with_images else ("", "", text)
        # Flickr's token files number the captions of an image: name.jpg#0
        name, _, count = image.rpartition("#")
        file = name if name and count.isdecimal() else image
        if with_images:
            file, caption = unescape(file), unescape(caption)
        yield Row(f"{path}:{number}", (caption,), file=file or None)


def _object_row(where: str, values: object, *, id_columns: tuple[str, ...] = ID_COLUMNS) -> Row:
    """Read one JSON object or table row by the known field names."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: not an object with a caption: {excerpt(values)}")
    fields = {str(name).lower(): value for name, value in values.items()}
    image_id = _first(fields, id_columns)
    file = _first(fields, IMAGE_COLUMNS)
    references = fields.get(REFERENCES)
    references = None if references is None else _captions(where, references)
    caption = _first(fields, CAPTION_COLUMNS)
    if caption is None and not references:
        raise DataError(f"{where}: no caption; fields: {plain(', '.join(fields)) or 'none'}")
    return Row(
        where,
        () if caption is None else _captions(where, caption),
        None if image_id in (None, "") else str(image_id),
        None if file in (None, "") else str(file),
        references,
    )


def _first(fields: Mapping[str, object], names: Sequence[str]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _captions(where: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: a caption must be text, was {excerpt(text)}")
        if not is_utf8(text):
            raise DataError(f"{where}: not UTF-8: {excerpt(text)}")
    return tuple(texts)
