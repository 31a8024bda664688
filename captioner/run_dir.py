"""What a training run leaves behind: its model, its config, its metrics; and the newest run.

`runs/NAME` holds `model/`, `config.yaml`, `metrics.jsonl` and `checkpoints/`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from captioner.config import Config, load_config
from captioner.errors import ConfigError, ModelError
from captioner.model_dir import model_folder

STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})\.safetensors")
# What each kind of line of `metrics.jsonl` holds beside its epoch and step, and may hold.
NUMBERS = {
    "step": ("loss", "grad_norm", "clipped", "learning_rate"),
    "epoch": ("bleu_4", "cider_d"),
}
OPTIONAL = ("train_loss", "reward", "seconds", "tokens_per_second")
LINES = re.compile(rb"[^\n]*\n|[^\n]+")


def find_model(model: Path | None) -> Path:
    """Return the model directory to use.

    Args:
        model: what the user asked for, if anything.

    Raises:
        ModelError: if there is none.
    """
    if model is None and (named := os.environ.get("CAPTIONER_MODEL")):
        model = Path(named)
    if model is not None:
        return model_folder(model)
    finished = sorted(Path("runs").glob("*/model/config.json"), key=lambda p: p.stat().st_mtime)
    if not finished:
        raise ModelError(
            "no model: nothing finished under runs/ here; train one with `captioner train`, or "
            "name one with --model DIR or $CAPTIONER_MODEL"
        )
    return finished[-1].parent


def find_models(models: tuple[Path, ...]) -> list[Path]:
    """Return the model directories to use; see `find_model`."""
    return [find_model(model) for model in models or (None,)]


def config_of_model(
    folder: Path, data: str | None = None, overrides: tuple[str, ...] = ()
) -> Config:
    """Return the config that names the data to look at.

    Args:
        folder: model directory; where its run folder is still around it, the run's own config.
        data: another data set, folder or file.
        overrides: `section.key=value` strings.

    Raises:
        ConfigError: if neither says on what data.
    """
    path = folder.resolve().parent / "config.yaml"
    if data:
        overrides = (f"data.root={json.dumps(data)}", "data.format=auto", *overrides)
    elif not path.is_file():
        raise ConfigError(f"{folder}: no config.yaml beside it says on what data; name --data DIR")
    return load_config(str(path) if path.is_file() else None, overrides)


def read_metrics(
    path: Path,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`.

    Args:
        path: of the file; there may be none.
        say: takes a message that counts the foreign lines, which are left out.

    Returns:
        Lines of kind "step" and "epoch", each with all its numbers; others are left out.
    """
    if not path.is_file():
        return []
    lines = [*map(parse_metrics, LINES.findall(path.read_bytes()))]
    good = [line for line in lines if line is not None]
    if len(good) < len(lines):
        say(f"{path}: {left_out(len(lines) - len(good))}")
    return good


def left_out(count: int) -> str:
    """Say how many lines of a file are not of a run."""
    return f"{count:,} line(s) left out, which are not of a run"


def parse_metrics(text: bytes) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl`; None where a run wrote no such line."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("kind") not in NUMBERS:
        return None
    places = (line.get("epoch"), line.get("step"))
    if not all(type(value) is int and 0 <= value < 2**53 for value in places):
        return None
    # A score may be NaN: no number, but what was measured.
    values = [line.get(name, 0.0) for name in OPTIONAL] + [
        line.get(name) for name in NUMBERS[line["kind"]]
    ]
    if not all(type(value) is float or _is_small(value) for value in values):
        return None
    return line


def _is_small(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**53


def saved_steps(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; files of other names are not looked at."""
    found = {
        int(name[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (name := STEP.fullmatch(path.name)) and path.is_file()
    }
    return [found[step] for step in sorted(found)]


def identity_of(folder: Path) -> dict[str, Any]:
    """Return the identity of a run from the header of a checkpoint; empty where none can be read.

    No checksum is verified; `read_newest` does that.

    Args:
        folder: of the run's checkpoints.
    """
    for path in saved_steps(folder):
        try:
            with safe_open(path, framework="pt") as file:
                return dict(json.loads((file.metadata() or {})["identity"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
    return {}
