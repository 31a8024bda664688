"""`captioner caption`."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from captioner.cli.options import (
    decoding_options,
    device_option,
    find_models,
    load_captioner,
    models_option,
    say,
)
from captioner.foreign import excerpt, plain

if TYPE_CHECKING:
    from captioner.config import DecodingConfig, DecodingOverrides
    from captioner.inference.job import Totals
    from captioner.inference.local import CaptioningOptions, Record
    from captioner.inference.sources import Item
    from captioner.memory import Memory
    from captioner.models.captioner import Captioner

SHOW_RATE_FROM = 20  # images; fewer finish before a rate means anything


@click.command("caption")
@click.argument("images", nargs=-1, required=True)
@models_option
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: stdout]")
@click.option(
    "--format",
    type=click.Choice(["text", "jsonl", "csv", "coco", "txt", "parquet"]),
    help="text: path, tab, caption; txt: a file beside each image.  "
    "[default: by --output's ending, else jsonl; on stdout text]",
)
@click.option("--extension", default=".txt", show_default=True, help="txt: of the files beside.")
@click.option("--n-best", type=click.IntRange(1, 1000), default=1, help="Captions per image.")
@click.option(
    "--overwrite", is_flag=True, help="Give up what was done and start over; txt: replace captions."
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="A broken image costs its own record, or stops the job.",
)
@click.option("--retry-errors", is_flag=True, help="Try again what failed before.")
@click.option("--salvage", is_flag=True, help="Keep the sound rows of a damaged journal.")
@click.option("--recursive", is_flag=True, help="Also look into folders of folders.")
@click.option("--image-column", help="Column of paths in CSV, TSV, JSONL.  [default: guessed]")
@click.option("--max-pixels", type=click.IntRange(1, 2**40), help="Refuse larger images.")
@click.option(
    "--scaled-decoding",
    is_flag=True,
    help="Decode large JPEGs at a fraction of their size: faster, pixels nearly the same.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on a cluster, where $RAY_ADDRESS names one; .jsonl or .parquet.",
)
@click.option(
    "--num-gpus", type=click.FloatRange(0, 1024), help="ray: of each worker.  [default: 0]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 2**16),
    default=256,
    show_default=True,
    help="Images per pass; lowered where memory is short.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(1, 1024),
    help="Threads that read and decode; without a GPU they do all.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="For images being read and decoded, like 2G; with ray, of each worker.  "
    "[default: by cores and what is free]",
)
@decoding_options
@device_option
def command(
    images: tuple[str, ...],
    models: tuple[Path, ...],
    output: Path | None,
    format: str | None,
    extension: str,
    n_best: int,
    overwrite: bool,
    on_error: str,
    retry_errors: bool,
    salvage: bool,
    recursive: bool,
    image_column: str | None,
    max_pixels: int | None,
    scaled_decoding: bool,
    engine: str,
    num_gpus: float | None,
    batch_size: int,
    num_workers: int | None,
    max_memory: str | None,
    device: str,
    decoding: DecodingOverrides,
) -> None:
    """Caption IMAGES: files, folders, globs, archives, tables, or - for paths on stdin.

    Archives are ZIP files and tar shards, shards/{000..099}.tar or pipe:COMMAND among them;
    tables are CSV, TSV and JSON Lines files with a column of paths.

    Captions go to stdout (or --output), everything else to stderr. A broken file is reported
    and the rest are captioned; the exit code is then 1. With --output a job that was cut off goes
    on where it was when the same command is given again.
    """
    format = format or _format_of(output)
    local_only = retry_errors or salvage or on_error == "fail" or device != "auto"
    _check_engine(engine, format, output, num_gpus=num_gpus, local_only=local_only)
    _check_output(output, format, extension, n_best=n_best, retry_errors=retry_errors)
    if salvage and (overwrite or not output):
        raise click.UsageError("--salvage mends the journal of --output; it takes no --overwrite")
    folders = find_models(models)
    if not models:
        say(f"model: {folders[0]}")

    from captioner.images import MAX_PIXELS
    from captioner.inference.local import CaptioningOptions
    from captioner.inference.sources import list_images
    from captioner.memory import Memory, bytes_of
    from captioner.models.captioner import choose_device
    from captioner.world import joined

    if "-" in images and isinstance(sys.stdin, io.TextIOWrapper):
        # Paths are bytes, and only a line feed ends one.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")
    limit = None if max_memory is None else bytes_of(max_memory)
    memory = None if engine == "ray" else Memory(limit)
    items = list_images(
        images, recursive=recursive, stdin=sys.stdin, image_column=image_column, memory=memory
    )
    how = CaptioningOptions(
        n_best, batch_size, num_workers, max_pixels or MAX_PIXELS, scaled_decoding, limit
    )
    started = time.perf_counter()
    if engine == "ray":
        assert output
        failed = _with_ray(
            folders, items, output, decoding, how, format, overwrite, num_gpus, started
        )
        raise SystemExit(int(failed > 0))
    # Shares of a job take different times, and the leader merges them all. `torchrun` ends the
    # ranks that would wait for a dead one.
    with joined(choose_device(device), timedelta(days=365)) as (world, own_device):
        if world.size > 1 and (not output or any(map(_read_once, images))):
            raise click.UsageError(
                "several processes need --output, and images not from stdin or a named pipe"
            )
        captioner = load_captioner(folders, str(own_device))
        options = captioner.settings(n_best=n_best, **decoding)
        if output:
            done = _to_file(
                captioner,
                items,
                output,
                options,
                how,
                models=folders,
                world=world,
                memory=memory,
                format=format,
                overwrite=overwrite,
                retry_errors=retry_errors,
                stop_on_error=on_error == "fail",
                salvage=salvage,
            )
            count, failed, fresh = done.images, done.failed, done.fresh
            where = _where(output, done.errors)
        else:
            count, failed, where = _to_stdout(
                captioner,
                items,
                options,
                how,
                memory=memory,
                stop=on_error == "fail",
                format=format,
                overwrite=overwrite,
                extension=extension,
            )
            fresh = count
        if world.leads and (count >= SHOW_RATE_FROM or failed or where):
            _say_totals(count, failed, fresh, started, where)
    if failed and world.leads:
        raise SystemExit(1)


def _read_once(source: str) -> bool:
    """Whether only one process can read it."""
    from captioner.inference.sources import typed

    return source == "-" or any(Path(name).is_fifo() for name in typed(source))


def _to_file(
    captioner: Captioner,
    items: Iterator[Item],
    output: Path,
    options: DecodingConfig,
    how: CaptioningOptions,
    *,
    models: list[Path],
    overwrite: bool,
    **job: Any,
) -> Totals:
    """Caption into a file, with a journal; say what holds if the user stops it."""
    from captioner.inference.job import caption_to_file, going_on
    from captioner.models.directory import fingerprint

    model = "+".join(map(fingerprint, models))
    try:
        return caption_to_file(
            captioner,
            items,
            output,
            options,
            how,
            model=model,
            overwrite=overwrite,
            tell=_report,
            say=say,
            **job,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {going_on(overwrite)}") from None


def _with_ray(
    models: list[Path],
    items: Iterator[Item],
    output: Path,
    decoding: DecodingOverrides,
    how: CaptioningOptions,
    format: str,
    overwrite: bool,
    num_gpus: float | None,
    started: float,
) -> int:
    from captioner.inference.cluster import caption_with_ray
    from captioner.ownership import check

    check(output, "captions")
    if output.exists() and not overwrite:
        raise click.UsageError(
            f"{output}: exists; --output FILE writes elsewhere, --overwrite gives up what is in it"
        )
    kind: Literal["parquet", "jsonl"] = "parquet" if format == "parquet" else "jsonl"
    done = caption_with_ray(
        models,
        items,
        output,
        decoding,
        how,
        format=kind,
        num_gpus=num_gpus or 0,
        tell=_report,
    )
    _say_totals(done.images, done.failed, done.images, started, _where(output, done.errors))
    return done.failed


def _where(output: Path, errors: Path | None) -> str:
    return f", in {output}" + (f"; failures in {errors}" if errors else "")


def _to_stdout(
    captioner: Captioner,
    items: Iterator[Item],
    options: DecodingConfig,
    how: CaptioningOptions,
    *,
    memory: Memory | None,
    stop: bool,
    format: str,
    **writing: Any,
) -> tuple[int, int, str]:
    """Write captions as they come.

    Returns:
        The number of images, that of failures, and what else is to be said.
    """
    from captioner.inference.local import caption_files
    from captioner.inference.sources import files_only
    from captioner.inference.writers import untaken, write_records

    extension, left = writing["extension"], 0

    def leave(_: str) -> None:
        nonlocal left
        left += 1

    if format == "txt":
        items = untaken(files_only(items), extension, overwrite=writing["overwrite"], leave=leave)
    records = caption_files(captioner, items, options, how, memory=memory)
    count = failed = 0
    for record in write_records(records, sys.stdout, format=format, n_best=how.n_best, **writing):
        count += 1
        failed += record.error is not None
        _report(record)
        if record.error and stop:
            break
    note = (
        f"; {left:,} left out, which have a {extension} (--overwrite replaces it)" if left else ""
    )
    return count, failed, note


def _check_engine(
    engine: str, format: str, output: Path | None, *, num_gpus: float | None, local_only: bool
) -> None:
    """Refuse what an engine does not do."""
    if engine == "ray" and (not output or format not in ("jsonl", "parquet")):
        raise click.UsageError("--engine ray needs --output FILE.jsonl or FILE.parquet")
    if engine == "ray" and local_only:
        raise click.UsageError(
            "--engine ray takes no --retry-errors, --salvage, --on-error fail or --device: a Ray "
            "job is whole or not at all, and --num-gpus says where it computes"
        )
    if engine == "local" and format == "parquet":
        raise click.UsageError("--format parquet needs --engine ray")
    if engine == "local" and num_gpus is not None:
        raise click.UsageError("--num-gpus needs --engine ray; --device chooses one here")


def _check_output(
    output: Path | None, format: str, extension: str, *, n_best: int, retry_errors: bool
) -> None:
    """Refuse what a format or its place cannot hold."""
    if format == "txt" and output:
        raise click.UsageError("--format txt writes beside each image; it takes no --output")
    if not output and retry_errors:
        raise click.UsageError("--retry-errors needs --output: only there is kept what failed")
    if output and (output.is_dir() or not output.name):
        raise click.UsageError(f"--output: {output} is a folder; name a file in it")
    if n_best > 1 and format in ("csv", "coco", "txt"):
        raise click.UsageError(f"--n-best: {format} holds one caption an image; use jsonl or text")
    if not extension.startswith(".") or "/" in extension or len(extension) < 2:
        raise click.UsageError(f"--extension: must look like .txt, given {excerpt(extension)}")
    from captioner.images import SUFFIXES

    if format == "txt" and extension.lower() in SUFFIXES:
        raise click.UsageError(f"--extension: {extension} is that of pictures; choose another")


def _say_totals(count: int, failed: int, fresh: int, started: float, where: str) -> None:
    before = f" ({count - fresh:,} of them before)" if fresh < count else ""
    rate = fresh / (time.perf_counter() - started)
    say(
        f"{count:,} image(s){before}, {count - failed:,} captioned, {failed:,} failed, "
        f"{rate:,.1f} images per second{where}"
    )


def _report(record: Record) -> None:
    if record.error:
        say(f"captioner: {plain(record.file_name)}: {record.error}")


def _format_of(output: Path | None) -> str:
    endings = {
        ".parquet": "parquet",
        ".csv": "csv",
        ".json": "coco",
        ".txt": "text",
        ".tsv": "text",
    }
    return endings.get(output.suffix.lower(), "jsonl") if output else "text"
