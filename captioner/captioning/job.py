"""A captioning job that writes a file: each image exactly once, whatever happens to the job."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from captioner.captioner import Captioner
from captioner.captioning.failures import ERRORS, lines_of_others
from captioner.captioning.journal import (
    Done,
    Journal,
    check_journals,
    forget,
    journals_of,
    salvaged,
)
from captioner.captioning.records import CaptioningOptions, ItemReader, Record, Totals
from captioner.captioning.sources import Item
from captioner.captioning.writers import write_output
from captioner.config import DecodingConfig
from captioner.encoder.preprocess import RESIZING
from captioner.errors import ConfigError, DataError
from captioner.system.batches import in_turn
from captioner.system.files import sweep
from captioner.system.foreign import plain
from captioner.system.memory import Memory
from captioner.system.ownership import check
from captioner.system.world import World

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class JobOptions(CaptioningOptions):
    """How to caption many images into a file.

    Attributes:
        format: one of `writers.FORMATS` that is one file.
        overwrite: forget what was done, replace what was written.
        retry_errors: try again what failed.
        stop_on_error: end the job at the first failure; what was done is kept.
        salvage: of a damaged journal keep the rows that are sound, do the others again, and set
            the damaged file aside.
    """

    format: str = "jsonl"
    overwrite: bool = False
    retry_errors: bool = False
    stop_on_error: bool = False
    salvage: bool = False


def caption_to_file(
    captioner: Captioner,
    items: Iterable[Item],
    output: Path,
    options: DecodingConfig | None = None,
    how: JobOptions | None = None,
    *,
    model: str,
    world: World | None = None,
    memory: Memory | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Totals:
    """Caption images into a file, in their order.

    A journal beside the output holds what is done; the output is written, whole, when all is. The
    same job started again does what is missing and ends with the same bytes.

    Args:
        captioner: on its device.
        items: images, listed alike by all processes.
        output: file to write.
        options: how to search, such as `captioner.settings(beam_size=5)`; None: as the model does.
        how: how to caption many into a file; None: the defaults.
        model: fingerprint of the model; another does not go on with the job.
        world: the processes that share the job; each takes its share of the batches.
        memory: see `caption_files`.
        tell: called with every record that is made in this sitting.
        say: called with what was salvaged.

    Raises:
        ConfigError: if the output is not this job's, or a setting is impossible.
        DataError: at the first failure, if `stop_on_error`; if a file cannot be written; if a
            journal is damaged, or was moved or removed while the job ran.
    """
    world, how = world or World(), how or JobOptions()
    options = options or captioner.settings(n_best=how.n_best)
    arithmetic = world.broadcast(captioner.encoder.arithmetic)  # ranks may have other hardware
    identity = _identity(model, arithmetic, options, how)
    with _claimed(output, how.overwrite) if world.leads else nullcontext():
        if how.salvage and world.leads:
            for salvage in salvaged(output, identity):
                say(salvage)
        sitting = world.broadcast(os.urandom(16))
        with closing(Journal(output, world.rank, identity, sitting)) as journal:
            world.wait()  # for all to have looked at what was there
            batches = _caption_batches(captioner, items, options, how, journal, world, memory)
            listed, fresh = _fill_journal(batches, journal, how, world, tell)
        counts = torch.tensor([fresh, listed], device=captioner.device)
        fresh, listed = map(int, world.sum(counts))  # also waits for all to be done
        totals = _write(journal, how, listed) if world.leads else None
        return replace(world.broadcast(totals) or Totals(0, 0, 0), fresh=fresh)


def _identity(
    model: str, arithmetic: str, options: DecodingConfig, how: JobOptions
) -> dict[str, object]:
    """Return what a record depends on besides the image."""
    identity: dict[str, object] = {
        "model": model,
        "arithmetic": arithmetic,
        "n_best": how.n_best,
        **options.model_dump(),
        "max_pixels": how.max_pixels,
        "scaled_decoding": how.scaled_decoding,
        "resizing": RESIZING,
    }
    if options.search == "sample":
        identity["batch_size"] = how.batch_size  # draws depend on the place in a batch
    return identity


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that was read: its position, digest and record, and whether it was done before."""

    position: int
    digest: bytes
    is_known: bool
    record: Record


def _caption_batches(
    captioner: Captioner,
    items: Iterable[Item],
    options: DecodingConfig,
    how: JobOptions,
    journal: Journal,
    world: World,
    memory: Memory | None,
) -> Iterator[tuple[list[int], list[Done]]]:
    """Caption this process's batches; what the journal knows is not captioned again.

    The images of a batch go through the network together, whatever came before: what is written
    about an image does not depend on where a job was interrupted.

    Yields:
        Of each batch the positions in the listing, and what came of the images.
    """
    # Random draws depend on the whole batch: it is sampled whole again, or not at all.
    together = options.search == "sample"
    reader = ItemReader(captioner.encoder.preprocess, how, memory)

    def read(asked: tuple[int, Item, frozenset[bytes], int]) -> tuple[_Image, Tensor | None]:
        position, item, known, place = asked
        digest = b""

        def is_wanted(content: bytes) -> bool:
            nonlocal digest
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
            return together or digest not in known

        record, pixels = reader.read(item, place, is_wanted)
        return _Image(position, digest, digest in known, record), pixels

    failures = not (how.retry_errors or how.stop_on_error)
    queue = (
        (
            (position, item, journal.digests(item.name, failures=failures), reader.memory.join())
            for position, item in batch
        )
        for batch in _share(items, how.batch_size, world)
    )
    for batch in captioner.captions_of(
        queue,
        read,
        options,
        n_best=how.n_best,
        needed=lambda images: not all(image.is_known for image in images),
        num_workers=how.num_workers,
    ):
        skip = not together or all(image.is_known for image, _ in batch)
        done = [
            Done(
                image.record.file_name,
                image.digest,
                None if found is None and image.is_known and skip else image.record.complete(found),
            )
            for image, found in batch
        ]
        yield [image.position for image, _ in batch], done


def _fill_journal(
    batches: Iterator[tuple[list[int], list[Done]]],
    journal: Journal,
    how: JobOptions,
    world: World,
    tell: Callable[[Record], None],
) -> tuple[int, int]:
    """Put batches into the journal, and tell of their new records.

    Returns:
        The number of images, and of those whose record is new.
    """
    listed = fresh = 0
    for positions, batch in tqdm(batches, unit="batch", disable=None if world.leads else True):
        journal.add(positions, batch)
        records = [image.record for image in batch if image.record]
        listed += len(batch)
        fresh += len(records)
        for record in records:
            tell(record)
            if record.error and how.stop_on_error:
                raise DataError(
                    f"{plain(record.file_name)}: {record.error} (--on-error fail); "
                    f"mend it, or leave the option out: {going_on(how.overwrite)}"
                )
    return listed, fresh


@contextmanager
def _claimed(output: Path, overwrite: bool) -> Iterator[None]:
    """Make sure that the output may be written, and for the time of a block by this job alone.

    Raises:
        ConfigError: if it may not.
    """
    if output.name == ERRORS:
        raise ConfigError(f"{output}: is where failures are listed; choose another name")
    if output.exists() and not output.is_file():
        raise ConfigError(f"{output}: not a file; leave --output out to write to stdout")
    check(output, "captions")
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{output.name}.captioner.lock")
    if os.path.lexists(lock) and (not lock.is_file() or lock.is_symlink() or lock.stat().st_size):
        raise ConfigError(f"{lock}: is where the job is locked, and holds something; move it away")
    lock.touch()  # where nothing can be written this says so; the lock would be "not acquired"
    try:
        with FileLock(lock, blocking=False):
            try:
                check_journals(output)
                lines_of_others(output)  # that cannot be read is said now, not at the end
                sweep(output)
                sweep(output.with_name(ERRORS))
                if overwrite:
                    forget(output)
                elif not journals_of(output) and (rows := _rows(output)):
                    raise ConfigError(
                        f"{output}: exists, and has no journal to go on with; --output FILE writes "
                        f"elsewhere, --overwrite gives up the {rows:,} lines in it"
                    )
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ConfigError(f"{output}: another process is writing it; wait for its end") from error


def _rows(output: Path) -> int:
    if not output.exists():
        return 0
    with output.open("rb") as file:
        return sum(1 for _ in file)


def going_on(overwrite: bool) -> str:
    """Say how a job that was cut off goes on; given again, `--overwrite` would start it over."""
    again = "the same command" + (" without --overwrite" if overwrite else "")
    return f"what was done is kept, {again} goes on"


def _share(items: Iterable[Item], size: int, world: World) -> Iterator[Iterator[tuple[int, Item]]]:
    """Yield this process's batches of items with their positions in the listing.

    Batches are cut from the whole listing, so they are the same for any number of processes.
    """
    for number, batch in enumerate(in_turn(enumerate(items), size)):
        if number % world.size == world.rank:
            yield batch
        else:
            deque(batch, maxlen=0)  # none of it is kept


def _write(journal: Journal, how: JobOptions, listed: int) -> Totals:
    output = journal.output
    journal.check_place()
    if output.exists() and not output.is_file():
        raise DataError(
            f"{output}: not written: a folder or a pipe took its place while the job ran; what was "
            f"done is kept: move that away, and the same command goes on"
        )
    return write_output(journal.merged(listed), output, how.format, n_best=how.n_best)
