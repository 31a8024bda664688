"""`captioner compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.cli.metric_options import metric_options, show_signatures
from captioner.cli.options import say, show
from captioner.system.foreign import plain

if TYPE_CHECKING:
    from captioner.metrics import Comparison
    from captioner.scoring.systems import MetricOptions

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
@click.option(
    "--examples",
    type=click.IntRange(0, 10**6),
    default=3,
    show_default=True,
    help="Number of most improved and of most worsened images to show.",
)
@metric_options("comparison")
def command(
    a: Path, b: Path, references: tuple[Path, ...], examples: int, scoring: MetricOptions
) -> dict[str, Any]:
    """Compare the captions of systems A and B on the same images.

    A and B are run folders, folders of `captioner evaluate`, predictions.jsonl files, or any file
    that `captioner score` reads. Both are scored in the same way. The p-values come from the
    paired bootstrap and from approximate randomisation.
    """
    if not scoring["resamples"]:
        raise click.UsageError("--resamples: a comparison needs at least 1")
    from captioner.scoring.compare import compare_files, conclusion

    pair = compare_files(a, b, references, examples=examples, **scoring)
    say(f"{len(pair.a.images):,} images matched by {pair.matched_by}")
    for warning in pair.warnings:
        say(f"warning: {warning}")
    for side, system in (("A", pair.a), ("B", pair.b)):
        decode = system.signature.get("decode")
        show(f"{side}: {system.name}{f' ({plain(decode)})' if decode else ''}")
    show()
    _show_scores(pair.scores)
    show()
    show_signatures(pair.scores)
    for title, changes in (("improved", pair.improved), ("got worse", pair.worsened)):
        if changes:
            show(f"\n{title} most ({pair.ranked_by}, B - A)")
        for change in changes:
            show(f"  {change.difference:+.3f}  {plain(change.image)}")
            show(f"          A  {plain(change.a)}")
            show(f"          B  {plain(change.b)}")
    show(f"\nVerdict: {conclusion(pair.scores)}")
    return pair.as_dict()


def _show_scores(scores: dict[str, Comparison]) -> None:
    from captioner.scoring.compare import verdict

    rows: list[tuple[str, ...]] = [("", "A", "B", "B - A", "p boot", "p rand", "")]
    notes = []
    for name, score in scores.items():
        found = verdict(score)
        if found == "undefined":
            rows.append((name, "-", "-", "-", "-", "-", found))
            notes.append(f"{name}: undefined ({score.note})")
        else:
            values = (score.a, score.b, score.p_bootstrap, score.p_randomization)
            a, b, *p_values = [f"{value:.3f}" for value in values]
            difference = str(score).partition(", p = ")[0]
            rows.append((name, a, b, difference, *p_values, VERDICTS[found]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        show("  ".join(cells).rstrip())
    for note in notes:
        show(note)
