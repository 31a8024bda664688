"""Options and output that the commands with metrics share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import click

from captioner.cli.options import say, show

MOST_RESAMPLES = 10**6  # as in metrics.bootstrap, not imported here to keep --help fast


class Signed(Protocol):
    """A score, or a comparison of two scores."""

    @property
    def signature(self) -> str:
        """Return the settings behind the score, such as `cider|refs:5`."""


def _names(context: click.Context, option: click.Parameter, value: str) -> list[str]:  # noqa: ARG001
    names = [name for part in value.split(",") if (name := part.strip().lower())]
    if not names:
        raise click.UsageError("--metrics: name at least one metric")
    return names


metrics_option = click.option(
    "--metrics",
    default="bleu,rouge_l,cider",
    show_default=True,
    callback=_names,
    help="Any of bleu, rouge_l, cider, cider_d, cider_plain; with Java, also meteor and spice.",
)
resamples_option = click.option(
    "--resamples",
    type=click.IntRange(0, MOST_RESAMPLES),
    default=1000,
    show_default=True,
    help="Bootstrap resamples for the confidence intervals; 0: no intervals.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Random seed of the bootstrap.",
)


def show_scores(scores: Mapping[str, object], **others: str) -> None:
    """Print one line for each score and each other result."""
    rows = {name: str(score) for name, score in scores.items()} | others
    width = max(map(len, scores))
    for name, text in rows.items():
        show(f"{name:{width}}  {text}")


def show_signatures(scores: Mapping[str, Signed]) -> None:
    """Print the signatures; scores with equal settings share a line."""
    names: dict[str, list[str]] = {}
    for score in scores.values():
        name, _, fields = score.signature.partition("|")
        names.setdefault(fields, []).append(name)
    for fields, metrics in names.items():
        show(f"{','.join(metrics)}|{fields}")


def write_json(path: Path, content: Mapping[str, Any], kind: str) -> None:
    """Write a JSON file atomically and print its path; see `files.whole_file`."""
    from captioner.system.escapes import to_json
    from captioner.system.files import write_text

    write_text(path, to_json(content, indent=2) + "\n", kind)
    say(f"wrote {path}")
