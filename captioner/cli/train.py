"""`captioner train`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from captioner.cli.options import (
    config_argument,
    device_option,
    leads,
    load_settings,
    name_of_results,
    say,
    set_option,
    show,
)
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.config import Config
    from captioner.system.world import World
    from captioner.training.run import Summary
    from captioner.training.sweep import Sweep


class How(TypedDict):
    """Arguments that `train` and `train_seeds` share."""

    resume: bool
    overwrite: bool
    device: str


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
@click.option(
    "--seeds",
    type=click.IntRange(2, 1000),
    help="Train so many runs, with seeds from training.seed up, and sum them up. The run folders "
    "end with -seed0, -seed1, ...",
)
@device_option
def command(
    config: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    seeds: int | None,
    device: str,
) -> None:
    """Train a captioner.

    CONFIG is a YAML file or the name of a bundled one: scenes (drawn pictures, about a minute),
    photos, flickr8k, flickr30k or coco. By default it is scenes, or photos with --set data.root.
    """
    _check_restarts(resume, overwrite)
    folder = output or Path("runs") / name_of_results(config, overrides)

    from captioner.run_dir import first_seed_folder

    existing = (first_seed_folder(folder) if seeds else folder) if resume else None
    with _joined(device) as world:
        settings = world.lead(lambda: _settings(config, overrides, existing))

        from captioner.training.run import Stopped, train
        from captioner.training.sweep import train_seeds

        how: How = {"resume": resume, "overwrite": overwrite, "device": device}
        try:
            if seeds is None:
                _say_done(train(settings, folder, **how))
            else:
                _show_sweep(train_seeds(settings, folder, seeds, **how, say=say))
        except Stopped:
            several = f" --seeds {seeds}" if seeds else ""
            say(f"stopped; to continue: captioner train --output {folder}{several} --resume")
            raise SystemExit(1) from None


def _check_restarts(resume: bool, overwrite: bool) -> None:
    """Refuse `torchrun --max-restarts` without --resume: a second start would find a run."""
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if resume or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    if leads() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        raise ConfigError(
            "torchrun --max-restarts needs --resume, so that a restart continues the run; "
            "--resume also starts a run that does not exist"
        )
    raise SystemExit(2)  # the message is out; torchrun restarts after every failure


@contextmanager
def _joined(device: str) -> Iterator[World]:
    """Join the other processes of `torchrun`, if it started this one; see `joined`."""
    from captioner.system.world import World, joined

    if "WORLD_SIZE" not in os.environ:  # torch takes a second to import
        yield World()
        return
    from captioner.system.devices import choose_device

    with joined(choose_device(device)) as (world, _):
        yield world


def _settings(config: str | None, overrides: tuple[str, ...], existing: Path | None) -> Config:
    """Load the config; a resumed run keeps its own settings, except those of --set."""
    if existing and (existing / "config.yaml").is_file():
        config = str(existing / "config.yaml")
    return load_settings(config, overrides)


def _show_sweep(sweep: Sweep | None) -> None:
    if sweep is None:  # another process reports
        return
    for run in sweep.runs:
        say(f"{run.folder}: {best_line(run)}")
    say(f"wrote {sweep.file}")
    values = ", ".join(
        f"{name} undefined" if math.isnan(mean) else f"{name} {mean:.3f} +- {sweep.std[name]:.3f}"
        for name, mean in sweep.mean.items()
    )
    show(f"dev {values} (mean and standard deviation of {len(sweep.runs)} runs)")


def _say_done(done: Summary) -> None:
    if not leads():
        return
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
