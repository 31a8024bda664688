"""`captioner explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import decoding_options, device_option, models_option, say, show

if TYPE_CHECKING:
    from captioner.config import DecodingOverrides
    from captioner.explanation.explained import Method
    from captioner.text import Caption

ENDINGS = (".html", ".png")


def _ending(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path and path.suffix.lower() not in ENDINGS:
        raise click.BadParameter(f"{path} must end in {' or '.join(ENDINGS)}", param=option)
    return path


@click.command("explain")
@click.argument("image")
@models_option
@click.option("--caption", help="Explain this caption.  [default: the best one]")
@click.option(
    "--method",
    type=click.Choice(["gradient", "occlusion"]),
    default="gradient",
    show_default=True,
    help="gradient: lead each word back to places; occlusion: cover the places, one by one.",
)
@click.option(
    "--alternatives",
    type=click.IntRange(0, 1000),
    default=4,
    show_default=True,
    help="Other words for each place.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    callback=_ending,
    help="Page or picture with a map for each word: .html or .png.",
)
@decoding_options
@device_option
def command(
    image: str,
    models: tuple[Path, ...],
    caption: str | None,
    method: Method,
    alternatives: int,
    output: Path | None,
    device: str,
    decoding: DecodingOverrides,
) -> None:
    """Show where each word of IMAGE's caption came from.

    Prints each word with its probability, its alternatives and what the image did for it. --output
    writes a map over the image for each word; a page also shows how the caption was written.
    """
    if caption is not None and decoding:
        raise click.UsageError("--caption excludes search options: nothing is searched")
    from captioner.captioner import Captioner
    from captioner.explaining.output import write_output
    from captioner.explaining.word_table import to_table
    from captioner.run_dir import find_models
    from captioner.system.ownership import check

    if output:
        check(output, "explanation")
    folders = find_models(models, say)
    captioner = Captioner.load(folders, device)
    options = captioner.settings(**decoding)
    given: str | Caption | None = caption
    trace = None
    if caption is None and output and output.suffix.lower() == ".html":
        features, how = captioner.encode([image]), {"alternatives": alternatives}
        trace = captioner.trace_features(features, options, **how, maps=True)
        given = trace.captions[0]
    found = captioner.explain(image, given, options, method=method, alternatives=alternatives)
    show(to_table(found))
    if output:
        parts = captioner.encoder.preprocess, image, folders, output, trace, options
        lacking = write_output(found, *parts)
        say(f"wrote {output}" + (f"; {lacking}" if lacking else ""))
