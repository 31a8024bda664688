"""`captioner caption`."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from captioner.cli.messages import say_maps, say_texts, say_totals
from captioner.cli.options import (
    SLASH,
    OutputPath,
    decoding_options,
    device_option,
    leads,
    models_option,
    read_bytes,
    say,
)
from captioner.cli.wording_options import wording_options
from captioner.errors import ConfigError, DataError, ImageError, ModelError
from captioner.system.foreign import plain
from captioner.system.stages import during

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.captioning.job import JobOptions
    from captioner.captioning.maps import MapFolder
    from captioner.captioning.progress import Progress
    from captioner.captioning.records import Record, Totals
    from captioner.captioning.sidecars import Existing, Sidecars
    from captioner.captioning.sources import Item
    from captioner.captioning.wording import Wording
    from captioner.config import DecodingOverrides
    from captioner.system.memory import Memory
    from captioner.system.world import World

SHOW_RATE_FROM = 20  # images; with fewer, a rate means nothing
BLANK = "blank: the CNN sees one colour only, so the caption says nothing about the image"
MOST_FAILURES = 1000  # before the first image, without loading the model
FORMATS = ("text", "jsonl", "csv", "coco", "txt", "caption", "xmp", "parquet")
SIDECARS = ("txt", "caption", "xmp")  # formats of files next to the images
ENDINGS = {".parquet": "parquet", ".csv": "csv", ".json": "coco", ".txt": "text", ".tsv": "text"}


if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # that of Click 8.1 is not generic


class _Format(_Choice):
    """A format of captioner's own, or the name of a plug-in's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from captioner.system.plugins import names, plugin

        if value in self.choices or plugin("writers", value) is None:
            known = [*self.choices, *names("writers")]
            value = click.Choice(known).convert(value, param, ctx)
        return str(value)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run: every option of the command except those of the search."""

    models: list[Path]
    output: Path | None
    format: str
    wording: Wording
    existing: Existing
    n_best: int
    words: bool
    min_confidence: float | None
    overwrite: bool
    stop_on_error: bool
    retry_errors: bool
    salvage: bool
    dry_run: bool
    recursive: bool
    repeats: bool
    image_column: str | None
    max_pixels: int | None
    scaled_decoding: bool
    engine: str
    num_gpus: float | None
    batch_size: int
    num_workers: int | None
    max_memory: int | None
    maps: Path | None
    progress: str
    device: str
    address: str = ""  # of the folder of parts

    @property
    def command(self) -> str:
        """The command line that continues this job."""
        from captioner.captioning.progress import command_to_continue

        return command_to_continue(sys.argv[1:])

    @property
    def in_parts(self) -> bool:
        """Whether the output is a folder of parts."""
        return bool(self.output and (self.output.is_dir() or self.output.name == SLASH))

    @property
    def folder(self) -> Path | str:
        """The folder of parts, or its address."""
        assert self.output
        if self.address:
            return self.address
        return self.output.parent if self.output.name == SLASH else self.output

    @property
    def is_beside(self) -> bool:
        """Whether each caption is written next to its image."""
        return self.format in SIDECARS

    def sidecars(self) -> Sidecars:
        """Return the files next to the images."""
        from captioner.captioning.sidecars import Sidecars

        return Sidecars(
            self.format,
            existing=self.existing,
            overwrite=self.overwrite,
            wording=self.wording.key,
        )

    def job(self) -> JobOptions:
        """Return the options that captioning needs."""
        from captioner.captioning.job import JobOptions
        from captioner.images.decode import MAX_PIXELS

        options = {field.name: getattr(self, field.name) for field in fields(JobOptions)}
        options |= {"max_pixels": self.max_pixels or MAX_PIXELS, "maps": self.maps is not None}
        return JobOptions(**options)


@click.command("caption")
@click.argument("images", nargs=-1, required=True)
@models_option
@click.option(
    "--output",
    type=OutputPath(),
    help="File or address to write; FOLDER/: parts, for `captioner merge`.  [default: stdout]",
)
@click.option(
    "--format",
    type=_Format(FORMATS),
    help="text: path, tab, caption; txt, caption, xmp: a file of this ending next to each image; "
    "or the name of a plug-in's.  [default: from --output's extension, else jsonl; text on stdout]",
)
@wording_options
@click.option("--n-best", type=click.IntRange(1, 1000), default=1, help="Captions per image.")
@click.option("--words", is_flag=True, help="Write the log-probability of each word.")
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    help="Mark captions whose words have a geometric mean probability below this.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Discard earlier results of captioner; never what others wrote.",
)
@click.option(
    "--on-error",
    "stop_on_error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    callback=lambda context, option, choice: choice == "fail",  # noqa: ARG005
    show_default=True,
    help="skip: report a broken image and continue; fail: stop.",
)
@click.option("--retry-errors", is_flag=True, help="Retry images that failed before.")
@click.option("--salvage", is_flag=True, help="Keep the intact rows of a damaged journal.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Count the images, or show what would change in files next to images, and stop.",
)
@click.option("--recursive", is_flag=True, help="Also search subfolders.")
@click.option("--repeats", is_flag=True, help="Caption a file again where it is listed again.")
@click.option("--image-column", help="Column of image paths in a table.  [default: guessed]")
@click.option("--max-pixels", type=click.IntRange(1, 2**40), help="Refuse larger images.")
@click.option("--scaled-decoding", is_flag=True, help="Decode large JPEGs at reduced size: faster.")
@click.option(
    "--maps",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Draw where the model looks before each word: one PNG per image.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: the cluster at $RAY_ADDRESS, else this machine.",
)
@click.option("--num-gpus", type=click.FloatRange(0, 1024), help="ray: GPUs per worker.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 2**16),
    default=256,
    show_default=True,
    help="Images per batch; reduced when memory runs out.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(1, 1024),
    help="Threads that read and decode images; without a GPU they also compute.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    callback=read_bytes,
    help="Memory for reading and decoding images, such as 2G; ray: per worker.  "
    "[default: from cores and free memory]",
)
@click.option(
    "--progress",
    type=click.Choice(["bar", "json", "none"]),
    default="bar",
    show_default=True,
    help="bar: on a terminal, with --output; json: a line of numbers a second, on stderr.",
)
@decoding_options
@device_option
def command(
    images: tuple[str, ...],
    models: tuple[Path, ...],
    output: str | Path | None,
    format: str | None,
    decoding: DecodingOverrides,
    **options: Any,
) -> None:
    """Caption IMAGES: files, folders, globs, archives, tables, or - for paths on stdin.

    Archives are ZIP and tar files; pipe:COMMAND reads the tar stream that a command writes. Tables
    are CSV, TSV, JSON Lines and JSON files with a column of paths. All may be at addresses, such as
    s3://BUCKET/FOLDER/.

    Captions go to stdout (or --output), everything else to stderr. A broken file is reported, the
    rest are captioned, and the exit code is 1. With --output, the same command given again
    continues an interrupted job.
    """
    from captioner.run_dir import find_models

    address = output if isinstance(output, str) else ""
    in_parts = address.endswith("/")
    output = _local(output)
    default = ENDINGS.get(output.suffix.lower(), "jsonl") if output else "text"
    options |= {"address": address if in_parts else "", "format": format or default}
    how = RunOptions(models=[], output=output, **options)
    if problem := next(_problems(how), None):
        raise click.UsageError(problem)
    if how.dry_run:
        _dry_run(images, decoding, how, models)
        return
    how = replace(how, models=find_models(models, say))
    here = _to_parts if how.in_parts else _to_file if output else _to_stdout
    caption = _on_ray if how.engine == "ray" else here
    started = time.perf_counter()
    with _kept("" if in_parts else address, how):
        totals = caption(images, decoding, how)
    if totals:
        _say_totals(totals, time.perf_counter() - started, how)
    if totals and totals.failed and not _is_known(totals, how):
        raise SystemExit(1)


def _local(output: str | Path | None) -> Path | None:
    """Return the file that a job writes; of an address, the file that is put there."""
    if not isinstance(output, str):
        return output
    from captioner.captioning.remote_output import check_address, local_output

    if output.endswith("/"):
        check_address(output, is_folder=True)
        return Path(SLASH)
    return local_output(output)


@contextmanager
def _kept(address: str, how: RunOptions) -> Iterator[None]:
    """Put the output at its address, if it has one, after the block."""
    if not address or os.environ.get("RANK", "0") != "0":
        yield
        return
    from captioner.captioning.remote_output import kept

    with kept(address, overwrite=how.overwrite, say=say):
        yield


def _dry_run(
    images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions, models: tuple[Path, ...]
) -> None:
    """Count the images, or show what would change next to them; write nothing."""
    from captioner.captioning.records import caption_files
    from captioner.cli.dry_run import count_images, show_changes
    from captioner.run_dir import find_models

    def caption(items: list[Item]) -> Iterator[Record]:
        from captioner.captioner import Captioner

        captioner = Captioner.load(find_models(models, say), how.device)
        records = caption_files(captioner, items, captioner.settings(**decoding), how.job())
        return (record.worded(how.wording) for record in records)

    items = _items(images, how, None)
    beside = how.is_beside
    failed = show_changes(items, how.sidecars(), caption) if beside else count_images(items)
    if failed:
        raise SystemExit(1)


def _is_known(totals: Totals, how: RunOptions) -> bool:
    """Whether all failures are known from earlier runs; say so if nothing is new."""
    if totals.new_failed or not how.output:
        return False
    if how.overwrite or how.retry_errors or how.stop_on_error:
        return False
    if not totals.fresh:
        say(f"nothing new; {totals.failed:,} known failure(s) in {totals.errors}")
    return True


def _to_stdout(images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions) -> Totals:
    """Write each caption at once, to stdout or next to its image."""
    from captioner.captioning.records import Record, Totals, caption_files
    from captioner.captioning.writers import SidecarWriter, make_writer
    from captioner.system.memory import Memory

    memory = Memory(how.max_memory)
    items = _items(images, how, memory)
    maps = _map_folder(how)
    count = failed = blank = 0
    writer = make_writer(
        how.format,
        lambda writer: writer(
            sys.stdout,
            n_best=how.n_best,
            wording=how.wording,
            words=how.words,
            min_confidence=how.min_confidence,
            existing=how.existing,
            overwrite=how.overwrite,
        ),
    )
    with ExitStack() as stack:
        stack.enter_context(writer)
        if isinstance(writer, SidecarWriter):
            items = writer.texts.missing(items)
        items, has_image = _until_image(items)
        if has_image:
            load, _ = stack.enter_context(_started(images, how))
            captioner = load()
            options = captioner.settings(n_best=how.n_best, **decoding)
            job = how.job()
            job = replace(job, words=job.needs_words)
            records = caption_files(
                captioner, items, options, job, memory=memory, digests=how.is_beside
            )
        else:  # no need for the model
            records = (Record(i.name).complete(cast(ImageError, i.source)) for i in items)
        progress = stack.enter_context(_shown(images, how))
        for captioned in records:
            with during("writing"):
                record = writer.write(captioned)
                sys.stdout.flush()
            count += 1
            failed += record.error is not None
            progress.add(1, 1, record.error is not None)
            blank += record.status == "blank"
            _report(record)
            if maps:
                maps.add(record)
            if record.error and how.stop_on_error:
                break
    say_maps(maps)
    if isinstance(writer, SidecarWriter):
        say_texts(writer.texts)
    return Totals(count, failed, count, blank=blank, renamed=writer.renamed, unsure=writer.unsure)


def _shown(images: tuple[str, ...], how: RunOptions) -> Progress:
    """Return what shows the progress of captions that go to stdout or next to the images."""
    from captioner.captioning.progress import Progress

    is_json = how.progress == "json"
    return Progress(how.progress, partial(_total, images, how) if is_json else lambda: None)


def _until_image(items: Iterator[Item]) -> tuple[Iterator[Item], bool]:
    """Look for an image among the first items; return all items and whether there may be one."""
    first: list[Item] = []
    try:
        for item in items:
            first.append(item)
            if not isinstance(item.source, ImageError) or len(first) == MOST_FAILURES:
                return chain(first, items), True
    except Exception as error:  # the failures before it are told first
        return chain(first, _raised(error)), False
    return iter(first), False


def _raised(error: Exception) -> Iterator[Item]:
    raise error
    yield


def _to_file(
    images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions
) -> Totals | None:
    """Caption into a file, with a journal; several processes may share the work."""
    from captioner.captioning.job import caption_to_file, how_to_continue
    from captioner.config import changed_decoding
    from captioner.model_config import fingerprint, read_config
    from captioner.system.memory import Memory

    assert how.output
    memory = Memory(how.max_memory)
    items = _items(images, how, memory)
    maps = _map_folder(how)
    options = changed_decoding(read_config(how.models[0]).decoding, how.n_best, decoding)
    model = "+".join(map(fingerprint, how.models))
    with _started(images, how) as (load, world):

        def fitting() -> Captioner:
            captioner = load()
            captioner.settings(n_best=how.n_best, **decoding)
            if "+".join(map(fingerprint, how.models)) != model:
                raise ModelError("the model changed meanwhile; run the same command again")
            return captioner

        try:
            totals = caption_to_file(
                fitting,
                items,
                how.output,
                options,
                how.job(),
                model=model,
                world=world,
                memory=memory,
                tell=_report,
                say=say,
                count=partial(_total, images, how),
                maps=maps,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {how_to_continue(how.overwrite)}") from None
        say_maps(maps)
        return totals if world.leads else None


def _to_parts(images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions) -> Totals:
    """Caption into a folder of parts."""
    from captioner.captioning.engine import Local
    from captioner.captioning.job import how_to_continue
    from captioner.captioning.parts import caption_to_parts
    from captioner.model_config import fingerprint
    from captioner.system.memory import Memory

    memory, job = Memory(how.max_memory), how.job()
    with _started(images, how) as (load, world):
        if world.size > 1:
            raise click.UsageError("several processes need --output FILE, not a folder")
        captioner = load()
        options = captioner.settings(n_best=how.n_best, **decoding)
        engine = Local(lambda: captioner, options, replace(job, words=job.needs_words), memory)
        model = "+".join(map(fingerprint, how.models))
        items = _items(images, how, memory)
        try:
            return caption_to_parts(
                engine,
                items,
                how.folder,
                options,
                job,
                model=model,
                tell=_report,
                say=say,
                count=partial(_total, images, how),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {how_to_continue(how.overwrite)}") from None


def _on_ray(images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions) -> Totals:
    """Caption into a file, on a Ray cluster."""
    from captioner.captioning.job import how_to_continue
    from captioner.captioning.ray import caption_with_ray

    assert how.output
    try:
        return caption_with_ray(
            how.models,
            _items(images, how, None),
            how.folder if how.in_parts else how.output,
            decoding,
            how.job(),
            format=how.format,
            in_parts=how.in_parts,
            wording=how.wording,
            min_confidence=how.min_confidence,
            num_gpus=how.num_gpus or 0,
            tell=_report,
            say=say,
            count=partial(_total, images, how),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {how_to_continue(how.overwrite)}") from None


def _total(images: tuple[str, ...], how: RunOptions) -> int | None:
    """Count the images; None if that reads a compressed archive, a store, a pipe or stdin."""
    from captioner.system.addresses import COMMAND

    if _is_read_once(images) or any(name.startswith(COMMAND) or "://" in name for name in images):
        return None
    total = 0
    for item in _items(images, how, None, quiet=True):
        if isinstance(item.source, bytes):
            return None
        total += 1
    return total


def _items(
    images: tuple[str, ...], how: RunOptions, memory: Memory | None, *, quiet: bool = False
) -> Iterator[Item]:
    """List the images lazily; unless `quiet`, say at the end what was left out."""
    from captioner.captioning.sources import list_images

    if "-" in images and sys.stdin is None:
        raise DataError("stdin is closed; pass the paths as arguments")
    if "-" in images and isinstance(sys.stdin, io.TextIOWrapper):
        # Paths may hold bytes that are not UTF-8; only a line feed ends a path.
        encoding = sys.getfilesystemencoding() if os.name == "posix" else None
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape", newline="\n")
    unread: Counter[str] = Counter()
    items = list_images(
        images,
        recursive=how.recursive,
        stdin=sys.stdin or (),
        image_column=how.image_column,
        memory=memory,
        unread=unread,
    )
    return _once(items, unread, how, quiet=quiet)


def _once(
    items: Iterator[Item], unread: Counter[str], how: RunOptions, *, quiet: bool
) -> Iterator[Item]:
    """Yield each file once, unless `how.repeats`; say at the end what was left out."""
    from captioner.images.members import unread_kinds
    from captioner.images.remote_content import RemoteFile
    from captioner.system.seen import Seen

    seen = Seen()
    repeated = 0
    respelled, first = 0, None
    for item in items:
        respelled += bool(item.written)
        first = first or (item if item.written else None)
        is_file = isinstance(item.source, Path | RemoteFile) and not how.repeats
        path = item.name if "://" in item.name else os.path.normpath(item.name)
        if is_file and not seen.add(path):
            repeated += 1
            continue
        yield item
    if quiet or not leads():
        return
    if repeated:
        say(f"{repeated:,} path(s) listed again and captioned once (--repeats captions each)")
    if first:
        say(
            f"{respelled:,} path(s) have another spelling or folder on disk "
            f"(first: {plain(first.written)} is {plain(first.name)})"
        )
    if unread:
        say(
            f"{sum(unread.values()):,} file(s) passed over, captioner does not read their kind "
            f"({unread_kinds(unread)}); convert them to JPEG or PNG"
        )


def _is_read_once(images: tuple[str, ...]) -> bool:
    return any(name == "-" or Path(name).is_fifo() for name in images)


@contextmanager
def _started(
    images: tuple[str, ...], how: RunOptions
) -> Iterator[tuple[Callable[[], Captioner], World]]:
    """Join the other processes of the job; give what loads the model."""
    from captioner.system.world import World, joined

    def load(device: str = how.device) -> Captioner:
        from captioner.captioner import Captioner

        captioner = Captioner.load(how.models, device)
        if how.maps and not captioner.map_size():
            raise ConfigError(
                f"--maps: {captioner.name} has no attention; train one with "
                f"--set decoder.attention=spatial"
            )
        return captioner

    # A job that was finished before needs no model, and no torch, which is slow to import.
    is_alone = "WORLD_SIZE" not in os.environ and not _is_read_once(images)
    if how.output and is_alone and how.device in ("auto", "cpu"):
        yield load, World()
        return
    from captioner.system.devices import choose_device

    # Ranks finish at different times and wait for the leader to merge. If one dies, `torchrun`
    # ends the others.
    with joined(choose_device(how.device), timedelta(days=365)) as (world, device):
        if world.size > 1 and (not how.output or _is_read_once(images)):
            raise click.UsageError(
                "several processes need --output, and cannot share stdin or a named pipe"
            )
        if world.size > 1 and how.maps:
            raise click.UsageError("--maps needs a single process")
        captioner = load(str(device))
        yield lambda: captioner, world


def _problems(how: RunOptions) -> Iterator[str]:
    """Yield why the engine, the format or the output does not support an option."""
    ray, output = how.engine == "ray", how.output
    if ray and not output:
        yield "--engine ray needs --output"
    if ray and (how.maps or how.device != "auto"):
        yield "--engine ray does not support --maps or --device: --num-gpus chooses its devices"
    if how.format == "parquet" and not output:
        yield "--format parquet needs --output"
    if how.format == "parquet" and not find_spec("pyarrow"):
        yield "--format parquet needs pip install 'captioner[data]'"
    if how.num_gpus is not None and not ray:
        yield "--num-gpus needs --engine ray; without it, use --device"
    if how.is_beside and output:
        yield f"--format {how.format} writes next to each image; remove --output"
    if how.retry_errors and not output:
        yield "--retry-errors needs --output: its journal records failures"
    if output and not output.name:
        yield f"--output: {output} is a folder; name a file in it"
    yield from _problems_of_parts(how)
    if how.salvage and (how.overwrite or not output):
        yield "--salvage needs --output, and excludes --overwrite"
    from captioner.captioning.writers import writer_named  # slow to import

    writer = writer_named(how.format)
    yield from _problems_of_words(how, detailed=writer.detailed)
    if how.n_best > 1 and not writer.several:
        yield f"--n-best: {how.format} holds one caption per image; use jsonl or text"
    if how.existing != "skip" and not how.is_beside:
        yield f"--existing needs --format txt, caption or xmp, given {how.format}"


def _problems_of_parts(how: RunOptions) -> Iterator[str]:
    """Yield what a folder of parts does not support."""
    if how.in_parts and how.format not in ("jsonl", "parquet"):
        yield f"--output: a folder of parts holds jsonl or parquet, not {how.format}"
    if how.in_parts and (how.retry_errors or how.salvage or how.stop_on_error or how.maps):
        yield (
            "--retry-errors, --salvage, --on-error fail and --maps need --output FILE, not a folder"
        )


def _problems_of_words(how: RunOptions, *, detailed: bool) -> Iterator[str]:
    """Yield why the format does not support `--words` or `--min-confidence`."""
    least = how.min_confidence
    if least is not None and not 0 <= least <= 1:  # NaN
        yield f"--min-confidence: must be 0 to 1, given {least}"
    if (how.words or least is not None) and not detailed:
        yield (
            f"{'--words' if how.words else '--min-confidence'}: {how.format} holds only captions; "
            f"use --format jsonl or parquet"
        )


def _say_totals(totals: Totals, seconds: float, how: RunOptions) -> None:
    """Say what a job did; nothing about a few images whose captions are all on stdout."""
    few = 0 < totals.images < SHOW_RATE_FROM
    if not few or totals.failed or totals.blank or how.output or how.is_beside:
        say_totals(totals, seconds, _shown_output(how))
    if totals.renamed:
        say(f"{totals.renamed:,} image(s) have their path as COCO id, others have the same name")
    if how.min_confidence is not None:
        say(
            f"{totals.unsure:,} of {totals.captioned:,} caption(s) are not confident: below "
            f"{how.min_confidence:g}"
        )


def _shown_output(how: RunOptions) -> Path | str | None:
    """Return how messages name the output."""
    from captioner.system.addresses import shown

    if how.address:
        return plain(shown(how.address))
    return how.folder if how.in_parts else how.output


def _map_folder(how: RunOptions) -> MapFolder | None:
    if how.maps is None:
        return None
    from captioner.captioning.maps import MapFolder
    from captioner.system.ownership import check_writable

    check_writable(how.maps)
    return MapFolder(how.maps, how.overwrite)


def _report(record: Record) -> None:
    if record.error:
        say(f"captioner: {plain(record.file_name)}: {record.error}")
    elif record.blank:
        say(f"captioner: {plain(record.file_name)}: {BLANK}")
