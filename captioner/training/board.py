"""TensorBoard output, if the extra `tensorboard` is installed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from captioner.data.dataset import Example
from captioner.errors import ImageError
from captioner.images.decode import read_image

SAMPLES = 8  # dev images whose captions are shown after every epoch


class Board:
    """Writes scalars, sample captions and a histogram of the gradient norms of a run."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow, and an extra

        self.writer = SummaryWriter(str(folder), purge_step=step)  # hides events beyond the step

    def scalars(self, *, kind: str, epoch: int, step: int, **values: float | str) -> None:
        """Add the numbers of one line of `metrics.jsonl`."""
        for name, value in ({"epoch": epoch} | values).items():
            if not isinstance(value, str):
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def epoch(
        self, step: int, norms: Sequence[float], examples: Sequence[Example], captions: list[str]
    ) -> None:
        """Add the gradient norm of each step, and the captions of the first `SAMPLES` images."""
        self.writer.add_histogram("epoch/gradient norm", torch.tensor(norms), step)
        for number, (example, caption) in enumerate(zip(examples, captions, strict=False)):
            text = f"{caption}\n\n*{example.captions[0]}*"
            self.writer.add_text(f"caption/{number}", text, step)
            with suppress(ImageError):  # the file may be gone since it was encoded
                pixels = np.asarray(read_image(example.image))
                self.writer.add_image(f"image/{number}", pixels, step, dataformats="HWC")
        self.writer.flush()
