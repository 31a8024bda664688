"""Caption records -> text, JSONL, CSV, COCO results JSON, or a .txt file beside each image."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from captioner.errors import DataError, ImageError
from captioner.escapes import COLUMNS, LINE_NAME, escape, to_json, utf8_name
from captioner.files import write_text
from captioner.inference.local import Record
from captioner.inference.sources import Item
from captioner.ownership import owns

FORMATS = ("text", "jsonl", "csv", "coco", "txt")
COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d+)", re.ASCII)


def as_dict(record: Record, n_best: int = 1) -> dict[str, Any]:
    """Return a record as it stands in JSONL.

    Args:
        record: one image's.
        n_best: above 1, so many captions are listed with their log-probabilities.
    """
    best = record.captions[0] if record.captions else None
    row: dict[str, Any] = {
        "file_name": utf8_name(record.file_name),
        "image_id": utf8_name(record.image_id),
        "caption": record.caption,
        "score": round(best.score, 6) if best else None,
        "status": record.status,
    }
    if record.error:
        row["error"] = record.error
    if n_best > 1:
        row["n_best"] = [
            {"caption": c.text, "log_prob": round(c.log_prob, 6), "score": round(c.score, 6)}
            for c in record.captions[:n_best]
        ]
    return row


def write_records(
    records: Iterable[Record],
    file: TextIO,
    *,
    format: str = "text",
    n_best: int = 1,
    overwrite: bool = False,
    extension: str = ".txt",
) -> Iterator[Record]:
    """Write records as they come, and pass them on.

    Args:
        records: in input order.
        file: open for writing.
        format: one of `FORMATS`. Failures appear in jsonl and csv, where a status can say so.
        n_best: captions to write per image, where the format has room for more than one.
        overwrite: txt: replace files that exist.
        extension: txt: of the file beside an image, with its dot.

    Yields:
        Each record, once written; as a failure where its place is taken by another.

    Raises:
        DataError: if the file beside an image cannot be written.
    """
    if format == "csv":
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
    opening = "["
    taken: set[Any] = set()  # COCO ids, or files beside images: two images must not share one
    for made in records:
        record = _unless_taken(made, format, taken, overwrite, extension)
        if format == "jsonl":
            file.write(to_json(as_dict(record, n_best)) + "\n")
        elif format == "csv":
            table.writerow(_cells(record))
        elif not record.captions:
            pass
        elif format == "coco":
            file.write(f"{opening}\n{to_json(_coco(record))}")
            opening = ","
        elif format == "txt":
            _write_beside(record, extension)
        else:
            file.writelines(_lines(record, n_best))
        file.flush()
        yield record
    if format == "coco":
        file.write("[]\n" if opening == "[" else "\n]\n")


def _write_beside(record: Record, extension: str) -> None:
    path = _beside(record.file_name, extension)
    try:
        write_text(path, record.caption + "\n", "sidecar")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}; choose a format that needs no file there"
        ) from error


def untaken(
    items: Iterable[Item], extension: str, *, overwrite: bool, leave: Callable[[str], None]
) -> Iterator[Item]:
    """Leave out images that have a text file already: they are done, or another's work.

    Args:
        items: images.
        extension: of the file beside an image, with its dot.
        overwrite: leave none out whose text file is one line, as a caption is.
        leave: told the name of each image that is left out.

    Yields:
        The others; as a failure where the text file would be the picture itself, or holds more.
    """
    for item in items:
        place = _beside(item.name, extension)
        if place == Path(item.name):
            reason = "its caption would take its own place; choose another --extension"
            yield Item(item.name, ImageError(reason, kind="place_taken"))
        elif isinstance(item.source, Path) and place.exists():
            if not overwrite:
                leave(item.name)
            elif not place.is_file():
                reason = f"its caption would go into {place}, which is no file; move that away"
                yield Item(item.name, ImageError(reason, kind="place_taken"))
            elif place.stat().st_size and not owns(place, "sidecar"):
                reason = f"its caption would replace {place}, which is more than a line of text"
                yield Item(item.name, ImageError(reason, kind="place_taken"))
            else:
                yield item
        else:
            yield item


def _unless_taken(
    record: Record, format: str, taken: set[Any], overwrite: bool, extension: str
) -> Record:
    """Make a failure of a record that would overwrite another's caption or a user's file."""
    if not record.captions or format not in ("coco", "txt"):
        return record
    place = _coco(record)["image_id"] if format == "coco" else _beside(record.file_name, extension)
    if place in taken:
        what = "COCO id" if format == "coco" else "text file"
        reason = f"another image has the same {what}, {place}; choose jsonl or csv"
    elif format == "txt" and place.exists() and not overwrite:
        reason = f"{place} exists; --overwrite replaces it"
    else:
        taken.add(place)
        return record
    return Record(record.file_name, error=reason, kind="place_taken")


def _beside(file_name: str, extension: str) -> Path:
    return Path(file_name).with_suffix(extension)


def _coco(record: Record) -> dict[str, Any]:
    """One entry of a COCO results file; COCO's own ids are the numbers in its file names."""
    number = COCO_NAME.fullmatch(record.image_id)
    image_id = int(number[1]) if number else utf8_name(record.image_id)
    return {"image_id": image_id, "caption": record.caption}


def _cells(record: Record) -> dict[str, Any]:
    """Return a row of a table: its numbers as they are, its texts as spreadsheets leave them."""
    texts = (record.file_name, record.image_id, record.caption)
    return as_dict(record) | dict(zip(COLUMNS, map(escape, texts), strict=False))


def _lines(record: Record, n_best: int) -> Iterator[str]:
    """Path, tab, caption; with n-best each line also has the caption's log-probability."""
    name = escape(record.file_name, LINE_NAME)
    for caption in record.captions[:n_best]:
        detail = f"\t{caption.log_prob:.4f}" if n_best > 1 else ""
        yield f"{name}\t{escape(caption.text)}{detail}\n"
