"""A captioning job that writes a file and can be resumed: each image is captioned once."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from captioner.captioning.engine import Batches, Engine, Finished, Listed, Local
from captioner.captioning.failures import ERRORS, listed_failures
from captioner.captioning.journal import (
    Done,
    Journal,
    check_journals,
    forget,
    journals_of,
    known_arithmetic,
    lock_of,
    salvaged,
)
from captioner.captioning.progress import Progress
from captioner.captioning.records import CaptioningOptions, Record, Totals, digest_of_item
from captioner.captioning.run_state import RunState
from captioner.captioning.sources import Item
from captioner.captioning.writers import write_output
from captioner.config import DecodingConfig
from captioner.encoder.preprocess import RESIZING
from captioner.errors import ConfigError, DataError, within_memory
from captioner.system.batches import in_turn
from captioner.system.cores import cores
from captioner.system.disk import writing
from captioner.system.files import new_folder, sweep
from captioner.system.foreign import plain
from captioner.system.memory import Held, Memory
from captioner.system.ownership import check
from captioner.system.stages import during
from captioner.system.world import World

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.captioning.maps import MapFolder


@dataclass(frozen=True, slots=True)
class JobOptions(CaptioningOptions):
    """How to caption many images into a file."""

    format: str = "jsonl"  # of `writers.FORMATS`, one that writes one file
    overwrite: bool = False  # discards the journal and replaces the output
    retry_errors: bool = False
    stop_on_error: bool = False
    salvage: bool = False  # see `journal.salvaged`
    wording: Callable[[str], str] | None = None  # the journal holds the model's own text
    min_confidence: float | None = None  # see `Writer`
    progress: str = "bar"  # of `progress.FORMS`
    command: str = ""  # that continues the job, for `captioner status`

    @property
    def needs_words(self) -> bool:
        """Whether the output needs `Caption.words`."""
        return self.words or self.min_confidence is not None


def caption_to_file(
    load: Callable[[], Captioner],
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
    count: Callable[[], int | None] = lambda: None,
    maps: MapFolder | None = None,
    engine: Engine | None = None,
) -> Totals:
    """Caption images into a file, in the order of the images.

    A journal next to the output stores finished images. The output is written atomically when all
    images are done. An interrupted job started again captions only what is missing, and its output
    is byte-identical to that of an uninterrupted job.

    All processes list the same images in the same order. A journal of another `model`, a
    fingerprint, is refused. `load` is called for the captioner; not at all if the journal has all
    images, because importing torch takes longer than the rest. `tell` is called with each record of
    this run, `say` with messages about salvaged journals and images of earlier runs. `count` counts
    the images for the progress bar, and returns None if that takes long. `maps` draws the images of
    this run, whose captions need `JobOptions.maps`. `engine` captions; None: this machine.

    Raises:
        ConfigError: if the output belongs to another job, or a setting is impossible.
        DataError: at the first failure, if `stop_on_error`; if a file cannot be written; if a
            journal is damaged, or was moved or removed while the job ran.
    """
    world, how = world or World(), how or JobOptions()
    load, memory = cache(load), memory or Memory(how.max_memory)
    options = options or load().settings(n_best=how.n_best)
    identity, known = identity_of(model, options, how), None
    if world.size == 1 and not (how.overwrite or how.salvage or maps or engine):
        known = known_arithmetic(output, identity)
    engine = engine or Local(load, options, replace(how, words=how.needs_words), memory, maps)
    # Ranks may have different hardware.
    identity["arithmetic"] = world.broadcast(known or engine.arithmetic)
    with _claimed(output, how.overwrite) if world.leads else nullcontext():
        if how.salvage and world.leads:
            for salvage in salvaged(output, identity):
                say(salvage)
        run_id = world.broadcast(os.urandom(16))
        with _progress(output, how, count, world, run_id.hex()) as progress:
            with closing(Journal(output, world.rank, identity, run_id)) as journal:
                progress.follow(journal)
                world.wait()  # until every process has opened the existing journals
                batches = _own_batches(items, how, world, journal)
                first = partial(_known_first, engine, how, journal, memory)
                done = (first if known else engine.caption)(batches)
                listed, fresh = _fill_journal(done, journal, how, progress, tell)
            fresh, listed = _sums(world, load, fresh, listed)
            totals = _write(journal, how, listed, progress.state) if world.leads else None
        _say_absent(journal.absent(fresh) if world.leads else iter(()), say)
        return replace(world.broadcast(totals) or Totals(0, 0, 0), fresh=fresh)


def _sums(world: World, load: Callable[[], Captioner], fresh: int, listed: int) -> tuple[int, int]:
    """Return the sums over all processes, when all have finished."""
    if world.size == 1:
        return fresh, listed
    import torch

    fresh, listed = map(int, world.sum(torch.tensor([fresh, listed], device=load().device)))
    return fresh, listed


def identity_of(model: str, options: DecodingConfig, how: JobOptions) -> dict[str, object]:
    """Return everything that a record depends on, except the image and the arithmetic."""
    identity: dict[str, object] = {
        "model": model,
        "n_best": how.n_best,
        **options.model_dump(mode="json"),
        "max_pixels": how.max_pixels,
        "scaled_decoding": how.scaled_decoding,
        "resizing": RESIZING,
        "words": how.needs_words or None,
    }
    if options.search == "sample":
        identity["batch_size"] = how.batch_size  # random draws depend on the position in a batch
    return identity


def _known_first(
    engine: Engine, how: JobOptions, journal: Journal, memory: Memory, batches: Batches
) -> Iterator[Finished]:
    """Yield batches while the journal has all of their images; `engine` does the others."""
    with within_memory("to read"), ThreadPoolExecutor(how.num_workers or cores()) as pool:
        for batch in batches:
            entries: list[Listed] = []
            for entry in batch:
                entries.append(entry)
                if isinstance(entry.item.source, bytes | Held):  # a stream is not read again
                    break
            done = _known(entries, memory, pool)
            if done is None:
                break
            yield [entry.position for entry in entries], done
        else:
            return
    journal.check({"arithmetic": engine.arithmetic})
    yield from engine.caption(chain([chain(entries, batch)], batches))


def _known(entries: list[Listed], memory: Memory, pool: ThreadPoolExecutor) -> list[Done] | None:
    """Return the images of a batch as done; None if the journal lacks one."""
    items = [entry.item for entry in entries]
    last_is_read_once = isinstance(items[-1].source, bytes | Held)
    if last_is_read_once or not all(entry.known for entry in entries):
        return None
    digests = [*pool.map(partial(digest_of_item, memory=memory), items)]
    if not all(d in entry.known for d, entry in zip(digests, entries, strict=True)):
        return None
    pairs = zip(items, digests, strict=True)
    return [Done(item.name, digest, None, item.image_id) for item, digest in pairs]


def _counts_failures(how: JobOptions) -> bool:
    """Whether an image that failed before is done."""
    return not (how.retry_errors or how.stop_on_error)


def _progress(
    output: Path, how: JobOptions, count: Callable[[], int | None], world: World, run: str
) -> Progress:
    """Return what counts and shows the progress of a run."""

    def show_life() -> None:
        with suppress(OSError):
            os.utime(lock_of(output))

    return Progress(how.progress, count, world, run=run, command=how.command, alive=show_life)


def _fill_journal(
    batches: Iterator[Finished],
    journal: Journal,
    how: JobOptions,
    progress: Progress,
    tell: Callable[[Record], None],
) -> tuple[int, int]:
    """Add batches to the journal; return the number of images, and of new records."""
    listed = fresh = 0
    with progress.bar():
        for positions, batch in batches:
            records = [image.record for image in batch if image.record]
            failed = sum(record.error is not None for record in records)
            with during("writing"):
                journal.add(positions, batch, progress.add(len(batch), len(records), failed))
            listed += len(batch)
            fresh += len(records)
            for record in records:
                tell(record)
                if record.error and how.stop_on_error:
                    raise DataError(
                        f"{plain(record.file_name)}: {record.error}; fix the image or remove "
                        f"--on-error fail; {how_to_continue(how.overwrite)}"
                    )
    return listed, fresh


@contextmanager
def _claimed(output: Path, overwrite: bool) -> Iterator[None]:
    """Lock the output for this job, and check that the job may write it."""
    if output.name == ERRORS:
        raise ConfigError(f"{output}: reserved for the list of failures; choose another name")
    if output.exists() and not output.is_file():
        raise ConfigError(f"{output}: not a regular file; to write to stdout, remove --output")
    check(output, "captions")
    with locked(output):
        check_journals(output)
        listed_failures(output)  # an unreadable list fails now, not at the end
        sweep(output)
        sweep(output.with_name(ERRORS))
        if overwrite:
            forget(output)
        elif not journals_of(output) and output.exists() and output.stat().st_size:
            raise ConfigError(
                f"{output}: already exists ({output.stat().st_size:,} bytes) and has no journal to "
                f"resume from; choose another --output, or --overwrite to replace it"
            )
        yield


@contextmanager
def locked(output: Path, shown: object = None) -> Iterator[None]:
    """Hold the lock of an output; refuse a file of the lock's name that is not captioner's.

    `shown` is what a message names; None: the output.
    """
    lock = lock_of(output)
    if os.path.lexists(lock) and (not lock.is_file() or lock.is_symlink() or lock.stat().st_size):
        raise ConfigError(f"{lock}: not a lock file of captioner; move it away")
    with new_folder(output.parent), writing(output):
        lock.touch()  # in an unwritable folder FileLock would only say that the lock is taken
    try:
        with FileLock(lock, blocking=False):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ConfigError(
            f"{shown or output}: in use by another process; wait until it ends"
        ) from error


def how_to_continue(overwrite: bool) -> str:
    """Return how to continue an interrupted job; `--overwrite` would start it over."""
    without = " without --overwrite" if overwrite else ""
    return f"results so far are kept; run the same command{without} to continue"


def _own_batches(items: Iterable[Item], how: JobOptions, world: World, journal: Journal) -> Batches:
    """Yield this process's batches, cut from the full list, with what the journal knows."""
    known = partial(journal.digests, failures=_counts_failures(how))
    for number, batch in enumerate(in_turn(enumerate(items), how.batch_size)):
        if number % world.size == world.rank:
            yield (Listed(position, item, known(item.name)) for position, item in batch)
        else:
            deque(batch, maxlen=0)  # skip the batch of another process


def _say_absent(absent: Iterator[tuple[str, str | None]], say: Callable[[str], None]) -> None:
    """Say which images of earlier runs the output lacks, each with its new name or None."""
    counts, first = Counter[bool](), dict[bool, tuple[str, str]]()
    for was, now in absent:
        counts[now is None] += 1
        first.setdefault(now is None, (plain(was), plain(now)))
    if counts[True]:
        say(
            f"{counts[True]:,} image(s) of earlier runs are not among the images of this run, such "
            f"as {first[True][0]}; the output does not have them any more"
        )
    if counts[False]:
        was, now = first[False]
        say(f"{counts[False]:,} image(s) have another name than before, such as {now}, once {was}")


def _write(journal: Journal, how: JobOptions, listed: int, state: RunState) -> Totals:
    output = journal.output
    journal.check_place()
    if output.exists() and not output.is_file():
        raise DataError(
            f"{output}: not written: it became a folder or a pipe while the job ran; move that "
            f"away; {how_to_continue(how.overwrite)}"
        )
    with during("writing"):
        totals = write_output(
            journal.merged(listed),
            output,
            how.format,
            n_best=how.n_best,
            wording=how.wording,
            words=how.words,
            min_confidence=how.min_confidence,
        )
    state.total, state.finished = listed, True
    journal.finish(state)
    return totals
