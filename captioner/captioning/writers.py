"""Caption records -> text, JSONL, CSV, COCO results JSON, Parquet, or a file next to each image.

To add a format, write a subclass of `Writer` and add it to `FORMATS`.
"""

from __future__ import annotations

import csv
import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self, TextIO

from captioner.captioning.failures import ERRORS, failure_list
from captioner.captioning.records import Record, Totals
from captioner.captioning.sources.item import Item, failure
from captioner.errors import DataError, ImageError
from captioner.system.escapes import COLUMNS, LINE_NAME, escape, to_json, utf8_name
from captioner.system.files import MOVED, whole_file, write_text
from captioner.system.ownership import owns
from captioner.system.version import __version__

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d+)", re.ASCII)
ADVICE = "choose jsonl or csv"  # formats in which two images may share a name
ROW_GROUP = 2**16  # rows per row group of a Parquet file
LOOK_EVERY = 2**16  # records between checks that the output was not moved away


class Writer(ABC):
    """Writes records in one format, in a `with` block, to a file that is open for UTF-8 text.

    A format defines `_write`, which returns why a caption would replace another one, or None. It
    may define `_open`, which writes a header, and `_close`, which writes a footer.
    """

    several: ClassVar[bool] = True  # whether the format holds more than one caption per image

    def __init__(
        self, file: TextIO, *, n_best: int = 1, extension: str = ".txt", overwrite: bool = False
    ):
        self.file, self.n_best = file, n_best
        self.extension, self.overwrite = extension, overwrite
        self.taken: set[int | str | Path] = set()  # ids or places that an image has

    def write(self, record: Record) -> Record:
        """Write a record; return it, or a failure if its caption would replace another one.

        Raises:
            DataError: if the file next to an image cannot be written.
        """
        reason = self._write(record)
        return Record(record.file_name, error=reason, kind="place_taken") if reason else record

    @abstractmethod
    def _write(self, record: Record) -> str | None: ...

    def _open(self) -> None:  # noqa: B027 optional
        pass

    def _close(self) -> None:  # noqa: B027 optional
        pass

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()


class TextWriter(Writer):
    """Path, tab, caption; with n-best, also a tab and the caption's log-probability."""

    def _write(self, record: Record) -> None:
        name = escape(record.file_name, LINE_NAME)
        for caption in record.captions[: self.n_best]:
            detail = f"\t{caption.log_prob:.4f}" if self.n_best > 1 else ""
            self.file.write(f"{name}\t{escape(caption.text)}{detail}\n")


class JsonLinesWriter(Writer):
    """One JSON object per line, including failures; see `as_dict`."""

    def _write(self, record: Record) -> None:
        self.file.write(to_json(as_dict(record, self.n_best)) + "\n")


class CsvWriter(Writer):
    """A CSV table with column names; failures have the status `error`."""

    several = False

    def _open(self) -> None:
        self.table = csv.DictWriter(self.file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        self.table.writeheader()

    def _write(self, record: Record) -> None:
        texts = (record.file_name, record.image_id, record.caption)
        self.table.writerow(as_dict(record) | dict(zip(COLUMNS, map(escape, texts), strict=False)))


class CocoWriter(Writer):
    """A COCO results file, without the failures."""

    several = False

    def _write(self, record: Record) -> str | None:
        if not record.captions:
            return None
        number = COCO_NAME.fullmatch(record.image_id)
        image_id = int(number[1]) if number else utf8_name(record.image_id)
        if image_id in self.taken:
            return f"another image has the same COCO id, {image_id}; {ADVICE}"
        entry = to_json({"image_id": image_id, "caption": record.caption})
        self.file.write(f"{',' if self.taken else '['}\n{entry}")
        self.taken.add(image_id)
        return None

    def _close(self) -> None:
        self.file.write("\n]\n" if self.taken else "[]\n")


class SidecarWriter(Writer):
    """A text file next to each image that holds only its caption."""

    several = False

    def _write(self, record: Record) -> str | None:
        if not record.captions:
            return None
        place = _sidecar_path(record.file_name, self.extension)
        if place in self.taken:
            return f"another image has the same text file, {place}; {ADVICE}"
        if place.exists() and not self.overwrite:
            return f"{place} already exists; --overwrite replaces it"
        self.taken.add(place)
        try:
            write_text(place, record.caption + "\n", "sidecar")
        except OSError as error:
            raise DataError(
                f"{place}: cannot be written: {error.strerror}; choose a --format other than txt"
            ) from error
        return None


class ParquetWriter(Writer):
    """A Parquet file with the fields of JSON Lines as columns."""

    def _open(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        text, number = pa.string(), pa.float64()
        columns = dict.fromkeys((*COLUMNS, "error"), text) | {"score": number}
        if self.n_best > 1:
            one = {"caption": text, "log_prob": number, "score": number}
            columns["n_best"] = pa.list_(pa.struct(one.items()))
        schema = pa.schema(columns.items(), {"captioner_version": __version__})
        self.table = parquet.ParquetWriter(self.file.buffer, schema)
        self.rows: list[dict[str, object]] = []

    def _write(self, record: Record) -> None:
        self.rows.append(as_dict(record, self.n_best))
        if len(self.rows) == ROW_GROUP:
            self._close()

    def _close(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.table.write_table(pa.Table.from_pylist(self.rows, self.table.schema))
        self.rows = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        super().__exit__(kind)
        self.table.close()


FORMATS: dict[str, type[Writer]] = {
    "text": TextWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
    "coco": CocoWriter,
    "txt": SidecarWriter,
    "parquet": ParquetWriter,
}


def as_dict(record: Record, n_best: int = 1) -> dict[str, object]:
    """Return a record as a JSONL object; `n_best` above 1 lists captions with log-probabilities."""
    row: dict[str, object] = {
        "file_name": utf8_name(record.file_name),
        "image_id": utf8_name(record.image_id),
        "caption": record.caption,
        "score": round(record.captions[0].score, 6) if record.captions else None,
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


def write_output(
    records: Iterable[Record], output: Path, format: str, *, n_best: int = 1
) -> Totals:
    """Write the output of a job and its list of failures, each atomically; return the counts."""
    images = failed = 0
    with (
        whole_file(output, "captions") as aside,
        failure_list(output) as add_failure,
        aside.open("w", encoding="utf-8") as file,
        FORMATS[format](file, n_best=n_best) as writer,
    ):
        for images, record in enumerate(map(writer.write, records), 1):
            if record.error:
                failed += 1
                add_failure(record.file_name, record.kind, record.error)
            if images % LOOK_EVERY == 0 and not aside.exists():
                raise FileNotFoundError(errno.ENOENT, MOVED, str(output))
    return Totals(images, failed, images, output.with_name(ERRORS) if failed else None)


def skip_existing(
    items: Iterable[Item], extension: str, *, overwrite: bool, skip: Callable[[str], None]
) -> Iterator[Item]:
    """Skip images that already have a text file next to them, and call `skip` with their names.

    With `overwrite`, a text file of one line may be replaced; anything else is a failure.
    """
    for item in items:
        place, reason = _sidecar_path(item.name, extension), None
        if not isinstance(item.source, Path | ImageError):
            reason = "archive members get no text file; choose another --format"
        elif place == Path(item.name):
            reason = "its caption would replace the image itself; choose another --extension"
        elif isinstance(item.source, Path) and place.exists():
            if not overwrite:
                skip(item.name)
                continue
            if not owns(place, "sidecar"):
                reason = f"its caption would replace {place}, which is not one line; move that away"
        yield failure(item.name, reason, "place_taken") if reason else item


def _sidecar_path(file_name: str, extension: str) -> Path:
    return Path(file_name).with_suffix(extension)
