"""A job that writes a folder of parts, each whole or absent, and the merge of the parts.

A part holds the records of a range of positions in the list of images. Its manifest, written after
it, says which: a part without one is written again. Only the names of finished images are read
again, so a finished part costs nothing but its listing; a picture that changed under the same name
is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from captioner.captioning import part_folders
from captioner.captioning.engine import Batches, Engine, Finished, Listed
from captioner.captioning.failures import ERRORS, failure_list
from captioner.captioning.job import JobOptions, identity_of, locked
from captioner.captioning.journal import difference, lock_of
from captioner.captioning.part_folders import END, TOGETHER, Folder, RemoteFolder, folder_at
from captioner.captioning.progress import Progress
from captioner.captioning.records import Record, Totals
from captioner.captioning.remote_output import made
from captioner.captioning.run_state import RunState, is_running, state_of
from captioner.captioning.sources import Item
from captioner.captioning.writers import ROW_GROUP, make_writer
from captioner.config import DecodingConfig
from captioner.errors import ConfigError, DataError
from captioner.system.batches import in_turn
from captioner.system.escapes import utf8_name
from captioner.system.files import whole_file
from captioner.system.foreign import plain
from captioner.system.stages import during

PART_IMAGES = 2**14  # at least; a part has whole batches
NAME = re.compile(r"part-([0-9]{5,})\.json")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a part holds."""

    start: int  # positions in the list: from here
    end: int  # to before here
    listing: str  # digest of the names and ids in the list before `end`
    digest: str  # of the file
    blank: int
    unsure: int
    failures: list[list[str | None]]  # path, kind and message
    job: dict[str, object]  # settings and model


def caption_to_parts(
    engine: Engine,
    items: Iterable[Item],
    folder: Path | str,
    options: DecodingConfig,
    how: JobOptions,
    *,
    model: str,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    count: Callable[[], int | None] = lambda: None,
) -> Totals:
    """Caption images into parts in a folder; the same job again does the missing parts.

    Args:
        engine: what captions.
        items: images, in the same order each time.
        folder: missing, empty, or of such a job; also an address in object storage.
        options: search settings.
        how: format, `jsonl` or `parquet`, and the other settings.
        model: fingerprint.
        tell: called with each new record.
        say: called with a message if a job on another machine may write the same parts.
        count: counts the images for the progress; None from it: that takes long.

    Raises:
        ConfigError: if the folder belongs to another job, or the list of images is another one.
        DataError: if a part cannot be written, or the store does not answer.
    """
    where = folder_at(folder)
    size = how.batch_size * -(-PART_IMAGES // how.batch_size)
    job = identity_of(model, options, how) | {"images_per_part": size, "format": how.format}
    job |= {"batch_size": how.batch_size, "min_confidence": how.min_confidence}
    job |= {"wording": getattr(how.wording, "key", None), "arithmetic": engine.arithmetic}
    where.begin()
    with locked(where.lock, where):
        if how.overwrite:
            where.clear()
        where.sweep()
        found = dict(manifests(where))
        for manifest in found.values():
            _check(where, manifest.job, json.loads(json.dumps(job)))
        with running(where, how, count, say) as progress:
            writing = _Parts(where, how, job, size, found, progress)
            fresh = writing.write(engine.caption(writing.missing(items)), tell)
            if stray := [name for name in found if name not in writing.seen]:
                raise ConfigError(f"{where.at(stray[0])}: {OTHER_LIST}")
            progress.state.total, progress.state.finished = writing.listed, True
        with where.failures() as output:
            totals = _totals((manifest for _, manifest in manifests(where, read=False)), output)
        errors = where.at(ERRORS) if totals.failed else None
        return replace(totals, fresh=fresh, errors=errors)


OTHER_LIST = (
    "was written from another list of images; choose another --output, or --overwrite to discard "
    "all parts"
)


class _Parts:
    """The parts of one job: which are missing, and what is written."""

    def __init__(
        self,
        folder: Folder,
        how: JobOptions,
        job: dict[str, object],
        size: int,
        found: dict[str, Manifest],
        progress: Progress,
    ):
        self.folder, self.how, self.job, self.size = folder, how, job, size
        self.found, self.seen, self.progress = found, set[str](), progress
        self.listing, self.listed = hashlib.blake2b(digest_size=16), 0
        self.ends: dict[int, tuple[int, str]] = {}

    def missing(self, items: Iterable[Item]) -> Batches:
        """Yield the batches of missing parts; check the list against the others."""
        chunks = in_turn(self._noted(items), self.size)
        first: Iterator[Listed] = next(chunks, iter(()))  # a job without images has an empty part
        for number, chunk in enumerate(chain([first], chunks)):
            name = f"part-{number:05}.json"
            manifest = self.found.get(name)
            if manifest is None:
                for batch in in_turn(chunk, self.how.batch_size):
                    yield batch
                    self.ends[number] = self._end()
                if not self.listed:
                    self.ends[number] = self._end()
                continue
            deque(chunk, maxlen=0)
            self.seen.add(name)
            if (manifest.end, manifest.listing) != self._end():
                raise ConfigError(f"{self.folder.at(name)}: {OTHER_LIST}")

    def _noted(self, items: Iterable[Item]) -> Iterator[Listed]:
        for position, item in enumerate(items):
            self.listing.update(repr((item.name, item.image_id)).encode(errors="surrogateescape"))
            self.listed += 1
            yield Listed(position, item)

    def _end(self) -> tuple[int, str]:
        return self.listed, self.listing.hexdigest()

    def write(self, finished: Iterator[Finished], tell: Callable[[Record], None]) -> int:
        """Write the parts; return the number of records."""
        fresh = 0
        records: list[Record] = []
        number = 0
        with self.progress.bar():
            for manifest in self.found.values():
                self.progress.add(manifest.end - manifest.start, 0, len(manifest.failures))
            try:
                for positions, batch in finished:
                    if positions[0] // self.size != number:
                        before, records = records, []
                        self._write_full(number, before)
                        number = positions[0] // self.size
                    new = [image.record for image in batch if image.record]
                    self.progress.add(len(batch), len(new), sum(bool(each.error) for each in new))
                    fresh += len(new)
                    records += new
                    for record in new:
                        tell(record)
            except BaseException:
                self._write_full(number, records)
                raise
            self._write(number, records)
        return fresh

    def _write_full(self, number: int, records: list[Record]) -> None:
        """Write a part that others follow; not if the job ends early and the part has gaps."""
        if len(records) == self.size:
            self._write(number, records)

    def _write(self, number: int, records: list[Record]) -> None:
        """Write a part and then its manifest."""
        if not records and (self.listed or number not in self.ends):
            return
        with during("writing"):
            name = f"part-{number:05}.{self.how.format}"
            with self.folder.writing(name) as aside:
                unsure = self._write_records(records, aside)
                digest = _digest(aside.read_bytes())
            end, listing = self.ends[number]
            manifest = Manifest(
                start=number * self.size,
                end=end,
                listing=listing,
                digest=digest,
                blank=sum(record.status == "blank" for record in records),
                unsure=unsure,
                failures=[
                    [utf8_name(record.file_name), record.kind, record.error]
                    for record in records
                    if record.error
                ],
                job=self.job,
            )
            _write_json(self.folder, f"part-{number:05}.json", asdict(manifest))

    def _write_records(self, records: list[Record], aside: Path) -> int:
        """Write a part; return how many captions are not confident."""
        how = self.how
        with (
            aside.open("w", encoding="utf-8") as file,
            make_writer(
                how.format,
                lambda writer: writer(
                    file,
                    n_best=how.n_best,
                    wording=how.wording,
                    words=how.words,
                    min_confidence=how.min_confidence,
                ),
            ) as writer,
        ):
            for record in records:
                writer.write(record)
        return writer.unsure


@contextmanager
def running(
    folder: Folder,
    how: JobOptions,
    count: Callable[[], int | None],
    say: Callable[[str], None],
) -> Iterator[Progress]:
    """Show the progress of a job, and note it in its folder from time to time and at the end."""
    noted_at = time.monotonic()
    _, before = run_of(folder)
    if before and isinstance(folder, RemoteFolder) and is_running(before, before.updated):
        age = time.time() - before.updated
        say(
            f"{folder}: a job on {plain(before.host)} wrote here {age:.0f} s ago; if it still "
            f"runs, both write the same parts"
        )

    def show_life() -> None:
        nonlocal noted_at
        with suppress(OSError):
            os.utime(lock_of(folder.lock))
        if time.monotonic() - noted_at > part_folders.EVERY:
            noted_at = time.monotonic()
            with suppress(OSError, DataError):  # the job itself reports it
                _note(folder, progress.state)

    run = os.urandom(16).hex()
    progress = Progress(how.progress, count, run=run, command=how.command, alive=show_life)
    try:
        with progress:
            _note(folder, progress.state)
            yield progress
    except BaseException:
        with suppress(OSError, DataError):
            _note(folder, progress.state, ended=True)
        raise
    _note(folder, progress.state, ended=True)


def _note(folder: Folder, state: RunState, *, ended: bool = False) -> None:
    """Note how far a job is; `process` 0: it ended."""
    now = replace(state, stages=dict(state.stages))  # other threads change it
    now = replace(now, process=0) if ended else replace(now, updated=time.time())
    images = state.total if state.finished else None
    _write_json(folder, END, {"images": images, "run": asdict(now)})


def _write_json(folder: Folder, name: str, content: dict[str, object]) -> None:
    with folder.writing(name) as aside:
        aside.write_text(json.dumps(content) + "\n", encoding="utf-8")


def manifests(folder: Folder, *, read: bool = True) -> Iterator[tuple[str, Manifest]]:
    """Yield the manifests of whole parts, in order, by their names.

    Args:
        folder: of the parts.
        read: read the parts to compare their digests; else, a part that is there counts as whole.
    """
    there = folder.names()
    names = [name for name in there if NAME.fullmatch(name)]

    def whole(name: str) -> Manifest | None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            manifest = Manifest(**json.loads(folder.read(name)))
            part = part_of(name, manifest)
            if part in there and not (read and _digest(folder.read(part)) != manifest.digest):
                return manifest
        return None

    with ThreadPoolExecutor(TOGETHER) as pool:
        ordered = sorted(names, key=lambda name: (len(name), name))
        for name, manifest in zip(ordered, pool.map(whole, ordered), strict=True):
            if manifest:
                yield name, manifest


def part_of(name: str, manifest: Manifest) -> str:
    """Return the name of the part of a manifest."""
    return str(Path(name).with_suffix(f".{manifest.job['format']}"))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()[:32]


def _check(folder: Folder, was: dict[str, object], now: dict[str, object]) -> None:
    differences = [
        difference(key, was.get(key), now.get(key))
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{folder}: this job was started with different settings ({'; '.join(differences)}); "
            f"choose another --output, or --overwrite to discard its parts"
        )


def _totals(parts: Iterable[Manifest], output: Path) -> Totals:
    """Write the list of failures of an output; return the counts of all parts."""
    images = failed = blank = unsure = new = 0
    with failure_list(output) as add:
        for manifest in parts:
            images = manifest.end
            blank, unsure = blank + manifest.blank, unsure + manifest.unsure
            for name, kind, message in manifest.failures:
                failed += 1
                new += add(str(name), kind, str(message))
    errors = output.with_name(ERRORS) if failed else None
    return Totals(images, failed, images, errors, blank, new, 0, unsure)


def run_of(folder: Folder) -> tuple[int | None, RunState | None]:
    """Return the number of images of a finished job, else None, and the state of the last run."""
    try:
        content = json.loads(folder.read(END))
        images = content["images"]
        return None if images is None else int(images), state_of(content.get("run"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None


def merge_parts(folder: Path | str, output: Path | str | None = None) -> tuple[Path | str, Totals]:
    """Write the parts of a finished job as one file, as of a job without parts.

    Args:
        folder: of the parts, or its address.
        output: file to write, atomically, or its address; None: next to the folder, with its name.

    Raises:
        DataError: if a part is missing or damaged, or the file cannot be written.
        ConfigError: if the output is not captioner's.
    """
    where = folder_at(folder)
    images, _ = run_of(where)
    if images is None:
        raise DataError(f"{where}: no finished job; caption into it first")
    found, end = dict(manifests(where, read=False)), 0
    for manifest in found.values():
        if manifest.start != end:
            break
        end = manifest.end
    if end != images or not found:
        raise _missing(where, end)
    form = str(next(iter(found.values())).job["format"])
    output = output or where.beside(form)
    with made(output) as local:
        with whole_file(local, "captions") as aside:
            (_join_parquet if form == "parquet" else _join)(_contents(where, found), aside)
        totals = _totals(found.values(), local)
    return output, totals


def _missing(folder: Folder, position: int) -> DataError:
    return DataError(
        f"{folder}: the part of image {position:,} is missing or damaged; run the same command of "
        f"captioner caption again, it writes that part"
    )


def _contents(folder: Folder, found: dict[str, Manifest]) -> Iterator[bytes]:
    """Read each part once, and check it."""
    for name, manifest in found.items():
        try:
            content = folder.read(part_of(name, manifest))
        except FileNotFoundError:
            raise _missing(folder, manifest.start) from None
        if _digest(content) != manifest.digest:
            raise _missing(folder, manifest.start)
        yield content


def _join(parts: Iterator[bytes], output: Path) -> None:
    with output.open("wb") as file:
        file.writelines(parts)


def _join_parquet(parts: Iterator[bytes], output: Path) -> None:
    """Join tables into row groups as of a file that is written at once."""
    import pyarrow as pa
    from pyarrow import parquet

    tables = (parquet.read_table(pa.BufferReader(part)) for part in parts)
    first = next(tables)
    with parquet.ParquetWriter(output, first.schema) as writer:
        rows: list[dict[str, object]] = []
        for table in chain([first], tables):
            rows += table.to_pylist()
            while len(rows) >= ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows[:ROW_GROUP], first.schema))
                rows = rows[ROW_GROUP:]
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, first.schema))
