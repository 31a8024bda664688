"""A job that writes a folder of parts, each whole or absent, and the merge of the parts.

A part holds the records of a range of positions in the list of images. Its manifest, written after
it, says which: a part without one is written again. Only the names of finished images are read
again, so a finished part costs nothing but its listing; a picture that changed under the same name
is not noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from captioner.captioning.engine import Batches, Engine, Finished, Listed
from captioner.captioning.failures import ERRORS, failure_list
from captioner.captioning.job import JobOptions, identity_of, locked
from captioner.captioning.journal import difference
from captioner.captioning.records import Record, Totals
from captioner.captioning.sources import Item
from captioner.captioning.writers import ROW_GROUP, make_writer
from captioner.config import DecodingConfig
from captioner.errors import ConfigError, DataError
from captioner.system.batches import in_turn
from captioner.system.escapes import utf8_name
from captioner.system.files import sweep_marked, whole_file, write_text
from captioner.system.ownership import begin, remove

PART_IMAGES = 2**14  # at least; a part has whole batches
FORMS = ("jsonl", "parquet")  # that parts have
END = "parts.json"  # written when all parts are there
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
    folder: Path,
    options: DecodingConfig,
    how: JobOptions,
    *,
    model: str,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
) -> Totals:
    """Caption images into parts in a folder; the same job again does the missing parts.

    Args:
        engine: what captions.
        items: images, in the same order each time.
        folder: missing, empty, or of such a job.
        options: search settings.
        how: format, `jsonl` or `parquet`, and the other settings.
        model: fingerprint.
        tell: called with each new record.

    Raises:
        ConfigError: if the folder belongs to another job, or the list of images is another one.
        DataError: if a part cannot be written.
    """
    size = how.batch_size * -(-PART_IMAGES // how.batch_size)
    job = identity_of(model, options, how) | {"images_per_part": size, "format": how.format}
    job |= {"batch_size": how.batch_size, "min_confidence": how.min_confidence}
    job |= {"wording": getattr(how.wording, "key", None), "arithmetic": engine.arithmetic}
    begin(folder, "parts")
    with locked(folder / "parts"):
        if how.overwrite:
            remove(folder, "parts", keep_marked=True)
        sweep_marked(folder, "parts")
        found = dict(manifests(folder))
        for manifest in found.values():
            _check(folder, manifest.job, json.loads(json.dumps(job)))
        (folder / END).unlink(missing_ok=True)
        writing = _Parts(folder, how, job, size, found)
        fresh = writing.write(engine.caption(writing.missing(items)), tell)
        if stray := [name for name in found if name not in writing.seen]:
            raise ConfigError(f"{folder / stray[0]}: {OTHER_LIST}")
        write_text(folder / END, json.dumps({"images": writing.listed}) + "\n", "in parts")
        whole = (manifest for _, manifest in manifests(folder))
        return replace(_totals(whole, folder / END), fresh=fresh)


OTHER_LIST = (
    "was written from another list of images; choose another --output, or --overwrite to discard "
    "all parts"
)


class _Parts:
    """The parts of one job: which are missing, and what is written."""

    def __init__(
        self,
        folder: Path,
        how: JobOptions,
        job: dict[str, object],
        size: int,
        found: dict[str, Manifest],
    ):
        self.folder, self.how, self.job, self.size = folder, how, job, size
        self.found, self.seen = found, set[str]()
        self.listing, self.listed = hashlib.blake2b(digest_size=16), 0
        self.ends: dict[int, tuple[int, str]] = {}

    def missing(self, items: Iterable[Item]) -> Batches:
        """Yield the batches of missing parts; check the list against the others."""
        for number, chunk in enumerate(in_turn(self._noted(items), self.size)):
            name = f"part-{number:05}.json"
            manifest = self.found.get(name)
            if manifest is None:
                for batch in in_turn(chunk, self.how.batch_size):
                    yield batch
                    self.ends[number] = self.listed, self.listing.hexdigest()
                continue
            deque(chunk, maxlen=0)
            self.seen.add(name)
            if (manifest.end, manifest.listing) != (self.listed, self.listing.hexdigest()):
                raise ConfigError(f"{self.folder / name}: {OTHER_LIST}")

    def _noted(self, items: Iterable[Item]) -> Iterator[Listed]:
        for position, item in enumerate(items):
            self.listing.update(repr((item.name, item.image_id)).encode(errors="surrogateescape"))
            self.listed += 1
            yield Listed(position, item)

    def write(self, finished: Iterator[Finished], tell: Callable[[Record], None]) -> int:
        """Write the parts; return the number of records."""
        fresh = 0
        records: list[Record] = []
        number = -1
        try:
            for positions, batch in finished:
                if positions[0] // self.size != number:
                    before, records = records, []
                    self._write_full(number, before)
                    number = positions[0] // self.size
                new = [image.record for image in batch if image.record]
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
        if not records:
            return
        how, path = self.how, self.folder / f"part-{number:05}.{self.how.format}"
        with (
            whole_file(path, "in parts") as aside,
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
        end, listing = self.ends[number]
        manifest = Manifest(
            start=number * self.size,
            end=end,
            listing=listing,
            digest=_digest(path),
            blank=sum(record.status == "blank" for record in records),
            unsure=writer.unsure,
            failures=[
                [utf8_name(record.file_name), record.kind, record.error]
                for record in records
                if record.error
            ],
            job=self.job,
        )
        text = json.dumps(asdict(manifest)) + "\n"
        write_text(path.with_suffix(".json"), text, "in parts")


def manifests(folder: Path) -> Iterator[tuple[str, Manifest]]:
    """Yield the manifests of whole parts, in order, by their names."""
    for path in sorted(folder.glob("part-*.json"), key=lambda path: (len(path.name), path.name)):
        if not NAME.fullmatch(path.name):
            continue
        try:
            manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
            whole = _digest(path.with_suffix(f".{manifest.job['format']}")) == manifest.digest
        except (OSError, ValueError, TypeError, KeyError):
            whole = False
        if whole:
            yield path.name, manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _check(folder: Path, was: dict[str, object], now: dict[str, object]) -> None:
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


def images_of(folder: Path) -> int | None:
    """Return the number of images of a finished job; None if the job is not finished."""
    try:
        return int(json.loads((folder / END).read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def merge_parts(folder: Path, output: Path | None = None) -> tuple[Path, Totals]:
    """Write the parts of a finished job as one file, as of a job without parts.

    Args:
        folder: of the parts.
        output: file to write, atomically; None: next to the folder, with its name.

    Raises:
        DataError: if a part is missing or damaged, or the file cannot be written.
        ConfigError: if the output is not captioner's.
    """
    images = images_of(folder)
    if images is None:
        raise DataError(f"{folder}: no finished job; caption into it first")
    found, end = dict(manifests(folder)), 0
    for manifest in found.values():
        if manifest.start != end:
            break
        end = manifest.end
    if end != images:
        raise DataError(
            f"{folder}: the part of image {end:,} is missing or damaged; run the same command of "
            f"captioner caption again, it writes that part"
        )
    form = str(next(iter(found.values())).job["format"]) if found else "jsonl"
    named = folder.resolve() if folder.name in ("", "..") else folder
    output = output or named.with_name(f"{named.name}.{form}")
    paths = [folder / Path(name).with_suffix(f".{form}") for name in found]
    with whole_file(output, "captions") as aside:
        (_join_parquet if form == "parquet" else _join)(paths, aside)
    return output, _totals(found.values(), output)


def _join(paths: list[Path], output: Path) -> None:
    with output.open("wb") as file:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)


def _join_parquet(paths: list[Path], output: Path) -> None:
    """Join tables into row groups as of a file that is written at once."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = parquet.read_schema(paths[0])
    with parquet.ParquetWriter(output, schema) as writer:
        rows: list[dict[str, object]] = []
        for path in paths:
            rows += parquet.read_table(path).to_pylist()
            while len(rows) >= ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows[:ROW_GROUP], schema))
                rows = rows[ROW_GROUP:]
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
