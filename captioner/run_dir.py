"""Finds and reads the files of training runs.

A run folder holds `model/`, `config.yaml`, `metrics.jsonl` and `checkpoints/`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from captioner.config import Config, load_config
from captioner.errors import ConfigError, ModelError
from captioner.hub import cached_name
from captioner.model_config import (
    BUNDLED_MODELS,
    bundled_model,
    bundled_name,
    model_folder,
    read_config,
)

STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})\.safetensors")
# Required keys of each kind of line in `metrics.jsonl`, besides `epoch` and `step`.
NUMBERS = {
    "step": ("loss", "grad_norm", "clipped", "learning_rate"),
    "epoch": ("bleu_4", "cider_d"),
}
OPTIONAL = ("train_loss", "dev_loss", "reward", "seconds", "tokens_per_second")
LINES = re.compile(rb"[^\n]*\n|[^\n]+")


def find_model(model: Path | None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the model directory of a model or run directory, or of a bundled model.

    By default it is in `$CAPTIONER_MODEL`, or else the newest below `runs/`, or else the bundled
    model for photographs; then one line says which.

    Raises:
        ModelError: if there is no model.
    """
    if model is not None:
        folder = model_folder(model)
        if str(model) in BUNDLED_MODELS and not bundled_name(folder):
            say(f"model: {folder} (this folder, not the bundled model {model})")
        return folder
    if named := os.environ.get("CAPTIONER_MODEL"):
        folder = model_folder(named)
        say(f"model: {bundled_name(folder) or folder} ($CAPTIONER_MODEL)")
        return folder
    finished = sorted(Path("runs").glob("*/model/config.json"), key=lambda p: p.stat().st_mtime)
    if finished:
        say(f"model: {finished[-1].parent} (the newest run)")
        return finished[-1].parent
    if run := bundled_model("photos"):
        say("model: photos (bundled with captioner)")
        return run / "model"
    raise ModelError(
        "no model: no finished run in runs/; train a model with `captioner train`, or name one "
        "with --model DIR or $CAPTIONER_MODEL"
    )


def find_models(
    models: tuple[Path, ...], say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Return the model directories to use; see `find_model`."""
    return [find_model(model, say) for model in models or (None,)]


def results_folder(model: Path, kind: str) -> Path:
    """Return the folder for results of a model directory.

    It is in the model's run, or else, for a bundled model or one of the Hub, in the working
    directory.
    """
    name = bundled_name(model) or cached_name(model)
    return Path(kind) / name if name else model.parent / kind


def seed_folder(folder: Path, seed: int) -> Path:
    """Return the run folder of a seed, of several runs that differ in their seed."""
    return folder.with_name(f"{folder.name}-seed{seed}")


def first_seed_folder(folder: Path) -> Path | None:
    """Return the run folder of the lowest seed; None if there is no run."""
    pattern = re.compile(re.escape(folder.name) + "-seed(0|[1-9][0-9]{0,18})")
    seeds = [
        int(name[1])
        for place in (folder.parent.iterdir() if folder.parent.is_dir() else ())
        if (name := pattern.fullmatch(place.name)) and (place / "config.yaml").is_file()
    ]
    return seed_folder(folder, min(seeds)) if seeds else None


def config_of_model(
    folder: Path, data: str | None = None, overrides: tuple[str, ...] = ()
) -> Config:
    """Return the config of the run that trained a model, from the parent of the model's folder.

    Data, a folder or file, and overrides, such as `section.key=value`, replace settings.

    Raises:
        ConfigError: if there is neither a `config.yaml` nor `data`, or it has mistakes.
        ModelError: if the model needs a plug-in that is not installed.
    """
    path = folder.resolve().parent / "config.yaml"
    if data:
        overrides = (f"data.root={json.dumps(data)}", "data.format=auto", *overrides)
    elif not path.is_file():
        raise ConfigError(
            f"{folder}: no config.yaml in the parent folder; name the data with --data DIR"
        )
    try:
        return load_config(str(path) if path.is_file() else None, overrides)
    except ConfigError:
        if (folder / "config.json").is_file():
            read_config(folder)  # says which plug-in the model needs, and what to install
        raise


def read_metrics(path: Path, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` that a run wrote; none if the file is absent."""
    if not path.is_file():
        return []
    lines = [*map(parse_metrics, LINES.findall(path.read_bytes()))]
    good = [line for line in lines if line is not None]
    if len(good) < len(lines):
        say(f"{path}: {ignored_lines(len(lines) - len(good))}")
    return good


def ignored_lines(count: int) -> str:
    """Return a message with the number of lines that captioner did not write."""
    return f"{count:,} line(s) ignored, not metrics of a run"


def parse_metrics(text: bytes) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl`; None if a run did not write it."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("kind") not in NUMBERS:
        return None
    position = (line.get("epoch"), line.get("step"))
    if not all(type(value) is int and 0 <= value < 2**53 for value in position):
        return None
    # JSON has no NaN: an undefined value is null.
    line = {name: math.nan if value is None else value for name, value in line.items()}
    values = [line.get(name, 0.0) for name in OPTIONAL]
    values += [line.get(name) for name in NUMBERS[line["kind"]]]
    for value in values:
        if type(value) is not float and not (type(value) is int and abs(value) < 2**53):
            return None
    return line


def epoch_rank(score: float, dev_loss: float) -> tuple[float, float]:
    """Return a key that grows with the quality of an epoch; scores are at least 0."""
    return (-1 if math.isnan(score) else score, -math.inf if math.isnan(dev_loss) else -dev_loss)


def saved_steps(folder: Path) -> list[Path]:
    """Return the checkpoint files of a run, oldest first; other names are ignored."""
    paths = {
        int(name[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (name := STEP.fullmatch(path.name)) and path.is_file()
    }
    return [paths[step] for step in sorted(paths)]


def identity_of(folder: Path) -> dict[str, Any]:
    """Return the identity in the first readable checkpoint of a run; empty if there is none.

    Does not verify the checksum; `read_newest` does.
    """
    for path in saved_steps(folder):
        try:
            with safe_open(path, framework="pt") as file:
                return dict(json.loads((file.metadata() or {})["identity"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
    return {}
