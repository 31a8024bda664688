"""Caption records -> text, JSONL, CSV, COCO results JSON, Parquet, or a file next to each image.

To add a format, write a subclass of `Writer` and add it to `FORMATS`, or write a plug-in.
"""

from __future__ import annotations

import csv
import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self, TextIO, cast

from captioner.captioning.failures import ERRORS, failure_list
from captioner.captioning.records import Record, Totals
from captioner.captioning.sidecars import ADVICE, Existing, Sidecars
from captioner.captioning.sources.item import text_id
from captioner.captioning.wording import Wording
from captioner.errors import ConfigError, DataError
from captioner.system.escapes import COLUMNS, LINE_NAME, escape, isolated, to_json, utf8_name
from captioner.system.files import MOVED, whole_file
from captioner.system.foreign import excerpt
from captioner.system.plugins import PlugIn, guarded, load, plugin, tell_unused
from captioner.system.version import __version__
from captioner.text import Caption

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{1,18})", re.ASCII)
ROW_GROUP = 2**16  # rows per row group of a Parquet file
LOOK_EVERY = 2**16  # records between checks that the output was not moved away


class Writer(ABC):
    """Writes records in one format, in a `with` block, to a file that is open for UTF-8 text.

    A format defines `_write`, which returns why a caption would replace another one, or None. It
    may define `_open`, which writes a header, and `_close`, which writes a footer.
    """

    several: ClassVar[bool] = True  # whether the format holds more than one caption per image
    detailed: ClassVar[bool] = False  # whether it holds words and marks captions
    # Of a plug-in: matches every line of its files, by which captioner may replace them.
    line: ClassVar[re.Pattern[bytes] | None] = None
    _who: PlugIn | None = None

    def __init__(
        self,
        file: TextIO,
        *,
        n_best: int = 1,
        wording: Callable[[str], str] | None = None,
        words: bool = False,
        min_confidence: float | None = None,
        existing: Existing = "skip",
        overwrite: bool = False,
    ):
        self.file, self.n_best, self.wording = file, n_best, wording
        self.words, self.min_confidence = words, min_confidence
        self.existing, self.overwrite = existing, overwrite
        self.taken: set[int | str] = set()  # ids that an image has
        self.renamed = 0  # images with their path as id, because another has their id
        self.unsure = 0  # images whose caption's confidence is below `min_confidence`

    def write(self, record: Record) -> Record:
        """Write a record; return it, or a failure if its caption would replace another one.

        Raises:
            DataError: if the file next to an image cannot be written.
        """
        with _own_errors(self._who):
            reason = self._write(record.worded(self.wording) if self.wording else record)
        if self.min_confidence is not None and record.captions:
            self.unsure += not record.captions[0].confidence >= self.min_confidence
        return Record(record.file_name, error=reason, kind="place_taken") if reason else record

    @abstractmethod
    def _write(self, record: Record) -> str | None: ...

    def _open(self) -> None:  # noqa: B027 optional
        pass

    def _close(self) -> None:  # noqa: B027 optional
        pass

    def __enter__(self) -> Self:
        with _own_errors(self._who):
            self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with _own_errors(self._who):
                self._close()


class TextWriter(Writer):
    """Path, tab, caption; with n-best, also a tab and the caption's score."""

    def _write(self, record: Record) -> None:
        shown = isolated if self.file.isatty() else str
        name = shown(escape(record.file_name, LINE_NAME))
        for caption in record.captions[: self.n_best]:
            detail = f"\t{caption.score:.4f}" if self.n_best > 1 else ""
            self.file.write(f"{name}\t{shown(escape(caption.text))}{detail}\n")


class JsonLinesWriter(Writer):
    """One JSON object per line, including failures; see `as_dict`."""

    detailed = True

    def _write(self, record: Record) -> None:
        row = as_dict(record, self.n_best, words=self.words, min_confidence=self.min_confidence)
        self.file.write(to_json(row) + "\n")


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
        number = None if text_id(record.given_id) else COCO_NAME.fullmatch(record.image_id)
        image_id = int(number[1]) if number else utf8_name(record.image_id)
        if image_id in self.taken and not record.given_id:
            self.renamed += 1
            image_id = utf8_name(record.file_name)  # of images of several folders with one name
        if image_id in self.taken:
            return f"another image has the same COCO id, {image_id}; {ADVICE}"
        entry = to_json({"image_id": image_id, "caption": record.caption})
        self.file.write(f"{',' if self.taken else '['}\n{entry}")
        self.taken.add(image_id)
        return None

    def _close(self) -> None:
        self.file.write("\n]\n" if self.taken else "[]\n")


class SidecarWriter(Writer):
    """A file next to each image that holds its caption."""

    several = False
    form: ClassVar[str] = "txt"

    def _open(self) -> None:
        self.texts = Sidecars(
            self.form,
            existing=self.existing,
            overwrite=self.overwrite,
            wording=self.wording.key if isinstance(self.wording, Wording) else "",
        )

    def _write(self, record: Record) -> str | None:
        return self.texts.write(record) if record.captions else None


class DotCaptionWriter(SidecarWriter):
    """The same with the ending that kohya's trainers look for."""

    form = "caption"


class XmpWriter(SidecarWriter):
    """An XMP sidecar with the caption as description and alt text."""

    form = "xmp"


class ParquetWriter(Writer):
    """A Parquet file with the fields of JSON Lines as columns."""

    detailed = True

    def _open(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        text, number = pa.string(), pa.float64()
        pairs = {"words": pa.list_(pa.struct([("text", text), ("log_prob", number)]))}
        columns = dict.fromkeys((*COLUMNS, "error"), text) | {"score": number}
        if self.min_confidence is not None:
            columns["confident"] = pa.bool_()
        if self.words:
            columns |= pairs
        if self.n_best > 1:
            one = {"caption": text, "log_prob": number, "score": number}
            one |= pairs if self.words else {}
            columns["n_best"] = pa.list_(pa.struct(one.items()))
        schema = pa.schema(columns.items(), {"captioner_version": __version__})
        self.table = parquet.ParquetWriter(self.file.buffer, schema)
        self.rows: list[dict[str, object]] = []

    def _write(self, record: Record) -> None:
        row = as_dict(record, self.n_best, words=self.words, min_confidence=self.min_confidence)
        self.rows.append(_with_structs(row))
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
    "caption": DotCaptionWriter,
    "xmp": XmpWriter,
    "parquet": ParquetWriter,
}


def writer_named(format: str) -> type[Writer]:
    """Return the writer of a format in `FORMATS` or of a plug-in.

    Raises:
        ConfigError: if there is none, or a plug-in cannot be used.
    """
    if format in FORMATS:
        tell_unused("writers", format)
        return FORMATS[format]
    writer: type[Writer] = load("writers", format, Writer)
    if lacks := ", ".join(sorted(writer.__abstractmethods__)):
        raise ConfigError(f"{plugin('writers', format)}: {writer.__name__} must define {lacks}")
    writer._who = plugin("writers", format)
    return writer


def make_writer(format: str, make: Callable[[type[Writer]], Writer]) -> Writer:
    """Make a writer of a format from its class; see `writer_named`.

    Raises:
        ConfigError: if there is none, or a plug-in cannot be used.
        DataError: if a plug-in's writer cannot be made.
    """
    writer = writer_named(format)
    with _own_errors(writer._who):
        return make(writer)


def _own_errors(who: PlugIn | None) -> AbstractContextManager[None]:
    """Return what names a plug-in that fails, but not a disk that does."""
    return guarded(who, DataError, OSError) if who else nullcontext()


def as_dict(
    record: Record, n_best: int = 1, *, words: bool = False, min_confidence: float | None = None
) -> dict[str, object]:
    """Return a record as a JSONL object.

    Args:
        record: of an image.
        n_best: above 1: list so many captions, with scores.
        words: list the words of each caption, with log-probabilities.
        min_confidence: say whether the caption's confidence is at least this.
    """
    best = record.captions[0] if record.captions else None
    row: dict[str, object] = {
        "file_name": utf8_name(record.file_name),
        "image_id": utf8_name(record.image_id),
        "caption": record.caption,
        "score": round(best.score, 6) if best else None,
        "status": record.status,
    }
    if best and min_confidence is not None:
        row["confident"] = best.confidence >= min_confidence
    if best and words:
        row["words"] = _pairs(best)
    if record.error:
        row["error"] = record.error
    if n_best > 1:
        row["n_best"] = [
            {"caption": c.text, "log_prob": round(c.log_prob, 6), "score": round(c.score, 6)}
            | ({"words": _pairs(c)} if words else {})
            for c in record.captions[:n_best]
        ]
    return row


def _pairs(caption: Caption) -> list[list[Any]]:
    """Return each word of a caption with its log-probability; 0.0 instead of -0.0."""
    return [[word.text, round(word.log_prob, 6) or 0.0] for word in caption.words]


def _with_structs(row: dict[str, object]) -> dict[str, object]:
    """Return a row of `as_dict` with objects for the words, because a Parquet list has one type."""
    row = dict(row)
    if "words" in row:
        pairs = cast(list[list[object]], row["words"])
        row["words"] = [{"text": text, "log_prob": log_prob} for text, log_prob in pairs]
    if "n_best" in row:
        captions = cast(list[dict[str, object]], row["n_best"])
        row["n_best"] = [_with_structs(caption) for caption in captions]
    return row


@contextmanager
def _recognised(path: Path, format: str) -> Iterator[None]:
    """Raise `DataError` if the block writes a line that a plug-in's `line` does not match."""
    yield
    writer = writer_named(format)
    if not writer._who or writer.line is None:
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not writer.line.fullmatch(line):
                shown = excerpt(line.decode(errors="replace"))
                raise DataError(
                    f"{writer._who}: line {number:,} of its file, {shown}, does "
                    f"not match its `line`, so no later job could replace the file; nothing was "
                    f"written; correct `line` and run the same command again"
                )


def write_output(
    records: Iterable[Record],
    output: Path,
    format: str,
    *,
    n_best: int = 1,
    wording: Callable[[str], str] | None = None,
    words: bool = False,
    min_confidence: float | None = None,
) -> Totals:
    """Write the output of a job and its list of failures, each atomically; return the counts."""
    images = failed = blank = new = 0
    with (
        whole_file(output, "captions") as aside,
        failure_list(output) as add_failure,
        _recognised(aside, format),
        aside.open("w", encoding="utf-8") as file,
        make_writer(
            format,
            lambda writer: writer(
                file, n_best=n_best, wording=wording, words=words, min_confidence=min_confidence
            ),
        ) as writer,
    ):
        for images, record in enumerate(map(writer.write, records), 1):
            blank += record.status == "blank"
            if record.error:
                failed += 1
                new += add_failure(record.file_name, record.kind, record.error)
            if images % LOOK_EVERY == 0 and not aside.exists():
                raise FileNotFoundError(errno.ENOENT, MOVED, str(output))
    errors = output.with_name(ERRORS) if failed else None
    return Totals(images, failed, images, errors, blank, new, writer.renamed, writer.unsure)
