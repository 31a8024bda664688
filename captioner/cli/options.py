"""Options that several verbs share, and what they all need to start."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.system.foreign import message, printable

if TYPE_CHECKING:
    from captioner.captioner import Captioner

config_argument = click.argument("config", required=False)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override a setting, as section.key=value.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
)
model_option = click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Model or run directory.  [default: $CAPTIONER_MODEL, else the newest run under runs/]",
)
models_option = click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Model or run directory; of several, the average decides on every word.  [default: "
    "$CAPTIONER_MODEL, else the newest run under runs/]",
)
_DECODING = {
    "--search": (
        click.Choice(["beam", "sample"]),
        "The most probable captions, or captions drawn at random.",
    ),
    "--beam-size": (int, "Hypotheses kept per image; 1 is greedy."),
    "--length-penalty": (float, "a: score = log-probability / length^a."),
    "--max-length": (int, "Most tokens of a caption, end included."),
    "--no-repeat-ngram-size": (int, "No n-gram of this size twice."),
    "--neighbours": (
        float,
        "Weight of what people wrote about similar training images; 0: none.",
    ),
    "--precision": (str, "auto, fp32, bf16 or fp16: of the decoder's matrix products."),
    "--temperature": (float, "Sampling: sharper below 1, flatter above."),
    "--top-k": (int, "Sampling: only the k most probable words; 0: all."),
    "--top-p": (float, "Sampling: only the words that hold this probability."),
    "--seed": (int, "Sampling: seed of the draws."),
}


def decoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the search; the command gets those that are given as `decoding`."""

    @wraps(command)
    def collected(**options: Any) -> None:
        names = [flag[2:].replace("-", "_") for flag in _DECODING]
        asked = {name: options.pop(name) for name in names}
        given = {name: value for name, value in asked.items() if value is not None}
        command(decoding=given, **options)

    for flag, (kind, text) in reversed(_DECODING.items()):
        collected = click.option(flag, type=kind, help=text)(collected)
    return collected


def load_captioner(folders: Path | list[Path], device: str) -> Captioner:
    """Load the model a command works with, or several as one."""
    from captioner.captioner import Captioner

    return Captioner.load(folders, device)


def say(text: str) -> None:
    """What is no result goes to stderr, as errors do: printable and of bounded length."""
    click.echo(message(text), err=True)


def show(text: str = "") -> None:
    """Results for people go to stdout, printable."""
    click.echo(printable(text))
