"""`captioner export`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.options import say, show


@click.command("export")
@click.argument("model", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    show_default=True,
    help="onnx: needs captioner[export]; torch: programs of torch.export.",
)
@click.option("--int8", is_flag=True, help="Store the weights in a quarter of the size; ONNX only.")
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --int8, also compute in 8 bits, in the ranges of 200 of these pictures.",
)
def command(model: Path, folder: Path, to: str, int8: bool, pictures: Path | None) -> None:
    """Write a model as programs that run without captioner.

    RUN is a model or run directory, or a bundled model. FOLDER gets the encoder, the initial state
    and one step of the decoder, their words and settings, a search in Python (caption.py), and a
    README with that and one in JavaScript. Votes of neighbours are not exported.
    """
    from captioner.captioner import Captioner
    from captioner.exporting.write import export

    captioner = Captioner.load(model, "cpu")
    export(captioner, folder, to, int8=int8, pictures=pictures)  # type: ignore[arg-type]
    for file in sorted(folder.iterdir()):
        say(f"  {file.name}  {file.stat().st_size:,} bytes")
    show(str(folder))
