"""Read caption files of any format: one `Row` for each line, table row or JSON object."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from captioner.data.formats.coco import is_refused
from captioner.data.formats.collect import texts_of_images
from captioner.data.formats.columns import (
    ID_COLUMNS,
    IMAGE_COLUMNS,
    column_key,
    find_captions,
    find_column,
    headless,
)
from captioner.data.formats.delimited import headless_rows
from captioner.data.formats.jsonl import json_rows, parquet_rows
from captioner.data.load import FORMATS, load_dataset, recognised
from captioner.errors import DataError
from captioner.images.tars import TARS
from captioner.system.escapes import own_cells, own_fields
from captioner.system.foreign import excerpt, plain
from captioner.system.text_encodings import readings_of
from captioner.system.text_files import (
    is_list,
    is_missing,
    is_utf8,
    json_line,
    parse_json,
    read_json,
    read_lines,
    read_named,
    split_table,
    unpack_list,
)

REFERENCES = "references"  # key of the references in a prediction
N_BEST = "n_best"  # key of the captions of an n-best list
MAX_CAPTION = 10_000  # characters; ROUGE-L's time grows with the product of two captions' lengths


@dataclass(frozen=True, slots=True)
class Row:
    """One line, table row or JSON object of a caption file, or all of them for one image."""

    where: str  # file and line, for messages
    captions: tuple[str, ...]
    image_id: str = ""
    file: str = ""  # name of the image file, without its folder unless such names repeat
    references: tuple[str, ...] = ()
    path: str = ""  # of the image file, as the captions name it
    split: str = ""  # of a data set
    n_best: tuple[str, ...] = ()  # all captions of a system, as captioner lists them; else empty

    @property
    def key(self) -> str:
        """The image id, or else the file name; "" if only the order identifies the image."""
        return self.image_id or self.file


def read_captions(path: Path, notes: list[str]) -> Iterator[Row]:
    """Read a caption file; captions such as pandas' `nan` count as empty, with a note; see `_rows`.

    Raises:
        DataError: if the file cannot be read or a caption is invalid; the message names the line.
    """
    missing = Counter[str]()
    for row in _rows(path, notes):
        texts = (row.captions, row.references, row.n_best)
        bad = [t for each in texts for t in each if t.strip() and is_missing(t)]
        missing.update(bad)
        captions, truth, n_best = (tuple("" if t in bad else t for t in each) for each in texts)
        yield replace(row, captions=captions, references=truth, n_best=n_best) if bad else row
    if missing:
        words = ", ".join(map(excerpt, sorted(missing)))
        notes.append(f"{path}: {missing.total():,} captions count as empty: {words}")


def _rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """Read a caption file: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet` or text.

    A text file with column names is a table. The path may be a pipe. A folder holds a data set, or
    a text for each image; a tar file holds a data set. JSON of another shape than captioner writes
    is read like a data set.

    Args:
        path: file or folder.
        notes: receives a sentence for each kind of thing that is left out.

    Raises:
        DataError: if the file cannot be read or a caption is invalid; the message names the line.
    """
    suffix, repeated = path.suffix.lower(), list[str]()
    is_table = path.is_dir() and recognised(path) not in (None, FORMATS["sidecars"])
    if path.is_dir() and not is_table and (texts := texts_of_images(path)[0]):
        yield from _text_file_rows(path, texts, notes)
    elif path.is_dir() or path.name.lower().endswith(TARS):
        yield from _dataset_rows(path, notes)
    elif suffix == ".json":
        document = read_json(path, repeated, stream=True)
        _note_repeated(str(path), repeated, notes)
        yield from _json_rows(path, document, notes)
    elif suffix == ".parquet":
        for number, fields in enumerate(parquet_rows(path), start=1):
            yield _object_row(f"{path}: row {number}", fields)
    elif suffix in (".jsonl", ".ndjson"):
        lines = read_lines(path, stream=True)
        if is_list("".join(lines[:1])):
            document = parse_json(str(path), "".join(lines), repeated)
            _note_repeated(str(path), repeated, notes)
            yield from _json_rows(path, document, notes)
            return
        for number, line in enumerate(map(json_line, lines), start=1):
            if line:
                where = f"{path}:{number}"
                yield _object_row(where, own_fields(parse_json(where, line, repeated)))
        _note_repeated(str(path), repeated, notes)
    else:
        yield from _line_rows(path, read_lines(path, stream=True), suffix, notes)


def _note_repeated(place: str, keys: Sequence[str], notes: list[str]) -> None:
    """Note the keys that an object of JSON holds again."""
    if keys:
        notes.append(
            f"{place}: {len(keys):,} repeated keys in JSON objects, such as "
            f"{excerpt(keys[0], 60)}; the first value of each is read"
        )


def _line_rows(path: Path, lines: list[str], suffix: str, notes: list[str]) -> Iterator[Row]:
    if (delimiter := _headless(lines, suffix)) and delimiter != "\t":
        for number, (image, *texts) in headless_rows(str(path), lines, delimiter, notes):
            where = f"{path}:{number}"
            yield Row(where, _captions(where, texts), file=base_name(image), path=image)
    elif suffix == ".csv" or _has_header(lines):
        yield from _table_rows(path, lines, strict=suffix in (".csv", ".tsv"))
    else:
        yield from _text_rows(path, lines, notes)


def base_name(path: str) -> str:
    """Return the name without its folder, for paths of any system, with composed accents."""
    return PurePosixPath(any_path(path)).name


def any_path(path: str) -> str:
    r"""Return a path of any system with `/` for `\`, without `./`, and with composed accents."""
    return str(PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")))


def _json_rows(path: Path, document: Any, notes: list[str]) -> Iterator[Row]:
    match document:
        case {"annotations": [{"caption": _}, *_] as annotations, **rest}:
            images = rest.get("images")
            files = {
                str(image["id"]): str(image.get("file_name", ""))
                for image in (images if isinstance(images, list) else [])
                if isinstance(image, dict) and "id" in image
            }
            kept = [each for each in enumerate(annotations) if not is_refused(each[1])]
            if refused := len(annotations) - len(kept):
                notes.append(f"{path}: {refused:,} rejected or precanned captions are left out")
            for index, annotation in kept:
                where = f"{path}: annotations[{index}]"
                # The `id` of an annotation is not an image id.
                row = _object_row(where, annotation, id_columns=ID_COLUMNS[:1])
                file = files.get(row.image_id, "")
                yield replace(row, file=base_name(file) if file else "", path=file)
        case _ if (rows := json_rows(document)) is not None:
            for place, row in rows:
                yield _object_row(f"{path}: {plain(place)}", own_fields(row))
        case {"images": _} | {"annotations": _} | {"data": _} if path.is_file():
            yield from _dataset_rows(path, notes)
        case _:
            raise DataError(
                f"{path}: neither COCO results ([{{image_id, caption}}, ...]), COCO captions "
                f"({{images, annotations}}), {{image: caption or captions}} nor Karpathy's splits"
            )


def _dataset_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """Read a data set of any format as training does, without its images."""
    dataset = load_dataset(path, images=False, holdout=0)
    notes.extend(f"{path}: {note}" for note in dataset.notes)
    if dataset.problems:
        first = dataset.problems[0]
        notes.append(
            f"{path}: {len(dataset.problems):,} unusable items are left out "
            f"(first at {first.where}: {first.kind}: {first.detail})"
        )
    for example in dataset.examples:
        file = str(example.image)
        row = Row(str(path), example.captions, example.image_id, base_name(file), path=file)
        yield replace(row, split=example.split)


def _text_file_rows(folder: Path, texts: dict[Path, str], notes: list[str]) -> Iterator[Row]:
    """Read a text file for each image, with one caption a line; an empty file is one."""
    for text, image in texts.items():
        said = [line.strip() for line in read_lines(text) if line.strip()] or [""]
        yield Row(str(text), _captions(str(text), said), file=base_name(image), path=image)
    notes.append(f"{folder}: {len(texts):,} text files, each with the captions of one image")


def _table_rows(path: Path, lines: list[str], *, strict: bool) -> Iterator[Row]:
    """Read a table; unless `strict`, a caption in the last column may contain delimiters."""
    header, delimiter, rows = split_table(lines)
    loose = not strict and bool(find_captions(header[-1:]))
    width = len(header)
    for number, row in rows:
        where = f"{path}:{number}"
        cells = [*row[: width - 1], delimiter.join(row[width - 1 :])] if loose else row
        if len(cells) != width:
            raise DataError(f"{where}: {len(cells)} cells, but the header has {width}")
        values = own_cells(header, cells) or map(unpack_list, cells)
        yield _object_row(where, dict(zip(header, values, strict=True)))


def _has_header(lines: list[str]) -> bool:
    """Return whether a text starts with column names; captioner's own text does not."""
    names = split_table(lines)[0]
    images, references = (*ID_COLUMNS, *IMAGE_COLUMNS), find_column(names, [REFERENCES])
    return bool(find_column(names, images) and (find_captions(names) or references))


def _headless(lines: list[str], suffix: str) -> str | None:
    """Return the delimiter of a table without column names; a text is one if most lines fit."""
    delimiter = headless("".join(lines[:1]))
    fitting = sum(bool(headless(line)) for line in lines) if delimiter else 0
    return delimiter if suffix == ".csv" or 2 * fitting > len(lines) else None


def _text_rows(path: Path, lines: Sequence[str], notes: list[str]) -> Iterator[Row]:
    """Read one caption a line, or image, tab, caption, as `captioner caption` writes.

    With images, blank lines do not count.
    """
    texts = {number: line.rstrip("\r\n") for number, line in enumerate(lines, start=1)}
    tabbed = {number: text for number, text in texts.items() if "\t" in text and text.strip("\t")}
    filled = {number: text for number, text in texts.items() if text.strip() or number in tabbed}
    if not tabbed:
        for number, text in texts.items():
            yield Row(f"{path}:{number}", _captions(f"{path}:{number}", text))
        return
    if bare := [number for number in filled if number not in tabbed]:
        many = len(tabbed) >= len(bare)
        odd, other = (bare[0], next(iter(tabbed)))[:: 1 if many else -1]
        raise DataError(
            f"{path}:{odd}: {'no' if many else 'a'} tab, but line {other} has "
            f"{'one' if many else 'none'}; write image, tab, caption in every line, or only a "
            f"caption in every line"
        )
    for number, (image, caption) in read_named(str(path), lines, notes):
        where = f"{path}:{number}"
        yield Row(where, _captions(where, caption), file=base_name(image), path=image)


def _object_row(where: str, values: object, *, id_columns: tuple[str, ...] = ID_COLUMNS) -> Row:
    """Read one JSON object or table row by the known field names."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: not an object with a caption: {excerpt(values)}")
    fields = {str(name): value for name, value in values.items() if value is not None}

    def first(names: Sequence[str], default: object) -> object:
        column = find_column(fields, names)
        return default if column is None else fields[column]

    many = [fields[name] for name in find_captions(fields)]
    many = [value for value in many if value not in ("", [])] or many[:1]
    captions = tuple(text for value in many for text in _captions(where, value))
    references = _captions(where, first([REFERENCES], []))
    listed = first([column_key(N_BEST)], [])
    n_best = _captions(where, [each["caption"] for each in listed]) if _is_n_best(listed) else ()
    if not captions and not references:
        raise DataError(f"{where}: no caption; fields: {plain(', '.join(fields)) or 'none'}")
    path = str(first(IMAGE_COLUMNS, ""))
    image_id = str(first(id_columns, ""))
    file = base_name(path) if path else ""
    return Row(where, captions, image_id, file, references, path, n_best=n_best)


def _is_n_best(listed: object) -> TypeGuard[list[dict[str, object]]]:
    """Return whether this is a list of objects with a caption, as captioner writes."""
    return isinstance(listed, list) and all(
        isinstance(each, dict) and "caption" in each for each in listed
    )


def _captions(where: str, value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: a caption must be text, was {excerpt(text)}")
        if not is_utf8(text):
            hint = f" ({found})" if (found := readings_of(text)) else ""
            raise DataError(f"{where}: not UTF-8: {excerpt(text)}; save the file as UTF-8{hint}")
        if len(text) > MAX_CAPTION:
            raise DataError(
                f"{where}: a caption of {len(text):,} characters, more than {MAX_CAPTION:,}"
            )
    return tuple(texts)
