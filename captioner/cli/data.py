"""`captioner data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import say, set_option, show, usual_config, with_stream_kept

if TYPE_CHECKING:
    from captioner.config import Config

SECTIONS = ("data.", "text.")


@click.command("data")
@click.argument("root", required=False)
@set_option
@click.option(
    "--images",
    is_flag=True,
    help="Decode every picture: finds all broken ones, and pictures that look the same. Without "
    "it, only headers are read.",
)
@click.option(
    "--export",
    "exported",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Write the images and captions as JSON Lines, which train reads as the same data set.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with the findings, charts, and samples of each split.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def command(
    root: str | None,
    overrides: tuple[str, ...],
    images: bool,
    exported: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show what the data set in ROOT holds, without training.

    ROOT is a folder, an annotation file, hf:OWNER/NAME or pipe:COMMAND, as data.root; by default
    the bundled drawn scenes.
    Settings of data and text, as --set data.images=FOLDER or --set text.tokenizer=unicode, are
    those of captioner train.
    """
    settings = _settings(root, overrides)
    from captioner.inspection.export import check_export, export
    from captioner.inspection.inspect import inspect_dataset
    from captioner.inspection.lines import to_text
    from captioner.inspection.sample_page import write_page
    from captioner.system.escapes import to_json
    from captioner.system.ownership import check

    if exported:
        check_export(exported)
    if html:
        check(html, "page")
    found = inspect_dataset(settings, decode=images)
    show(to_json(found.as_json(), indent=2) if as_json else to_text(found))
    if exported:
        written = export(found.dataset, exported)
        pictures = f", with {written:,} pictures in {exported.stem}-images" if written else ""
        say(f"wrote {exported}{pictures}")
    if html:
        write_page(found, html)
        say(f"wrote {html}")


def _settings(root: str | None, overrides: tuple[str, ...]) -> Config:
    """Return the settings that `captioner train` would have, of data and text."""
    from captioner.config import load_config, root_of

    for override in overrides:
        if not override.strip().startswith(SECTIONS):
            name = override.partition("=")[0]
            raise click.UsageError(f"--set {name}: only settings of data and text are used")
    if root is not None:
        overrides = (f"data.root={json.dumps(root)}", *overrides)
    settings = load_config(usual_config(root_of(overrides)), overrides)
    return with_stream_kept(settings, overrides)
