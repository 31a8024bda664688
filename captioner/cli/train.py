"""`captioner train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.options import (
    choose_config,
    config_argument,
    device_option,
    name_of_results,
    say,
    set_option,
)

if TYPE_CHECKING:
    from captioner.training.run import Summary


@click.command("train")
@config_argument
@set_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<name of the config, or of the data without one>]",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder.")
@click.option(
    "--overwrite", is_flag=True, help="Delete the run in the folder, keep other files, start over."
)
@device_option
def command(
    config: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    device: str,
) -> None:
    """Train a captioner.

    CONFIG is a YAML file or the name of a bundled one: scenes (drawn pictures, about a minute),
    photos, flickr8k, flickr30k or coco. By default it is scenes, or photos with --set data.root.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    folder = output or Path("runs") / name_of_results(config, overrides)

    from captioner.config import load_config

    # A resumed run keeps its own settings, except those of --set.
    saved = folder / "config.yaml"
    if resume and saved.is_file():
        config = str(saved)
    settings = load_config(choose_config(config, overrides), overrides)

    from captioner.training.run import Stopped, train

    try:
        done = train(settings, folder, resume=resume, overwrite=overwrite, device=device)
    except Stopped:
        say(f"stopped; to continue: captioner train --output {folder} --resume")
        raise SystemExit(1) from None
    _say_done(done)


def _say_done(done: Summary) -> None:
    progress = done.progress
    say(
        f"{best_line(done)} of {progress.epoch}; {progress.seconds:,.0f} s of training, "
        f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens per second, "
        f"{done.peak_memory / 2**30:.1f} GiB peak memory\n{progress.signature}\n"
        f"model: {done.folder / 'model'}   curves: {done.folder / 'curves.png'}\n"
        f"next: captioner caption IMAGE --model {done.folder}\n"
        f"      captioner evaluate --model {done.folder}"
    )


def best_line(done: Summary) -> str:
    """Return which epoch was kept, and why."""
    metric, progress = done.metric, done.progress
    score, epoch = progress.best_score, progress.best_epoch
    if score > 0:
        return f"best dev {metric} {score:.3f} after epoch {epoch}"
    reason = "is undefined" if math.isnan(score) else "is 0 after every epoch"
    return (
        f"dev {metric} {reason}, so the lowest dev loss chose: "
        f"{progress.best_loss:.3f} after epoch {epoch}"
    )
