"""Several runs that differ only in their seed, and a summary of their dev scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic_core import to_json

from captioner.config import Config
from captioner.errors import ConfigError
from captioner.run_dir import read_metrics, seed_folder
from captioner.system.devices import choose_device
from captioner.system.escapes import utf8_name
from captioner.system.files import write_text
from captioner.system.ownership import check
from captioner.system.world import joined
from captioner.training.run import Summary, check_folder, train

VALUES = ("bleu_4", "cider_d", "dev_loss")


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of several runs; undefined values are NaN."""

    file: Path  # of the summary
    metric: str  # name of the dev score that selects the epochs
    runs: list[Summary]
    mean: dict[str, float]  # of `VALUES`, at the best epoch of each run
    std: dict[str, float]  # standard deviation of a sample, with n - 1


def train_seeds(
    config: Config,
    folder: Path,
    count: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Sweep | None:
    """Train `count` runs, in `FOLDER-seed0` and so on, and write `FOLDER-seeds.json`.

    The first seed is that of the config. For the rest see `train`; to resume also starts the runs
    that are missing. Returns None in processes that do not lead.

    Raises:
        CaptionerError: as `train`; all folders are checked before the first run starts.
        Stopped: on SIGINT or SIGTERM, after the state of the current run is saved.
    """
    first = config.training.seed
    if not folder.name or first + count > 2**63:
        raise ConfigError(f"{folder}, training.seed {first}: cannot be counted up")
    file = folder.with_name(f"{folder.name}-seeds.json")
    configs = {
        seed: config.model_copy(
            update={"training": config.training.model_copy(update={"seed": seed})}
        )
        for seed in range(first, first + count)
    }
    with joined(choose_device(device)) as (world, _):
        if world.leads:
            check(file, "summary")
            for seed, settings in configs.items():
                check_folder(seed_folder(folder, seed), settings, resume, overwrite)
        runs = []
        for seed, settings in configs.items():
            place = seed_folder(folder, seed)
            if world.leads:
                say(f"seed {seed}: {place}")
            done = train(settings, place, resume=resume, overwrite=overwrite, device=device)
            runs.append(done)
        return _sum_up(file, config, runs) if world.leads else None


def _sum_up(file: Path, config: Config, runs: list[Summary]) -> Sweep:
    """Write the summary of runs whose seeds count up from the config's."""
    metric, first = config.training.metric, config.training.seed
    values = np.array([_best_values(run) for run in runs])
    mean = dict(zip(VALUES, values.mean(axis=0).tolist(), strict=True))
    std = dict(zip(VALUES, values.std(axis=0, ddof=1).tolist(), strict=True))
    rows = [
        {
            "folder": utf8_name(run.folder.name),
            "seed": seed,
            "best_epoch": run.progress.best_epoch,
            **dict(zip(VALUES, row.tolist(), strict=True)),
        }
        for seed, (run, row) in enumerate(zip(runs, values, strict=True), start=first)
    ]
    content = {"metric": metric, "runs": rows, "mean": mean, "std": std}
    text = to_json(content, indent=2, inf_nan_mode="null").decode() + "\n"
    write_text(file, text, "summary")
    return Sweep(file, metric, runs, mean, std)


def _best_values(run: Summary) -> list[float]:
    """Return the `VALUES` of a run's best epoch."""
    lines = read_metrics(run.folder / "metrics.jsonl")
    epochs = {line["epoch"]: line for line in lines if line["kind"] == "epoch"}
    best = epochs.get(run.progress.best_epoch, {})
    return [best.get(name, math.nan) for name in VALUES]
