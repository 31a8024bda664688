"""`captioner merge`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import SLASH, OutputPath, say


@click.command("merge")
@click.argument("folder", type=OutputPath())
@click.option(
    "--output",
    type=OutputPath(),
    help="File or address to write.  [default: next to FOLDER, with its name]",
)
def command(folder: str | Path, output: str | Path | None) -> None:
    """Join the parts in FOLDER to one file.

    FOLDER is that of `captioner caption --output FOLDER/`, or an address. The file is that of a job
    without parts, byte for byte. The parts stay.
    """
    from captioner.captioning.parts import merge_parts
    from captioner.system.addresses import shown
    from captioner.system.foreign import plain

    if str(output or "").endswith(("/", SLASH)):
        raise click.UsageError("--output: name a file, not a folder")
    if isinstance(folder, Path) and folder.name == SLASH:
        folder = folder.parent
    file, totals = merge_parts(folder, output)
    say(f"{totals.images:,} image(s), {totals.failed:,} failed, in {plain(shown(str(file)))}")
