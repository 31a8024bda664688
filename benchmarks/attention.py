"""What spatial attention costs: training, search, and reading places from disk.

    python benchmarks/attention.py [--rows 20000]

The decoder is that of `configs/flickr8k.yaml` with Flickr8k's vocabulary, with random weights and
features. One CNN has 1,280 features, and a grid of 7 x 7 places with 256 numbers each. One run
measures:

- training: tokens per second of `captioner train`'s loop with attention / without. Target: at
  least 0.6.
- search: captions per second of 64 images, beam 5, with attention / without. Every caption has 20
  words. Target: at least 0.6.
- disk: tokens per second with the features in a file, read through a memory map / in memory. `cold`
  drops the file from the page cache before each epoch, `warm` reads it first. Target: at least
  0.95 warm. The file has `--rows` rows; COCO has 226,574, mirrored views included.

The variants take turns; speeds are medians over the rounds. The exit code is 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import check, describe_machine
from torch import Tensor
from tqdm import tqdm
from training import WORDS, make_table, no_captioner, tokens_of

from captioner.config import Config, load_config
from captioner.data.caption_table import CaptionTable
from captioner.data.prepare import SplitTable
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.encoder.encoder import FeatureSizes, dtype_of
from captioner.search import beam_search
from captioner.system.world import World
from captioner.text import Vocabulary
from captioner.training.dev import DevSplit
from captioner.training.loop import Trainer
from captioner.training.telemetry import RunLog

POOLED: FeatureSizes = {"feature_size": 1280, "places": 0, "channels": 0}
GRID: FeatureSizes = {"feature_size": 1280 + 49 * 256, "places": 49, "channels": 256}
COCO_ROWS = 2 * 113_287  # both views of every training image of Karpathy's split
IMAGES, BEAM, LENGTH = 64, 5, 20
ROUNDS = 5

Variant = Callable[[], float]


def settings(attention: str) -> Config:
    """Return the recipe's configuration, with or without attention."""
    return load_config("flickr8k", [f"decoder.attention={attention}", "training.epochs=1000"])


def training(config: Config, table: CaptionTable, sizes: FeatureSizes, folder: Path) -> Variant:
    """Return a function that trains for an epoch and returns tokens per second."""
    torch.manual_seed(0)
    decoder = Decoder(config.decoder, vocab_size=WORDS + 4, **sizes)
    dev = DevSplit(SplitTable((), table.features[:0], []), table, no_captioner, print)
    trainer = Trainer(decoder, table, dev, config.training, RunLog(folder), {}, World())
    tokens = tokens_of(table)

    def run() -> float:
        with tqdm(total=trainer.steps_per_epoch, leave=False, disable=True) as bar:
            started = perf_counter()
            trainer._epoch(bar, [])
        return tokens / (perf_counter() - started)

    return run


def searching(config: Config, sizes: FeatureSizes) -> Variant:
    """Return a function that captions 64 images and returns captions per second."""
    torch.manual_seed(0)
    decoder = Decoder(config.decoder, vocab_size=WORDS + 4, **sizes).eval()
    with torch.no_grad():
        decoder.output.bias[Vocabulary.eos_id] = -1e4  # every caption has the full length
    features = torch.randn(IMAGES, sizes["feature_size"])
    options = config.decoding.model_copy(update={"beam_size": BEAM, "max_length": LENGTH})
    stepper = decoder.stepper(dtype_of(options.precision, torch.device("cpu")))

    def run() -> float:
        started = perf_counter()
        with torch.inference_mode():
            hidden, step = stepper.start(features)
            beam_search(step, hidden, SPECIAL_IDS, options, 1)
        return IMAGES / (perf_counter() - started)

    return run


def race(variants: dict[str, Variant], unit: str) -> list[float]:
    """Run variants in turn; print and return the median speed of each."""
    rounds = [[run() for run in variants.values()] for _ in range(1 + ROUNDS)]
    speeds = [median(runs) for runs in zip(*rounds[1:], strict=True)]  # the first round warms up
    for name, speed in zip(variants, speeds, strict=True):
        print(f"{name:28} {speed:10,.0f} {unit} per second")
    return speeds


def on_disk(rows: int, folder: Path) -> bool:
    """Compare features in memory with features in a file."""
    file = folder / "rows.f16"
    width = GRID["feature_size"]
    print(
        f"{rows:,} rows of {2 * width / 1e3:.1f} kB, {2 * width * rows / 1e9:.1f} GB; COCO, "
        f"mirrored: {2 * width * COCO_ROWS / 1e9:.1f} GB"
    )
    stored = np.memmap(file, np.float16, "w+", shape=(rows, width))
    noise = np.random.default_rng(0).standard_normal((512, width), np.float32).astype(np.float16)
    for start in range(0, rows, len(noise)):
        stored[start : start + len(noise)] = noise[: rows - start]
    stored.flush()
    mapped = torch.from_numpy(np.memmap(file, np.float16, "c", shape=(rows, width)))
    table = make_table(Vocabulary({f"word{i}": 5 for i in range(WORDS)}, 5), 1)
    # Captions of images all over the file.
    spread = torch.randperm(rows)[: table.rows.numel()].view_as(table.rows)
    config = settings("spatial")
    in_memory = replace(table, features=mapped[spread.flatten()].clone())
    in_file = replace(table, features=mapped, rows=spread)

    def after(prepare: Callable[[], None], run: Variant) -> Variant:
        def prepared() -> float:
            prepare()
            return run()

        return prepared

    def drop() -> None:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def read() -> None:
        mapped[spread.flatten()].sum()

    run = training(config, in_file, GRID, folder / "file")
    memory, warm, cold = race(
        {
            "features in memory": training(config, in_memory, GRID, folder / "memory"),
            "in a file, warm": after(read, run),
            "in a file, cold": after(drop, run),
        },
        "tokens",
    )
    print(f"cold / memory: {cold / memory:.2f}")
    return check("warm / memory", warm / memory, at_least=0.95)


def features_of(table: CaptionTable, sizes: FeatureSizes) -> Tensor:
    """Return random features for the rows of a table, fp16 (R, F)."""
    return torch.randn(len(table.features), sizes["feature_size"]).half()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the file on disk")
    rows = parser.parse_args().rows
    print(describe_machine())
    table = make_table(Vocabulary({f"word{i}": 5 for i in range(WORDS)}, 5), 1)
    pooled, looking = settings("none"), settings("spatial")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without, attention = race(
            {
                "training, pooled": training(
                    pooled, replace(table, features=features_of(table, POOLED)), POOLED, folder
                ),
                "training, attention": training(
                    looking, replace(table, features=features_of(table, GRID)), GRID, folder
                ),
            },
            "tokens",
        )
        met = check("training, attention / pooled", attention / without, at_least=0.6)
        without, attention = race(
            {
                "search, pooled": searching(pooled, POOLED),
                "search, attention": searching(looking, GRID),
            },
            "captions",
        )
        met &= check("search, attention / pooled", attention / without, at_least=0.6)
        met &= on_disk(rows, folder)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
