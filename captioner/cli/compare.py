"""`captioner compare`."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.cli.metric_options import CaptionsPath, metric_options, show_signatures
from captioner.cli.options import say, show
from captioner.system.foreign import plain

if TYPE_CHECKING:
    from captioner.metrics import Comparison
    from captioner.scoring.compare import Pair, Pairs
    from captioner.scoring.metric_sources import MetricSources
    from captioner.scoring.systems import CaptionSet, MetricOptions

VERDICTS = {"A": "A is better", "B": "B is better", "equal": "the same", "unsure": "unclear"}


@click.command("compare")
@click.argument("systems", nargs=-1, required=True, type=CaptionsPath())
@click.option(
    "--references",
    multiple=True,
    type=CaptionsPath(),
    help="Reference file; repeat for several.  [default: the references in the systems' files]",
)
@click.option(
    "--examples",
    type=click.IntRange(0, 10**6),
    default=3,
    show_default=True,
    help="Number of most improved and of most worsened images to show; two systems only.",
)
@metric_options("comparison")
def command(
    systems: tuple[Path, ...],
    references: tuple[Path, ...],
    examples: int,
    scoring: MetricOptions,
    sources: MetricSources,
) -> dict[str, Any]:
    """Compare the captions of two or more SYSTEMS on the same images.

    Systems are run folders, folders of `captioner evaluate`, predictions.jsonl files, or any file
    that `captioner score` reads. All are scored in the same way. The p-values come from the
    paired bootstrap and from approximate randomisation. With three or more systems, every pair is
    compared, and Holm's method corrects the p-values for the number of pairs.
    """
    if not scoring["resamples"]:
        raise click.UsageError("--resamples: a comparison needs at least 1")
    if len(systems) < 2:
        raise click.UsageError(f"give two systems or more; {systems[0]} is only one")
    from captioner.scoring.compare import compare_files, compare_many

    if len(systems) > 2:
        pairs = compare_many(systems, references, sources=sources, **scoring)
        _show_heading(pairs.systems, ", ".join(dict.fromkeys(pairs.matched_by)), pairs.warnings)
        _show_pairs(pairs)
        return pairs.as_dict()
    a, b = systems
    pair = compare_files(a, b, references, examples=examples, sources=sources, **scoring)
    _show_heading([pair.a, pair.b], pair.matched_by, pair.warnings)
    _show_pair(pair)
    return pair.as_dict()


def _show_heading(systems: Sequence[CaptionSet], how: str, warnings: Sequence[str]) -> None:
    from captioner.scoring.compare import label

    say(f"{len(systems[0].images):,} images matched by {how}")
    for warning in warnings:
        say(f"warning: {warning}")
    for number, system in enumerate(systems):
        decode = system.signature.get("decode")
        show(f"{label(number)}: {system.name}{f' ({plain(decode)})' if decode else ''}")
    show()


def _show_pairs(pairs: Pairs) -> None:
    from captioner.scoring.compare import conclusion, label

    values = pairs.values
    table = {
        label(number): [column[number] for column in values.values()]
        for number in range(len(pairs.systems))
    }
    table |= {name: [*row.values()] for name, row in pairs.spread.items()}
    rows: list[tuple[str, ...]] = [("", *values)]
    for name, cells in table.items():
        rows.append((name, *("-" if isnan(cell) else f"{cell:.3f}" for cell in cells)))
    _show_table(rows)
    notes = [
        f"{name}: undefined ({score.note})"
        for scores in pairs.scores.values()
        for name, score in scores.items()
        if score.note
    ]
    for note in dict.fromkeys(notes):
        show(note)
    show()
    show_signatures(pairs.scores[0, 1])
    show("\nVerdicts, p-values corrected by Holm's method")
    for (a, b), scores in pairs.scores.items():
        show(f"  {label(a)}, {label(b)}: {conclusion(scores, label(a), label(b))}")


def _show_pair(pair: Pair) -> None:
    from captioner.scoring.compare import conclusion

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
    _show_table(rows)
    for note in notes:
        show(note)


def _show_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        show("  ".join(cells).rstrip())
