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
from time import perf_counter

import numpy as np
import torch
from common import check, describe_machine
from training import WORDS, Ours, Variant, make_table, race

from captioner.config import Config, load_config
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.encoder.encoder import dtype_of
from captioner.search import beam_search
from captioner.text import Vocabulary

VECTOR, PLACES, CHANNELS = 1280, 49, 256
WIDTHS = {"none": VECTOR, "spatial": VECTOR + PLACES * CHANNELS}  # numbers of an image
COCO_ROWS = 2 * 113_287  # both views of every training image of Karpathy's split
IMAGES, BEAM, LENGTH = 64, 5, 20
VOCABULARY = Vocabulary({f"word{i}": 5 for i in range(WORDS)}, 5)


def settings(attention: str) -> Config:
    """Return the recipe's configuration, with or without attention."""
    return load_config("flickr8k", [f"decoder.attention={attention}", "training.epochs=1000"])


def sizes(attention: str) -> dict[str, int]:
    """Return what a decoder needs to know of the places."""
    return {"places": PLACES, "channels": CHANNELS} if attention == "spatial" else {}


class Search:
    """Beam search of 64 images, all captions of full length: once per turn."""

    def __init__(self, attention: str) -> None:
        config = settings(attention)
        torch.manual_seed(0)
        width, vocab_size = WIDTHS[attention], len(VOCABULARY)
        decoder = Decoder(
            config.decoder, vocab_size=vocab_size, feature_size=width, **sizes(attention)
        )
        with torch.no_grad():
            decoder.output.bias[Vocabulary.eos_id] = -1e4
        self.features = torch.randn(IMAGES, width)
        changes = {"beam_size": BEAM, "max_length": LENGTH}
        self.options = config.decoding.model_copy(update=changes)
        dtype = dtype_of(self.options.precision, torch.device("cpu"))
        self.stepper = decoder.eval().stepper(dtype)

    def run(self) -> float:
        """Search; return captions per second."""
        started = perf_counter()
        with torch.inference_mode():
            hidden, step = self.stepper.start(self.features)
            beam_search(step, hidden, SPECIAL_IDS, self.options, 1)
        return IMAGES / (perf_counter() - started)


class After:
    """A variant that is prepared before each turn."""

    def __init__(self, prepare: Callable[[], object], variant: Variant) -> None:
        self.prepare, self.variant = prepare, variant

    def run(self) -> float:
        """Prepare, then run the variant."""
        self.prepare()
        return self.variant.run()


def on_disk(rows: int, folder: Path) -> bool:
    """Compare features in memory with features in a file."""
    file = folder / "rows.f16"
    width = WIDTHS["spatial"]
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
    table = make_table(VOCABULARY, 1)
    # Captions of images all over the file.
    spread = torch.randperm(rows)[: table.rows.numel()].view_as(table.rows)
    in_memory = replace(table, features=mapped[spread.flatten()].clone())
    in_file = replace(table, features=mapped, rows=spread)
    config = settings("spatial")

    def drop() -> None:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def read() -> None:
        mapped[spread.flatten()].sum()

    reading = Ours(config, VOCABULARY, in_file, folder / "file", **sizes("spatial"))
    memory, warm, cold = race(
        {
            "features in memory": Ours(
                config, VOCABULARY, in_memory, folder / "memory", **sizes("spatial")
            ),
            "in a file, warm": After(read, reading),
            "in a file, cold": After(drop, reading),
        }
    )
    print(f"cold / memory: {cold / memory:.2f}")
    return check("warm / memory", warm / memory, at_least=0.95)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the file on disk")
    rows = parser.parse_args().rows
    print(describe_machine())
    met = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loops = {
            attention: Ours(
                settings(attention),
                VOCABULARY,
                make_table(VOCABULARY, width),
                folder / attention,
                **sizes(attention),
            )
            for attention, width in WIDTHS.items()
        }
        searches = {attention: Search(attention) for attention in WIDTHS}
        for work, unit, variants in (
            ("training", "tokens", loops),
            ("search", "captions", searches),
        ):
            named = {f"{work}, attention {name}": each for name, each in variants.items()}
            without, attention = race(named, unit)
            met &= check(f"{work}, attention / pooled", attention / without, at_least=0.6)
        met &= on_disk(rows, folder)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
