"""`captioner score`."""

from __future__ import annotations

from pathlib import Path

import click

from captioner.cli.metric_options import (
    metrics_option,
    resamples_option,
    seed_option,
    show_scores,
    show_signatures,
    write_json,
)
from captioner.cli.options import say


@click.command("score")
@click.argument("hypotheses", type=click.Path(path_type=Path, exists=True))
@click.argument("references", nargs=-1, type=click.Path(path_type=Path, exists=True))
@metrics_option
@click.option("--subset", is_flag=True, help="Score only the images that have a caption.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@resamples_option
@seed_option
def command(
    hypotheses: Path,
    references: tuple[Path, ...],
    metrics: list[str],
    subset: bool,
    output: Path | None,
    resamples: int,
    seed: int,
) -> None:
    """Score the captions of any system in HYPOTHESES against REFERENCES.

    Files are JSON Lines, COCO JSON (results or captions), CSV or TSV with column names, or text
    with one caption per line. The references of several files are combined. Images are matched by
    id or file name, or by line if the files have neither. A predictions.jsonl of `captioner
    evaluate`, or its folder, contains its own references.
    """
    from captioner.scoring.score import score_file
    from captioner.system.ownership import check

    if output:
        check(output, "scores")
    done = score_file(
        hypotheses, references, metrics=metrics, resamples=resamples, seed=seed, subset=subset
    )
    if done.matched_by == "own references":
        say(f"{done.images:,} images with their own references in {done.source}")
    else:
        say(f"{done.images:,} images matched by {done.matched_by} with {done.source}")
    if done.empty:
        say(f"{done.empty:,} captions are empty and score 0")
    show_scores(done.scores)
    show_signatures(done.scores)
    if output:
        rows = {name: score.as_dict() for name, score in done.scores.items()}
        write_json(output, rows, "scores")
