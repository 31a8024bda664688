"""`captioner compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.metric_options import (
    metrics_option,
    resamples_option,
    seed_option,
    show_signatures,
    write_json,
)
from captioner.cli.options import say, show
from captioner.system.foreign import plain

if TYPE_CHECKING:
    from captioner.metrics import Comparison
    from captioner.scoring.compare import Change, Pair

VERDICTS = {"A": "A is better", "B": "B is better", "equal": "the same", "unsure": "unclear"}


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path, exists=True))
@click.argument("b", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--references",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Reference file; repeat for several.  [default: the references in A and B]",
)
@metrics_option
@click.option(
    "--examples",
    type=click.IntRange(0, 10**6),
    default=3,
    show_default=True,
    help="Number of most improved and of most worsened images to show.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@resamples_option
@seed_option
def command(
    a: Path,
    b: Path,
    references: tuple[Path, ...],
    metrics: list[str],
    examples: int,
    output: Path | None,
    resamples: int,
    seed: int,
) -> None:
    """Compare the captions of systems A and B on the same images.

    A and B are run folders, folders of `captioner evaluate`, predictions.jsonl files, or any file
    that `captioner score` reads. Both are scored in the same way. The p-values come from the
    paired bootstrap and from approximate randomisation.
    """
    if not resamples:
        raise click.UsageError("--resamples: a comparison needs at least 1")

    from captioner.scoring.compare import compare_files, conclusion
    from captioner.system.ownership import check

    if output:
        check(output, "comparison")
    pair = compare_files(
        a, b, references, metrics=metrics, resamples=resamples, seed=seed, examples=examples
    )
    say(f"{len(pair.a.captions):,} images matched by {pair.matched_by}")
    for warning in pair.warnings:
        say(f"warning: {warning}")
    _show_systems(pair)
    show()
    _show_scores(pair)
    show()
    show_signatures(pair.scores)
    _show_changes(f"improved most ({pair.ranked_by}, B - A)", pair.improved)
    _show_changes(f"got worse most ({pair.ranked_by}, B - A)", pair.worsened)
    show(f"\nVerdict: {conclusion(pair.scores)}")
    if output:
        write_json(output, pair.as_dict(), "comparison")


def _show_systems(pair: Pair) -> None:
    for side, system in (("A", pair.a), ("B", pair.b)):
        decode = system.about("decode")
        show(f"{side}: {system.name}{f' ({plain(decode)})' if decode else ''}")


def _show_scores(pair: Pair) -> None:
    from captioner.scoring.compare import verdict

    head = ("", "A", "B", "B - A", "p boot", "p rand", "")
    rows = [head, *(_row(name, score, verdict(score)) for name, score in pair.scores.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        show("  ".join(cells).rstrip())
    for name, score in pair.scores.items():
        if score.note:
            show(f"{name}: undefined ({score.note})")


def _row(name: str, score: Comparison, verdict: str) -> tuple[str, ...]:
    if verdict == "undefined":
        return (name, "-", "-", "-", "-", "-", "undefined")
    difference = str(score).partition(", p = ")[0]
    p_values = (f"{score.p_bootstrap:.3f}", f"{score.p_randomization:.3f}")
    return (name, f"{score.a:.3f}", f"{score.b:.3f}", difference, *p_values, VERDICTS[verdict])


def _show_changes(title: str, changes: list[Change]) -> None:
    if not changes:
        return
    show(f"\n{title}")
    for change in changes:
        show(f"  {change.difference:+.3f}  {plain(change.image)}")
        show(f"          A  {plain(change.a)}")
        show(f"          B  {plain(change.b)}")
