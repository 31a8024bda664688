"""`captioner merge`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import say


@click.command("merge")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write.  [default: next to FOLDER, with its name]",
)
def command(folder: Path, output: Path | None) -> None:
    """Join the parts in FOLDER to one file.

    FOLDER is that of `captioner caption --output FOLDER/`. The file is that of a job without parts,
    byte for byte. The parts stay.
    """
    from captioner.captioning.parts import merge_parts
    from captioner.system.foreign import plain

    output, totals = merge_parts(folder, output)
    say(f"{totals.images:,} image(s), {totals.failed:,} failed, in {plain(output)}")
