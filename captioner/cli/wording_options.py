"""Options that say how captions are written out, and what becomes of texts beside images."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--style",
        type=click.Choice(["plain", "sentence"]),
        default="plain",
        show_default=True,
        help="plain: as the model writes; sentence: capital, full stop, clitics closed up.",
    ),
    click.option(
        "--map",
        "replaced",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Words and phrases to change: lines of FROM, a tab, and TO.",
    ),
    click.option(
        "--template",
        default="{caption}",
        help='Text around each caption, such as "sks style, {caption}".',
    ),
    click.option(
        "--existing",
        type=click.Choice(["skip", "replace", "append", "prepend"]),
        default="skip",
        show_default=True,
        help="txt, caption, xmp: what becomes of texts that captioner did not write.",
    ),
)


def wording_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command receives `existing`, and the others as `wording: Wording`."""

    @wraps(command)
    def run(*, style: Any, replaced: Path | None, template: str, **rest: Any) -> None:
        from captioner.captioning.wording import Wording, read_map

        words = read_map(replaced) if replaced else {}
        command(wording=Wording(style, words, template), **rest)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
