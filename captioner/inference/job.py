"""A captioning job that writes a file: each image exactly once, whatever happens to the job."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from captioner.config import DecodingConfig
from captioner.errors import ConfigError, DataError
from captioner.files import sweep, whole_file
from captioner.foreign import plain
from captioner.inference.failures import ERRORS, failure_list, lines_of_others
from captioner.inference.journal import Journal, check_journals, forget, journals_of, salvaged
from captioner.inference.local import CaptioningOptions, Record, caption_batches
from captioner.inference.sources import Item
from captioner.inference.writers import write_records
from captioner.memory import Memory
from captioner.models.captioner import Captioner
from captioner.models.pipeline import in_turn
from captioner.models.preprocess import RESIZING
from captioner.ownership import check
from captioner.world import World


@dataclass(frozen=True, slots=True)
class Totals:
    """What a job comes to.

    Attributes:
        images: listed.
        failed: of these.
        fresh: captioned or failed in this sitting; the others were done before.
        errors: file that lists the failures; None where there are none.
    """

    images: int
    failed: int
    fresh: int
    errors: Path | None


def caption_to_file(
    captioner: Captioner,
    items: Iterable[Item],
    output: Path,
    options: DecodingConfig | None = None,
    how: CaptioningOptions | None = None,
    *,
    model: str,
    format: str,
    overwrite: bool = False,
    retry_errors: bool = False,
    stop_on_error: bool = False,
    salvage: bool = False,
    world: World | None = None,
    tell: Callable[[Record], None] = lambda record: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    memory: Memory | None = None,
) -> Totals:
    """Caption images into a file, in their order.

    A journal beside the output holds what is done; the output is written, whole, when all is. The
    same job started again does what is missing and ends with the same bytes.

    Args:
        captioner: on its device.
        items: images, listed alike by all processes.
        output: file to write.
        options: how to search, such as `captioner.settings(beam_size=5)`; None: as the model does.
        how: how to caption many; None: the defaults.
        model: fingerprint of the model; another does not go on with the job.
        format: one of `writers.FORMATS` that is one file.
        overwrite: forget what was done, replace what was written.
        retry_errors: try again what failed.
        stop_on_error: end the job at the first failure; what was done is kept.
        salvage: of a damaged journal keep the rows that are sound, do the others again, and
            set the damaged file aside.
        world: the processes that share the job; each takes its share of the batches.
        tell: told every record that is made in this sitting.
        say: told what was salvaged.
        memory: see `caption_batches`.

    Raises:
        ConfigError: if the output is not this job's, or a setting is impossible.
        DataError: at the first failure, if `stop_on_error`; if a file cannot be written; if a
            journal is damaged, or was moved or removed while the job ran.
    """
    world = world or World()
    how = how or CaptioningOptions()
    options = options or captioner.settings(n_best=how.n_best)
    drawn = options.search == "sample"
    arithmetic = world.broadcast(captioner.encoder.arithmetic)  # ranks may have other hardware
    identity = {
        "model": model,
        "arithmetic": arithmetic,
        "n_best": how.n_best,
        **options.model_dump(),
        "max_pixels": how.max_pixels,
        "scaled_decoding": how.scaled_decoding,
        "resizing": RESIZING,
    }
    if drawn:
        identity["batch_size"] = how.batch_size  # draws depend on the place in a batch
    with _claimed(output, overwrite) if world.leads else nullcontext():
        if salvage and world.leads:
            for said in salvaged(output, identity):
                say(said)
        sitting = world.broadcast(os.urandom(16))
        journal = Journal(output, world.rank, identity, sitting)
        world.wait()  # for all to have looked at what was there
        fresh = listed = 0
        places: deque[list[int]] = deque()

        def known(item: Item) -> frozenset[bytes]:
            return journal.digests(item.name, failures=not (retry_errors or stop_on_error))

        try:
            done = caption_batches(
                captioner,
                _share(items, how.batch_size, world, places),
                options,
                how,
                known=known,
                together=drawn,  # drawn anew, to be what it was
                memory=memory,
            )
            batches = tqdm(done, unit="batch", disable=None if world.leads else True)
            for batch in batches:
                # An item that ended the listing has a position, and nothing came of it.
                positions = places.popleft()[: len(batch)]
                listed += len(positions)
                journal.add(positions, batch)
                records = [image.record for image in batch if image.record]
                fresh += len(records)
                for record in records:
                    tell(record)
                    if record.error and stop_on_error:
                        raise DataError(
                            f"{plain(record.file_name)}: {record.error} (--on-error fail); "
                            f"mend it, or leave the option out: {going_on(overwrite)}"
                        )
        finally:
            journal.close()
        counts = torch.tensor([fresh, listed + sum(map(len, places))], device=captioner.device)
        fresh, listed = map(int, world.sum(counts))  # also waits for all to be done
        totals = _write(journal, format, how.n_best, fresh, listed) if world.leads else None
        return world.broadcast(totals) or Totals(0, 0, fresh, None)


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


def _share(
    items: Iterable[Item], size: int, world: World, places: deque[list[int]]
) -> Iterator[Iterator[Item]]:
    """Yield this process's batches, and note where their items stand in the listing.

    Batches are cut from the whole listing, so they are the same for any number of processes.
    """

    def noted(batch: Iterator[tuple[int, Item]], positions: list[int]) -> Iterator[Item]:
        for position, item in batch:
            positions.append(position)
            yield item

    for number, batch in enumerate(in_turn(enumerate(items), size)):
        if number % world.size == world.rank:
            places.append([])
            yield noted(batch, places[-1])
        else:
            deque(batch, maxlen=0)  # none of it is kept


def _write(journal: Journal, format: str, n_best: int, fresh: int, listed: int) -> Totals:
    output, images, failed = journal.output, 0, 0
    journal.check_place()
    if output.exists() and not output.is_file():
        raise DataError(
            f"{output}: not written: a folder or a pipe took its place while the job ran; what was "
            f"done is kept: move that away, and the same command goes on"
        )
    with (
        whole_file(output, "captions") as aside,
        failure_list(output) as add_failure,
        aside.open("w", encoding="utf-8") as file,
    ):
        for record in write_records(journal.merged(listed), file, format=format, n_best=n_best):
            images += 1
            if record.error:
                failed += 1
                add_failure(record.file_name, record.kind, record.error)
        if images != listed:
            raise DataError(f"{output}: not written: {images:,} rows for {listed:,} images")
    return Totals(images, failed, fresh, output.with_name(ERRORS) if failed else None)
