"""`captioner merge`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import SLASH, OutputPath, say


@click.command("merge")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=OutputPath(),
    help="File to write.  [default: next to FOLDER, with its name]",
)
def command(folder: Path, output: str | Path | None) -> None:
    """Join the parts in FOLDER to one file.

    FOLDER is that of `captioner caption --output FOLDER/`. The file is that of a job without parts,
    byte for byte. The parts stay.
    """
    from captioner.captioning.parts import merge_parts
    from captioner.system.foreign import plain

    if isinstance(output, str) or (output and output.name == SLASH):
        raise click.UsageError("--output: name a file on this machine")
    file, totals = merge_parts(folder, output)
    say(f"{totals.images:,} image(s), {totals.failed:,} failed, in {plain(file)}")
