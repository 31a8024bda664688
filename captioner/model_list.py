"""Lists the bundled models and the runs under `runs/`, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from captioner.encoder.preprocess import FILE_NAME
from captioner.errors import ModelError
from captioner.model_config import BUNDLED_MODELS, bundled_model, read_config
from captioner.run_dir import epoch_rank, read_metrics
from captioner.system.foreign import plain

FILES = ("model.safetensors", "vocab.json", FILE_NAME)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A bundled model, or a run that may have a model."""

    name: str  # for --model
    written: datetime | None  # when the model, or else the run, was last written; None: bundled
    size: int  # bytes of the model directory
    scores: dict[str, float]  # of the dev split at the best epoch, by metric; NaN: undefined
    problem: str = ""  # why the model cannot be used


def list_models(runs: Path = Path("runs")) -> list[ListedModel]:
    """Return the runs, newest first, and then the bundled models."""
    found = [_listed(run) for run in (runs.iterdir() if runs.is_dir() else ()) if _is_run(run)]
    found.sort(key=lambda listed: (listed.written or datetime.min, listed.name), reverse=True)
    bundled = [(name, run) for name in BUNDLED_MODELS if (run := bundled_model(name))]
    return found + [_listed(run, name) for name, run in bundled]


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("model", "config.yaml", "config.json"))


def _listed(run: Path, bundled: str | None = None) -> ListedModel:
    """Describe a run directory, or a model directory alone."""
    model = run if (run / "config.json").exists() else run / "model"
    try:
        files = [path for path in model.iterdir() if path.is_file()] if model.is_dir() else []
        newest = (model / "config.json" if files else run).stat().st_mtime
        size = sum(path.stat().st_size for path in files)
        problem = _problem(model) if files else "no model yet: not finished"
        scores = _scores(run)
    except (OSError, ValueError) as error:
        return ListedModel(bundled or str(run), None, 0, {}, f"cannot be read: {plain(error)}")
    written = None if bundled else datetime.fromtimestamp(newest)
    return ListedModel(bundled or str(run), written, size, scores, problem)


def _problem(model: Path) -> str:
    """Return why a model directory cannot be used, as far as its small files tell; "" if it can."""
    try:
        read_config(model)
    except ModelError as error:
        return str(error).removeprefix(f"{model}/")
    if missing := [name for name in FILES if not (model / name).is_file()]:
        return f"{missing[0]} is missing"
    try:
        with safe_open(model / "model.safetensors", framework="numpy"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"model.safetensors: cannot be read: {plain(error)}"


def _scores(run: Path) -> dict[str, float]:
    """Return the dev scores of a run's best epoch; none without `metrics.jsonl`."""
    epochs = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "epoch"]
    if not epochs:
        return {}
    metric = _metric(run / "config.yaml")
    ranks = [epoch_rank(line[metric], line.get("dev_loss", math.nan)) for line in epochs]
    best = epochs[ranks.index(max(ranks))]  # the first of equals, as in training
    return {name: best[name] for name in ("bleu_4", "cider_d")}


def _metric(config: Path) -> str:
    """Return the metric that chose the best epoch."""
    try:
        metric = yaml.safe_load(config.read_text(encoding="utf-8"))["training"]["metric"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        metric = None
    return metric if metric in ("bleu_4", "cider_d") else "cider_d"
