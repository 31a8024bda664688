"""`captioner models`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import say, show

if TYPE_CHECKING:
    from captioner.model_list import ListedModel


@click.command("models")
@click.argument(
    "runs", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
def command(runs: Path | None) -> None:
    """List the runs in the folder RUNS, newest first, and the bundled models.

    RUNS is by default runs/. NAME is what --model takes. The scores are those of the dev split at
    the best epoch. Scores of different data sets cannot be compared.
    """
    from captioner.model_list import list_models
    from captioner.system.foreign import plain

    runs = runs or Path("runs")
    models = list_models(runs)
    if not models:
        say(f"no models: no run in {plain(runs)}/; train a model with `captioner train`")
        return
    rows = [("NAME", "BLEU-4", "CIDER-D", "MB", "WRITTEN")]
    rows += [_row(model) for model in models]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, problem in zip(rows, ("", *(model.problem for model in models)), strict=True):
        name, *cells = (
            cell.ljust(width) if number in (0, 4) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        show("  ".join((name, *cells, plain(problem, 300))).rstrip())


def _row(model: ListedModel) -> tuple[str, str, str, str, str]:
    from captioner.system.foreign import plain

    scores = (model.scores.get(name, math.nan) for name in ("bleu_4", "cider_d"))
    bleu, cider = ("-" if math.isnan(score) else f"{score:.3f}" for score in scores)
    size = f"{model.size / 1e6:.1f}" if model.size else "-"
    written = f"{model.written:%Y-%m-%d %H:%M}" if model.written else "bundled"
    return plain(model.name, 60), bleu, cider, size, written
