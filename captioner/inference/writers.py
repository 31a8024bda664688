"""Caption records -> text, JSONL, CSV, COCO results JSON, or a .txt file beside each image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from captioner.errors import DataError
from captioner.files import utf8_name, write_text
from captioner.inference.local import Record

FORMATS = ("text", "jsonl", "csv", "coco", "txt")
COLUMNS = ("file_name", "image_id", "caption", "score", "status")


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
    records: Iterable[Record], file: TextIO, *, format: str = "text", n_best: int = 1
) -> Iterator[Record]:
    """Write records as they come, and pass them on.

    Args:
        records: in input order.
        file: open for writing.
        format: one of `FORMATS`. Failures appear in jsonl and csv, where a status can say so.
        n_best: captions to write per image, where the format has room for more than one.

    Yields:
        Each record, once written.

    Raises:
        DataError: if the file beside an image cannot be written.
    """
    if format == "csv":
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
    opening = "["
    for record in records:
        if format == "jsonl":
            file.write(json.dumps(as_dict(record, n_best), ensure_ascii=False) + "\n")
        elif format == "csv":
            table.writerow(as_dict(record))
        elif not record.captions:
            pass
        elif format == "coco":
            file.write(f"{opening}\n{json.dumps(_coco(record), ensure_ascii=False)}")
            opening = ","
        elif format == "txt":
            _write_beside(record)
        else:
            file.writelines(_lines(record, n_best))
        file.flush()
        yield record
    if format == "coco":
        file.write("[]\n" if opening == "[" else "\n]\n")


def _write_beside(record: Record) -> None:
    path = Path(record.file_name).with_suffix(".txt")
    try:
        write_text(path, record.caption + "\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}; choose a format that needs no file there"
        ) from error


def _coco(record: Record) -> dict[str, Any]:
    """One entry of a COCO results file; COCO's ids are numbers."""
    digits = record.image_id.rpartition("_")[2]
    image_id = int(digits) if digits.isdecimal() else utf8_name(record.image_id)
    return {"image_id": image_id, "caption": record.caption}


def _lines(record: Record, n_best: int) -> Iterator[str]:
    """Path, tab, caption; with n-best each line also has the caption's log-probability."""
    name = utf8_name(
        record.file_name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    )
    for caption in record.captions[:n_best]:
        detail = f"\t{caption.log_prob:.4f}" if n_best > 1 else ""
        yield f"{name}\t{caption.text}{detail}\n"
