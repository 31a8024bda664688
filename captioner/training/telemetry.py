"""The log of a run: stderr, `train.log`, `metrics.jsonl` and `curves.png`."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from captioner.run_dir import LINES, ignored_lines, parse_metrics, read_metrics
from captioner.system.files import whole_file
from captioner.system.foreign import message
from captioner.system.ownership import begin
from captioner.training.board import Board

LINE_START = b'{"kind": "'


class RunLog:
    """The log of one run folder; a silent one prints and writes nothing."""

    def __init__(self, folder: Path, *, silent: bool = False):
        self.folder = folder
        self.silent = silent
        if not silent:
            folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "train.log"
        self.metrics = folder / "metrics.jsonl"
        self.board: Board | None = None  # if TensorBoard is installed

    def open_board(self, step: int) -> None:
        """Also write to TensorBoard, if it is installed, after `step` steps."""
        if not self.silent and importlib.util.find_spec("tensorboard"):
            folder = self.folder / "tensorboard"
            begin(folder, "tensorboard")
            self.board = Board(folder, step)

    def say(self, text: str) -> None:
        """Print a message above the progress bar, and write it to `train.log` with the time."""
        if self.silent:
            return
        text = message(text)
        tqdm.write(text, file=sys.stderr)
        stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        with self.text.open("a", encoding="utf-8") as file:
            file.write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))

    def record(self, *, kind: str, epoch: int, step: int, **values: float | str) -> None:
        """Append one line to `metrics.jsonl`, and its numbers to TensorBoard."""
        if self.silent:
            return
        if self.board:
            self.board.scalars(kind=kind, epoch=epoch, step=step, **values)
        line: dict[str, float | str | None] = {"kind": kind, "epoch": epoch, "step": step}
        for name, value in values.items():
            line[name] = None if isinstance(value, float) and math.isnan(value) else value
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the metrics of steps that a resumed run repeats; keep lines of others."""
        if self.silent or not self.metrics.exists():
            return
        kept, foreign = [], 0
        for text in LINES.findall(self.metrics.read_bytes()):
            line = parse_metrics(text)
            ended = text.endswith(b"\n")
            if line is None and not ended and LINE_START.startswith(text[: len(LINE_START)]):
                continue  # a line of metrics that a crash cut short
            foreign += line is None
            if line is None or line["step"] <= step:
                kept.append(text if ended else text + b"\n")
        with whole_file(self.metrics, "in run") as aside:
            aside.write_bytes(b"".join(kept))
        if foreign:
            self.say(f"{self.metrics}: {ignored_lines(foreign)}; kept in the file")

    def draw_curves(self) -> None:
        """Draw `curves.png` from `metrics.jsonl`."""
        lines = read_metrics(self.metrics, self.say)
        with whole_file(self.folder / "curves.png", "in run") as aside:
            draw_curves(lines, aside)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, gradient norm and dev scores over the steps of a run, as a PNG file."""
    from matplotlib.figure import Figure  # slow to import

    def plot(axes: Any, lines: list[dict[str, Any]], name: str, *style: str, **how: Any) -> None:
        axes.plot([line["step"] for line in lines], [line[name] for line in lines], *style, **how)

    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(11, 3.4), layout="constrained", dpi=120)
    loss, norm, score = figure.subplots(1, 3)
    if steps and all("reward" in line for line in steps):  # the loss of scst is no measure
        plot(loss, steps, "reward", lw=0.8)
        loss.set(title="reward of sampled captions", xlabel="step")
    else:
        plot(loss, steps, "loss", lw=0.8, alpha=0.5, label="steps")
        trained = [line for line in epochs if "train_loss" in line]
        plot(loss, trained, "train_loss", "o-", ms=3, label="epochs")
        loss.set(title="training loss", xlabel="step", ylabel="nats per token")
        loss.legend(frameon=False)
    plot(norm, steps, "grad_norm", lw=0.8, color="tab:green")
    norm.set(title="gradient norm before clipping", xlabel="step", yscale="log")
    # BLEU is in 0..1 and CIDEr-D in 0..10, so each has its own axis.
    sides = (("bleu_4", "tab:blue", score), ("cider_d", "tab:orange", score.twinx()))
    for name, colour, side in sides:
        plot(side, epochs, name, "o-", ms=3, color=colour)
        side.set_ylabel(name, color=colour)
        side.spines["top"].set_visible(False)
    score.set(title="dev scores", xlabel="step")
    for axes in (loss, norm, score):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, format="png")
