"""`captioner caption`."""

from __future__ import annotations

import io
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from captioner.cli.options import (
    batch_option,
    decoding_options,
    device_option,
    find_model,
    given,
    load_captioner,
    model_option,
    say,
)

SHOW_RATE_FROM = 20  # images; fewer finish before a rate means anything


@click.command("caption")
@click.argument("images", nargs=-1, required=True)
@model_option
@click.option("--output", type=click.Path(path_type=Path), help="File to write.  [default: stdout]")
@click.option(
    "--format",
    type=click.Choice(["text", "jsonl", "csv", "coco", "txt"]),
    help="text: path, tab, caption; txt: a file beside each image.  [default: by --output, text]",
)
@click.option("--n-best", type=click.IntRange(1), default=1, help="Captions per image.")
@click.option("--overwrite", is_flag=True, help="txt: replace files that exist.")
@click.option("--recursive", is_flag=True, help="Also look into folders of folders.")
@click.option("--image-column", help="Column of paths in CSV, TSV, JSONL.  [default: guessed]")
@batch_option
@click.option("--num-workers", type=click.IntRange(1), help="Threads that read and decode.")
@decoding_options
@device_option
def command(
    images: tuple[str, ...],
    model: Path | None,
    output: Path | None,
    format: str | None,
    n_best: int,
    overwrite: bool,
    recursive: bool,
    image_column: str | None,
    batch_size: int,
    num_workers: int | None,
    device: str,
    **decoding: Any,
) -> None:
    """Caption IMAGES: files, folders, globs, archives, tables, or - for paths on stdin.

    Archives are ZIP files and tar shards, shards/{000..099}.tar or pipe:COMMAND among them;
    tables are CSV, TSV and JSON Lines files with a column of paths.

    Captions go to stdout (or --output), everything else to stderr. A broken file is reported
    and the rest are captioned; the exit code is then 1.
    """
    format = format or _format_of(output)
    if format == "txt" and output:
        raise click.UsageError("--format txt writes beside each image; it takes no --output")
    folder = find_model(model)
    if model is None:
        say(f"model: {folder}")

    from captioner.files import whole_file
    from captioner.inference.local import caption_files
    from captioner.inference.sources import files_only, list_images
    from captioner.inference.writers import write_records

    captioner = load_captioner(folder, device)
    chosen = given(decoding)
    if n_best > captioner.decoding.beam_size and "beam_size" not in chosen:
        chosen["beam_size"] = n_best  # a beam as wide as what is asked of it
    if "-" in images and isinstance(sys.stdin, io.TextIOWrapper):
        # Paths are bytes, and only a line feed ends one.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")
    items = list_images(images, recursive=recursive, stdin=sys.stdin, image_column=image_column)
    records = caption_files(
        captioner,
        files_only(items) if format == "txt" else items,
        batch_size=batch_size,
        num_workers=num_workers,
        n_best=n_best,
        **chosen,
    )
    started, count, failed = time.perf_counter(), 0, 0
    with ExitStack() as stack:
        file = sys.stdout
        if output:
            aside = stack.enter_context(whole_file(output))
            file = stack.enter_context(aside.open("w", encoding="utf-8"))
        written = write_records(records, file, format=format, n_best=n_best, overwrite=overwrite)
        for record in written:
            count += 1
            if record.error:
                failed += 1
                say(f"captioner: {record.file_name}: {record.error}")
    if count >= SHOW_RATE_FROM or failed or output:
        seconds = time.perf_counter() - started
        say(
            f"{count:,} image(s), {count - failed:,} captioned, {failed:,} failed, "
            f"{count / seconds:,.1f} images per second{f', in {output}' if output else ''}"
        )
    if failed:
        raise SystemExit(1)


def _format_of(output: Path | None) -> str:
    endings = {".jsonl": "jsonl", ".csv": "csv", ".json": "coco"}
    return endings.get(output.suffix.lower(), "text") if output else "text"
