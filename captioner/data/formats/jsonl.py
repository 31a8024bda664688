"""JSON Lines, such as Hugging Face's `metadata.jsonl`; JSON with a list of objects, or a map."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector
from captioner.data.formats.columns import Row, is_table, load_tables
from captioner.data.formats.image_tables import label_names, with_labels
from captioner.errors import DataError
from captioner.system.escapes import own_fields
from captioner.system.foreign import excerpt, plain
from captioner.system.text_files import is_list, json_line, load_json, read_lines

LOOKS_FOR = (
    "a .jsonl file, a list of objects in JSON, Parquet, or a folder with metadata.jsonl, "
    "captions.jsonl, train.jsonl or one such file"
)

_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
_JSON, _OTHERS = (".json",), (".csv", ".tsv")


def recognise(root: Path) -> bool:
    """Return whether this is a JSON Lines file, such JSON, or a folder with some."""
    return is_table(root, _SUFFIXES) or (is_table(root, _JSON) and not is_table(root, _OTHERS))


def load(root: Path, options: Options) -> Dataset:
    """Read JSON Lines files; the keys of the first object are the columns."""
    suffixes = _SUFFIXES if is_table(root, _SUFFIXES) else _JSON
    return load_tables(root, options, "jsonl", suffixes, _read)


def parquet_rows(path: Path) -> list[Any]:
    """Return the rows of a Parquet file.

    Raises:
        DataError: if the file cannot be read, or pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow: pip install 'captioner[data]'") from error
    try:
        table = parquet.read_table(path)
        labels = label_names(table.schema)
        return [own_fields(with_labels(row, labels)) for row in table.to_pylist()]
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {plain(error)}") from error


def json_rows(document: Any) -> list[tuple[str, Any]] | None:
    """Return (place, object) of JSON that holds a table; None for other JSON.

    It is a list of objects, such a list in `data` (TextCaps), or maps images to captions.
    """
    match document:
        case [*rows]:
            return [(f"[{index}]", row) for index, row in enumerate(rows)]
        case {"data": [{}, *_] as rows}:
            return [(f"data[{index}]", row) for index, row in enumerate(rows)]
        case dict(by_image) if by_image and all(map(_is_captions, by_image.values())):
            return [
                (image, {"image": image, "caption": _texts(v)}) for image, v in by_image.items()
            ]
    return None


def _texts(value: Any) -> list[object]:
    many = value if isinstance(value, list) else [value]
    return [one["caption"] if isinstance(one, dict) else one for one in many]


def _is_captions(value: object) -> bool:
    """Return whether this is a caption, an object with one, or a list of these."""
    many = value if isinstance(value, list) else [value]
    return bool(many) and all(
        isinstance(one, str) or (isinstance(one, dict) and "caption" in one) for one in many
    )


def _read(collector: Collector, file: Path) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    rows = _rows(collector, file)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file}: no JSON object; expected one per line{collector.first_problem()}")
    return list(first[1]), chain([first], rows)


def _rows(collector: Collector, file: Path) -> Iterator[tuple[str, Row]]:
    for where, row in _objects(collector, file):
        if isinstance(row, dict):
            yield where, own_fields(row)
        else:
            detail = f"not a JSON object: {excerpt(row)}"
            collector.problem("malformed line", where, detail)


def _objects(collector: Collector, file: Path) -> Iterator[tuple[str, Any]]:
    place, suffix = collector.place(file), file.suffix.lower()
    if suffix == ".parquet":
        yield from ((f"{place}: row {n}", row) for n, row in enumerate(parquet_rows(file), start=1))
        return
    lines = [] if suffix == ".json" else read_lines(file)
    if suffix == ".json" or is_list("".join(lines[:1])):
        rows = json_rows(collector.read_json(file))
        if rows is None:
            raise DataError(
                f"{file}: neither COCO captions (images, annotations), Karpathy's splits "
                f"(sentences), a list of objects nor {{image: captions}}"
            )
        yield from ((f"{place}: {plain(name)}", row) for name, row in rows)
    else:
        for where, line in collector.lines(file, lines):
            repeated: list[str] = []
            try:
                row = load_json(json_line(line), repeated)
            except (ValueError, RecursionError) as error:
                collector.problem("malformed line", where, f"not JSON: {plain(error)}")
                continue
            collector.repeated(where, repeated)
            yield where, row
