"""`captioner score`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.cli.metric_options import (
    CaptionsPath,
    metric_options,
    show_scores,
    show_signatures,
    show_word_use,
)
from captioner.cli.options import say

if TYPE_CHECKING:
    from captioner.scoring.metric_sources import MetricSources
    from captioner.scoring.systems import MetricOptions


@click.command("score")
@click.argument("hypotheses", type=CaptionsPath())
@click.argument("references", nargs=-1, type=CaptionsPath())
@click.option("--subset", is_flag=True, help="Score only the images that have a caption.")
@metric_options("scores")
def command(
    hypotheses: Path,
    references: tuple[Path, ...],
    subset: bool,
    scoring: MetricOptions,
    sources: MetricSources,
) -> dict[str, Any]:
    """Score the captions of any system in HYPOTHESES against REFERENCES.

    Files are JSON Lines, COCO JSON (results or captions), {image: caption or captions}, tables with
    column names, or text with one caption per line. REFERENCES may also be a data set to train
    on. The references of several files are combined. Images are matched by
    id or file name, or by line if the files have neither. A predictions.jsonl of `captioner
    evaluate`, or its folder, contains its own references.
    """
    from captioner.scoring.score import score_file

    done = score_file(hypotheses, references, subset=subset, sources=sources, **scoring)
    for note in done.notes:
        say(f"note: {note}")
    if done.matched_by == "own references":
        say(f"{done.images:,} images with their own references in {done.source}")
    else:
        say(f"{done.images:,} images matched by {done.matched_by} with {done.source}")
    if done.empty:
        say(f"{done.empty:,} captions are empty and score 0")
    show_scores(done.scores)
    show_signatures(done.scores)
    show_word_use(done.word_use)
    scores: dict[str, Any] = {name: score.as_dict() for name, score in done.scores.items()}
    return scores | {"word_use": {name: asdict(use) for name, use in done.word_use.items()}}
