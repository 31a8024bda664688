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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from captioner.cli.options import decoding_options, device_option, models_option, say, show
from captioner.cli.wording_options import wording_options
from captioner.errors import ConfigError, DataError, ImageError, ModelError
from captioner.system.foreign import excerpt, plain

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.captioning.job import JobOptions
    from captioner.captioning.maps import MapFolder
    from captioner.captioning.records import Record, Totals
    from captioner.captioning.sidecars import Sidecars
    from captioner.captioning.sources import Item
    from captioner.captioning.wording import Wording
    from captioner.config import DecodingOverrides
    from captioner.system.memory import Memory
    from captioner.system.world import World

SHOW_RATE_FROM = 20  # images; with fewer, a rate means nothing
BLANK = "blank: the CNN sees one colour only, so the caption says nothing about the image"
MOST_FAILURES = 1000  # before the first image, without loading the model
ENDINGS = {".parquet": "parquet", ".csv": "csv", ".json": "coco", ".txt": "text", ".tsv": "text"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run: every option of the command except those of the search."""

    models: list[Path]
    output: Path | None
    format: str
    extension: str
    wording: Wording
    n_best: int
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
    device: str

    def job(self) -> JobOptions:
        """Return the options that captioning needs."""
        from captioner.captioning.job import JobOptions
        from captioner.images.decode import MAX_PIXELS

        options = {field.name: getattr(self, field.name) for field in fields(JobOptions)}
        options |= {"max_pixels": self.max_pixels or MAX_PIXELS, "maps": self.maps is not None}
        return JobOptions(**options)


def _bytes(_: click.Context, option: click.Parameter, size: str | None) -> int | None:
    from captioner.system.memory import bytes_of

    try:
        return None if size is None else bytes_of(size)
    except ConfigError as error:
        raise ConfigError(f"{option.opts[0]}: {error}") from error


@click.command("caption")
@click.argument("images", nargs=-1, required=True)
@models_option
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: stdout]")
@click.option(
    "--format",
    type=click.Choice(["text", "jsonl", "csv", "coco", "txt", "parquet"]),
    help="text: path, tab, caption; txt: one text file next to each image.  "
    "[default: from --output's extension, else jsonl; text on stdout]",
)
@click.option("--extension", default=".txt", show_default=True, help="File extension for txt.")
@wording_options
@click.option("--n-best", type=click.IntRange(1, 1000), default=1, help="Captions per image.")
@click.option(
    "--overwrite", is_flag=True, help="Discard earlier results; txt, --maps: replace files."
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
@click.option("--dry-run", is_flag=True, help="Count the images by folder and kind, and stop.")
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
    help="ray: the cluster at $RAY_ADDRESS, else this machine; jsonl or parquet only.",
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
    callback=_bytes,
    help="Memory for reading and decoding images, such as 2G; ray: per worker.  "
    "[default: from cores and free memory]",
)
@decoding_options
@device_option
def command(
    images: tuple[str, ...],
    models: tuple[Path, ...],
    output: Path | None,
    format: str | None,
    decoding: DecodingOverrides,
    **options: Any,
) -> None:
    """Caption IMAGES: files, folders, globs, archives, tables, or - for paths on stdin.

    Archives are ZIP and tar files; pipe:COMMAND reads the tar stream that a command writes. Tables
    are CSV, TSV, JSON Lines and JSON files with a column of paths.

    Captions go to stdout (or --output), everything else to stderr. A broken file is reported, the
    rest are captioned, and the exit code is 1. With --output, the same command given again
    continues an interrupted job.
    """
    from captioner.run_dir import find_models

    default = ENDINGS.get(output.suffix.lower(), "jsonl") if output else "text"
    how = RunOptions(models=[], output=output, format=format or default, **options)
    if problem := next(_problems(how), None):
        raise click.UsageError(problem)
    if how.dry_run:
        _count(images, how)
        return
    how = replace(how, models=find_models(models))
    if not models:
        say(f"model: {how.models[0]}")
    caption = _on_ray if how.engine == "ray" else _to_file if output else _to_stdout
    started = time.perf_counter()
    totals = caption(images, decoding, how)
    to_files = output or how.format == "txt"
    if totals and (
        not 0 < totals.images < SHOW_RATE_FROM or totals.failed or totals.blank or to_files
    ):
        _say_totals(totals, time.perf_counter() - started, output)
    if totals and totals.renamed:
        say(f"{totals.renamed:,} image(s) have their path as COCO id, others have the same name")
    if totals and totals.failed and not _is_known(totals, how):
        raise SystemExit(1)


def _count(images: tuple[str, ...], how: RunOptions) -> None:
    """Count the images by folder and kind, and open none."""
    counts: Counter[tuple[str, str]] = Counter()
    failed = 0
    for item in _items(images, how, None):
        if isinstance(item.source, ImageError):
            failed += 1
            say(f"captioner: {plain(item.name)}: {item.source}")
        else:
            path = Path(item.name)
            counts[str(path.parent), path.suffix.lower()] += 1
    for (folder, ending), count in sorted(counts.items()):
        show(f"{count:,} {ending or 'without extension'} in {folder}")
    say(f"{counts.total():,} image(s), {failed:,} failure(s); a dry run, nothing was captioned")
    if failed:
        raise SystemExit(1)


def _is_known(totals: Totals, how: RunOptions) -> bool:
    """Whether all failures are known from earlier runs; say so if nothing is new."""
    if totals.new_failed or not how.output or how.engine == "ray":
        return False
    if how.overwrite or how.retry_errors or how.stop_on_error:
        return False
    if not totals.fresh:
        say(f"nothing new; {totals.failed:,} known failure(s) in {totals.errors}")
    return True


def _to_stdout(images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions) -> Totals:
    """Write each caption at once, to stdout or next to its image."""
    from captioner.captioning.records import Record, Totals, caption_files
    from captioner.captioning.writers import FORMATS, SidecarWriter
    from captioner.system.memory import Memory

    memory = Memory(how.max_memory)
    items = _items(images, how, memory)
    maps = _map_folder(how)
    count = failed = blank = 0
    writer = FORMATS[how.format](
        sys.stdout,
        n_best=how.n_best,
        wording=how.wording,
        extension=how.extension,
        overwrite=how.overwrite,
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
            digests = how.format == "txt"
            records = caption_files(
                captioner, items, options, how.job(), memory=memory, digests=digests
            )
        else:  # no need for the model
            records = (Record(i.name).complete(cast(ImageError, i.source)) for i in items)
        for record in map(writer.write, records):
            sys.stdout.flush()
            count += 1
            failed += record.error is not None
            blank += record.status == "blank"
            _report(record)
            if maps:
                maps.add(record)
            if record.error and how.stop_on_error:
                break
    _say_maps(maps)
    if isinstance(writer, SidecarWriter):
        _say_texts(writer.texts)
    return Totals(count, failed, count, blank=blank, renamed=writer.renamed)


def _until_image(items: Iterator[Item]) -> tuple[Iterator[Item], bool]:
    """Look for an image among the first items; return all items and whether there may be one."""
    first: list[Item] = []
    for item in items:
        first.append(item)
        if not isinstance(item.source, ImageError) or len(first) == MOST_FAILURES:
            return chain(first, items), True
    return iter(first), False


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
        _say_maps(maps)
        return totals if world.leads else None


def _on_ray(images: tuple[str, ...], decoding: DecodingOverrides, how: RunOptions) -> Totals:
    """Caption into a file, on a Ray cluster."""
    from captioner.captioning.ray import caption_with_ray
    from captioner.system.ownership import check

    assert how.output
    items = _items(images, how, None)
    check(how.output, "captions")
    if how.output.exists() and not how.overwrite:
        raise click.UsageError(
            f"{how.output}: already exists; choose another --output, or --overwrite to replace it"
        )
    return caption_with_ray(
        how.models,
        items,
        how.output,
        decoding,
        how.job(),
        format=how.format,
        wording=how.wording,
        num_gpus=how.num_gpus or 0,
        tell=_report,
    )


def _total(images: tuple[str, ...], how: RunOptions) -> int | None:
    """Count the images; None if that reads a compressed archive, a pipe or stdin."""
    if _is_read_once(images) or any(name.startswith("pipe:") for name in images):
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
    from captioner.captioning.sources.members import unread_kinds

    seen: set[str] = set()
    repeated = 0
    respelled, first = 0, None
    for item in items:
        respelled += bool(item.written)
        first = first or (item if item.written else None)
        path = os.path.normpath(item.name)
        if isinstance(item.source, Path) and not how.repeats:
            if path in seen:
                repeated += 1
                continue
            seen.add(path)
        yield item
    # Of the processes of `torchrun`, the first speaks.
    if quiet or os.environ.get("RANK", "0") != "0":
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
    from captioner.captioner import choose_device

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
    if ray and (not output or how.format not in ("jsonl", "parquet")):
        yield "--engine ray needs --output FILE.jsonl or FILE.parquet"
    idle = how.retry_errors or how.salvage or how.stop_on_error or how.maps
    if ray and (idle or how.device != "auto"):
        yield (
            "--engine ray does not support --retry-errors, --salvage, --on-error fail, --maps or "
            "--device: a Ray job cannot be resumed, and --num-gpus chooses its devices"
        )
    if how.format == "parquet" and not ray:
        yield "--format parquet needs --engine ray"
    if how.num_gpus is not None and not ray:
        yield "--num-gpus needs --engine ray; without it, use --device"
    if how.format == "txt" and output:
        yield "--format txt writes next to each image; remove --output"
    if how.retry_errors and not output:
        yield "--retry-errors needs --output: its journal records failures"
    if output and (output.is_dir() or not output.name):
        yield f"--output: {output} is a folder; name a file in it"
    if not how.extension.startswith(".") or "/" in how.extension or len(how.extension) < 2:
        yield f"--extension: must look like .txt, given {excerpt(how.extension)}"
    if how.salvage and (how.overwrite or not output):
        yield "--salvage needs --output, and excludes --overwrite"
    from captioner.captioning.writers import FORMATS  # slow to import
    from captioner.images.decode import SUFFIXES

    if how.n_best > 1 and not FORMATS[how.format].several:
        yield f"--n-best: {how.format} holds one caption per image; use jsonl or text"
    if how.format == "txt" and how.extension.lower() in SUFFIXES:
        yield f"--extension: {how.extension} is an image extension; use another"


def _say_totals(totals: Totals, seconds: float, output: Path | None) -> None:
    before = totals.images - totals.fresh
    say(
        f"{totals.images:,} image(s){f' ({before:,} in earlier runs)' if before else ''}, "
        f"{totals.captioned:,} captioned{f' ({totals.blank:,} blank)' if totals.blank else ''}, "
        f"{totals.failed:,} failed, "
        f"{totals.fresh / seconds:,.1f} images per second"
        f"{f', in {output}' if output else ''}"
        f"{f'; failures in {totals.errors}' if totals.errors else ''}"
    )


def _map_folder(how: RunOptions) -> MapFolder | None:
    if how.maps is None:
        return None
    from captioner.captioning.maps import MapFolder
    from captioner.system.ownership import check_writable

    check_writable(how.maps)
    return MapFolder(how.maps, how.overwrite)


def _say_maps(maps: MapFolder | None) -> None:
    """Say how many maps were drawn, and which were not."""
    if maps is None:
        return
    if maps.drawn:
        say(f"{maps.drawn:,} map(s) in {maps.folder}")
    if maps.kept:
        say(
            f"{len(maps.kept):,} map(s) kept, such as {plain(maps.kept[0])}; --overwrite draws "
            f"them again"
        )
    if maps.foreign:
        say(
            f"{len(maps.foreign):,} map(s) not drawn, captioner did not draw the file of their "
            f"name, such as {plain(maps.foreign[0])}; move it away or choose another --maps"
        )
    if maps.absent:
        say(
            f"{maps.absent:,} image(s) without a map, earlier runs captioned them; --overwrite "
            f"captions them again"
        )


def _say_texts(texts: Sidecars) -> None:
    if texts.skipped:
        say(f"{texts.skipped:,} skipped, their {texts.extension} file is up to date")
    if texts.kept:
        say(
            f"{len(texts.kept):,} passed over, captioner did not write their {texts.extension} "
            f"file or it was edited since, such as {plain(texts.kept[0])}; to caption them, move "
            f"it away or choose another --extension"
        )
    if orphans := texts.orphans():
        say(f"{len(orphans):,} text file(s) whose image is gone, such as {plain(orphans[0])}; kept")


def _report(record: Record) -> None:
    if record.error:
        say(f"captioner: {plain(record.file_name)}: {record.error}")
    elif record.blank:
        say(f"captioner: {plain(record.file_name)}: {BLANK}")
