"""The log of a run: stderr, `train.log`, `metrics.jsonl` and `curves.png`."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from captioner.run_dir import LINES, ignored_lines, parse_metrics, read_metrics
from captioner.system.disk import writing
from captioner.system.files import whole_file
from captioner.system.foreign import message
from captioner.system.ownership import begin
from captioner.training.board import Board
from captioner.training.curves import draw_curves

LINE_START = b'{"kind": "'


class RunLog:
    """The log of one run folder; a silent one prints and writes nothing.

    One that is waiting only prints, and writes to the folder from `open` on.
    """

    def __init__(self, folder: Path, *, silent: bool = False, waiting: bool = False):
        self.folder = folder
        self.silent = silent
        self.waiting: list[str] | None = [] if waiting else None  # lines of `train.log` so far
        if not silent and not waiting:
            folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "train.log"
        self.metrics = folder / "metrics.jsonl"
        self.board: Board | None = None  # if TensorBoard is installed

    def open(self) -> None:
        """Write what was said so far, and everything from now on, to the folder."""
        lines, self.waiting = self.waiting or [], None
        self._write("".join(lines))

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
        self._write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))

    def _write(self, text: str) -> None:
        if self.waiting is not None:
            self.waiting.append(text)
            return
        with writing(self.text), self.text.open("a", encoding="utf-8") as file:
            file.write(text)

    def record(self, *, kind: str, epoch: int, step: int, **values: float | str) -> None:
        """Append one line to `metrics.jsonl`, and its numbers to TensorBoard."""
        if self.silent:
            return
        if self.board:
            self.board.scalars(kind=kind, epoch=epoch, step=step, **values)
        line: dict[str, float | str | None] = {"kind": kind, "epoch": epoch, "step": step}
        for name, value in values.items():
            line[name] = None if isinstance(value, float) and math.isnan(value) else value
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
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

    def draw_curves(self, *, clip_norm: float, best_epoch: int) -> None:
        """Draw `curves.png` from `metrics.jsonl`."""
        lines = read_metrics(self.metrics, self.say)
        with whole_file(self.folder / "curves.png", "in run") as aside:
            draw_curves(lines, aside, clip_norm=clip_norm, best_epoch=best_epoch)


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
