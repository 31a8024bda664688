"""Parquet files with images inside, one or a folder of shards; paths instead of images: `jsonl`."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from captioner.data.dataset import Dataset, Options, split_in
from captioner.data.formats.collect import (
    Collector,
    annotation_files,
    caption_files,
    listed,
    picture_folders,
)
from captioner.data.formats.image_tables import (
    BATCH,
    ERRORS,
    NEEDED,
    cells,
    image_columns,
    leaf,
    load_image_tables,
)
from captioner.errors import DataError, ImageError
from captioner.images.content import bomb
from captioner.system.foreign import plain

LOOKS_FOR = (
    "a .parquet file with images as bytes, or a folder with such files, directly, in data/ or in "
    "folders named after splits"
)

SUFFIX = ".parquet"
_OPEN = 16  # files that stay open
_KEPT = 64  # images that are kept after reading: threads ask for them in nearly the file's order
_KEPT_BYTES = 2**26
_BUFFER = 2**20  # bytes that are read from the file at once


def recognise(root: Path) -> bool:
    """Return whether this is a Parquet file with images, or a folder with some."""
    files = _files(root)
    if not files:
        return False
    at_top = files[0] == root or files[0].parent == root
    try:
        schemas = [schema for file in files[:1] if (schema := _schema(file))]
    except DataError:  # damaged, or without the library: `load` says so
        return True
    return not at_top or any(map(image_columns, schemas))


def load(root: Path, options: Options) -> Dataset:
    """Read a Parquet file, or the Parquet files of a folder.

    Raises:
        DataError: if pyarrow is missing, no file can be used, or there are several data sets.
    """
    files = _files(root)
    bases = sorted({_base(file) for file in files})
    if len(bases) > 1:
        names = listed(base.name for base in bases)
        raise DataError(f"{root}: several data sets: {names}; name one, as data.root={bases[0]}")
    base = root if root.is_dir() else root.parent
    collector = Collector(root, "parquet", picture_folders(base, options.images))
    tables = [ParquetTable(file, collector.place(file), _split(root, file)) for file in files]
    return load_image_tables(collector, tables, options)


def _files(root: Path) -> list[Path]:
    """Return the Parquet files at the first of the usual places that has some."""
    if root.is_file():
        return [root] if root.suffix.lower() == SUFFIX else []
    for pattern in ("*", "data/*", "*/*", "*/*/*"):
        found = [file for file in annotation_files(root, f"{pattern}{SUFFIX}") if file.is_file()]
        if found or caption_files(root):
            return found
    return []


def _base(file: Path) -> Path:
    """Return the folder of a data set, above those that are named after splits."""
    return file.parent.parent if split_in(file.parent.name, only=True) else file.parent


def _split(root: Path, file: Path) -> str | None:
    inside = root.is_dir() and file.parent != root
    return split_in(file.stem) or (split_in(file.parent.name) if inside else None)


def _schema(path: Path) -> Any:
    """Return the columns of a file, a `pyarrow.Schema`.

    Raises:
        DataError: if it is damaged, or pyarrow is missing.
    """
    return open_parquet(path).schema_arrow


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; only its end, which describes it, is read.

    Raises:
        DataError: if it cannot be read, or pyarrow is missing.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow: {NEEDED}") from error
    try:
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)
    except ERRORS as error:
        raise DataError(f"{path}: cannot be read as Parquet: {plain(error)}") from error


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """A Parquet file; its images are read in order, page by page."""

    path: Path
    place: str
    split: str | None = None

    def schema(self) -> Any:
        """Return its columns, a `pyarrow.Schema`; a `DataError` if it cannot be read."""
        return _schema(self.path)

    def rows(self, columns: Sequence[str], image: str | None) -> Iterator[dict[str, Any]]:
        """Yield the cells of some columns, row by row; of the image, if any, only its path."""
        file = open_parquet(self.path)
        path = leaf(file.schema_arrow, image, "path") if image else None
        wanted = [*columns, *([path] if path else [])]
        if image and not wanted:
            yield from ({image: None} for _ in range(file.metadata.num_rows))
            return
        try:
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                for row in cells(batch):
                    if image:
                        row[image] = (row.get(image) or {}).get("path")
                    yield row
        except ERRORS as error:
            raise DataError(f"{self.path}: cannot be read as Parquet: {plain(error)}") from error

    def without_bytes(self, image: str) -> Collection[int]:
        """Return the rows whose image has no bytes; reads only groups that may have some."""
        return _reader(*self._key(image)).nulls()

    def size(self, image: str, row: int) -> int:
        """Return the mean size of the images that are stored together; 0 if it is unknown."""
        try:
            return _reader(*self._key(image)).mean_size(row)
        except (DataError, OSError):
            return 0

    def read(self, image: str, row: int) -> bytes | None:
        """Return the bytes of an image; None without bytes; an `ImageError` if it is damaged."""
        try:
            return _reader(*self._key(image)).read(row)
        except DataError as error:
            raise ImageError(f"cannot be read: {error}", kind="unreadable") from error
        except ERRORS as error:
            message = f"damaged in the Parquet file: {plain(error)}"
            raise ImageError(message, kind="damaged") from error

    def _key(self, image: str) -> tuple[Path, str, int, int]:
        """Return what `_reader` takes; a file that was replaced is opened again."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        return self.path, image, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=_OPEN)
def _reader(path: Path, image: str, *_: int) -> _Reader:
    return _Reader(path, image)


class _Reader:
    """Reads the images of one column, one after the other.

    A page of the file is in memory at a time, and the last `_KEPT` images. A row that comes before
    the last one is read from the start of its row group.
    """

    def __init__(self, path: Path, image: str):
        self._lock = Lock()
        self._file = open_parquet(path)
        meta = self._file.metadata
        self._column = leaf(self._file.schema_arrow, image, "bytes")
        paths = [self._file.schema.column(i).path for i in range(meta.num_columns)]
        index = paths.index(self._column)
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        self._chunks = [group.column(index) for group in groups]
        self._counts = [group.num_rows for group in groups]
        self._starts = [sum(self._counts[:i]) for i in range(len(groups))]
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._kept_bytes = 0
        self._group, self._next = -1, 0  # the open row group, and its next row
        self._rows: Iterator[Any] = iter(())
        self._broken: dict[int, tuple[int, Exception]] = {}  # first damaged row of a group

    def mean_size(self, row: int) -> int:
        group = bisect_right(self._starts, row) - 1
        return int(self._chunks[group].total_uncompressed_size // max(1, self._counts[group]))

    def nulls(self) -> list[int]:
        """Return the rows without bytes; those behind damage count as rows with bytes."""
        found: list[int] = []
        for group, chunk in enumerate(self._chunks):
            statistics = chunk.statistics
            if statistics and statistics.has_null_count and not statistics.null_count:
                continue
            for row in range(self._starts[group], self._starts[group] + self._counts[group]):
                try:
                    content = self.read(row)
                except (ImageError, *ERRORS):
                    break
                if content is None:
                    found.append(row)
        return found

    def read(self, row: int) -> bytes | None:
        with self._lock:
            if row in self._kept:
                return self._kept[row]
            group = bisect_right(self._starts, row) - 1
            first, error = self._broken.get(group, (row + 1, None))
            if error and row >= first:
                raise error.with_traceback(None)
            if group != self._group or row < self._next:
                self._finish(group)
                self._open(group)
            return self._advance(row)

    def _finish(self, group: int) -> None:
        """Read the few rows that are left of a group: another thread is about to ask for them."""
        end = self._starts[self._group] + self._counts[self._group] if self._group >= 0 else 0
        if group == self._group + 1 and 0 < end - self._next < _KEPT // 2:
            try:
                self._advance(end - 1)
            except (ImageError, *ERRORS):
                return

    def _open(self, group: int) -> None:
        chunk = self._chunks[group]
        if error := bomb(chunk.total_uncompressed_size, chunk.total_compressed_size):
            raise error
        self._group, self._next = group, self._starts[group]
        self._rows = self._file.iter_batches(
            batch_size=1, row_groups=[group], columns=[self._column], use_threads=False
        )

    def _advance(self, row: int) -> bytes | None:
        """Read up to a row of the open group, and return that."""
        content = None
        while self._next <= row:
            try:
                batch = next(self._rows, None)
                if batch is None:
                    raise ValueError("its row group ends too early")
                if row - self._next < _KEPT:
                    value = batch.column(0)[0].as_py()
                    content = value["bytes"] if isinstance(value, dict) else value
                    self._keep(self._next, content)
            except ERRORS as error:
                self._broken[self._group] = (self._next, error)
                raise
            self._next += 1
        return content

    def _keep(self, row: int, content: bytes | None) -> None:
        self._kept[row] = content
        self._kept_bytes += len(content or b"")
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1] or b"")
