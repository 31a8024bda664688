"""The log of a run: stderr, `train.log`, `metrics.jsonl` and `curves.png`."""

from __future__ import annotations

import importlib.util
import json
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
    """The log of one run folder."""

    def __init__(self, folder: Path, *, silent: bool = False):
        """Log to a folder.

        Args:
            folder: run folder; created if absent.
            silent: print and write nothing; the leading process does.
        """
        self.folder = folder
        self.silent = silent
        if not silent:
            folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "train.log"
        self.metrics = folder / "metrics.jsonl"
        self.curves = folder / "curves.png"
        self.board: Board | None = None

    def open_board(self, step: int) -> None:
        """Also write to TensorBoard, if it is installed.

        Args:
            step: steps already done.
        """
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
        line = {"kind": kind, "epoch": epoch, "step": step} | values
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the metrics of steps that a resumed run repeats; keep lines of others."""
        if self.silent or not self.metrics.exists():
            return
        kept, foreign = [], 0
        for text in LINES.findall(self.metrics.read_bytes()):
            line = parse_metrics(text)
            if line is None and not text.endswith(b"\n") and _is_cut_short(text):
                continue
            foreign += line is None
            if line is None or line["step"] <= step:
                kept.append(text if text.endswith(b"\n") else text + b"\n")
        with whole_file(self.metrics, "in run") as aside:
            aside.write_bytes(b"".join(kept))
        if foreign:
            self.say(f"{self.metrics}: {ignored_lines(foreign)}; kept in the file")

    def draw_curves(self) -> None:
        """Draw `curves.png` from `metrics.jsonl`."""
        lines = read_metrics(self.metrics, self.say)
        with whole_file(self.curves, "in run") as aside:
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


def _is_cut_short(text: bytes) -> bool:
    """Return whether a line without an end is a line of metrics cut by a crash."""
    return LINE_START.startswith(text[: len(LINE_START)])


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, gradient norm and dev scores over the steps of a run.

    Args:
        lines: of `metrics.jsonl`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # slow to import

    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(11, 3.4), layout="constrained", dpi=120)
    loss, norm, score = figure.subplots(1, 3)
    step_numbers = [line["step"] for line in steps]
    epoch_ends = [line["step"] for line in epochs]
    if steps and all("reward" in line for line in steps):  # the loss of scst is no measure
        loss.plot(step_numbers, [line["reward"] for line in steps], lw=0.8)
        loss.set(title="reward of sampled captions", xlabel="step")
    else:
        trained = [line for line in epochs if "train_loss" in line]
        loss.plot(step_numbers, [line["loss"] for line in steps], lw=0.8, alpha=0.5, label="steps")
        ends, losses = [line["step"] for line in trained], [line["train_loss"] for line in trained]
        loss.plot(ends, losses, "o-", ms=3, label="epochs")
        loss.set(title="training loss", xlabel="step", ylabel="nats per token")
        loss.legend(frameon=False)
    norm.plot(step_numbers, [line["grad_norm"] for line in steps], lw=0.8, color="tab:green")
    norm.set(title="gradient norm before clipping", xlabel="step", yscale="log")
    # BLEU is in 0..1 and CIDEr-D in 0..10, so each has its own axis.
    sides = (("bleu_4", "tab:blue", score), ("cider_d", "tab:orange", score.twinx()))
    for name, colour, side in sides:
        side.plot(epoch_ends, [line[name] for line in epochs], "o-", ms=3, color=colour)
        side.set_ylabel(name, color=colour)
        side.spines["top"].set_visible(False)
    score.set(title="dev scores", xlabel="step")
    for axes in (loss, norm, score):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, format="png")
