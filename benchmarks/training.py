"""Tokens per second of training, beside the textbook's loop and beside the bare kernels.

    python benchmarks/training.py

Contestants take turns on the same random captions (of Flickr8k's lengths and vocabulary)
with the decoder, the batch size and the precision of `configs/flickr8k.yaml`, words tied:

- ours: `Trainer`, as `captioner train` runs it: batches, forward, loss, backward, clipping, AdamW,
  moving average, progress bar, log; features come from a table.
- (a) the textbook: the pairs of picture and caption are shuffled; each batch's pictures are
  decoded and go through the eager CNN, in every epoch again; a cell reads the padded captions
  step by step. fp32, no gradients through the CNN. Ours must be at least 20 times as fast.
  Beside it, without a target: the same loop over pictures that each bring all their captions, so
  that a picture with five captions is encoded once and not five times in an epoch.
- (b) the bare kernels: embedding, LSTM, output layer, loss and backward on random ids, in batches
  of the same shapes without padding: nothing is gathered, dropped out, clipped or learnt. Same
  layers, same autocast, same loss. Ours must reach at least 0.85 of its speed.

On an NVIDIA GPU an epoch of COCO's size follows: 566,000 captions of 82,783 images, 2,048 features
of random numbers, 9,000 words, `configs/coco.yaml`; ours and the bare kernels, once each after a
warm-up. `--coco SHARE` runs that share of it on any device.

Speeds are medians over the rounds, in real tokens (padding does not count). Exits with code 1 if
a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NoReturn, Protocol

import numpy as np
import torch
from common import check, describe_machine, noise_jpeg
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models, transforms
from tqdm import tqdm

from captioner.config import Config, load_config
from captioner.data.caption_table import CaptionTable, epoch_order
from captioner.data.prepare import SplitTable
from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import DTYPES, best_precision
from captioner.text import Vocabulary
from captioner.training.dev import DevSplit
from captioner.training.loop import Trainer
from captioner.training.telemetry import RunLog

WORDS = 2536
IMAGES, CAPTIONS_PER_IMAGE = 512, 5
ROUNDS = 7


def make_table(
    vocabulary: Vocabulary, feature_size: int, *, images: int = IMAGES, captions: int | None = None
) -> CaptionTable:
    """Draw features of two views per image, and captions of 7 to 20 words, 11 on average."""
    random = np.random.default_rng(0)
    shares = np.array_split(range(captions or images * CAPTIONS_PER_IMAGE), images)
    texts = [
        [
            [vocabulary.words[i] for i in random.integers(len(vocabulary.words), size=length)]
            for length in 7 + random.binomial(13, 0.3, len(share))
        ]
        for share in shares
    ]
    features = torch.from_numpy(random.standard_normal((2 * images, feature_size), np.float32))
    views = torch.arange(2 * images).view(images, 2)
    return CaptionTable.build(features.half(), texts, vocabulary, views=views)


def tokens_of(table: CaptionTable) -> int:
    """Count the words and ends to predict."""
    return int(table.lengths.sum()) - len(table)


def no_captioner(_: Decoder) -> NoReturn:
    """Stand in for what makes captioners: nothing is scored here."""
    raise AssertionError


class Contestant(Protocol):
    """What takes part in a race."""

    def run(self) -> float:
        """Train for a while; return tokens per second."""


class Ours:
    """One pass over the table by `Trainer`."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        table: CaptionTable,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        sizes = {"vocab_size": len(vocabulary), "feature_size": table.features.shape[1]}
        decoder = Decoder(config.decoder, **sizes)
        dev = DevSplit(SplitTable((), table.features[:0], []), no_captioner, print)
        self.tokens = tokens_of(table)
        log = RunLog(folder / "run")
        decoder.to(device)
        self.trainer = Trainer(decoder, table, dev, config.training, log=log, identity={})

    def run(self) -> float:
        """Train for an epoch; return tokens per second."""
        progress = self.trainer.progress
        with tqdm(total=self.trainer.steps_per_epoch, leave=False) as bar:
            started = perf_counter()
            self.trainer._epoch(bar, [])
            seconds = perf_counter() - started
        progress.epoch, progress.batch = progress.epoch + 1, 0
        return self.tokens / seconds


class BareKernels:
    """The same layers on random ids, forward and backward."""

    def __init__(
        self, config: Config, vocab_size: int, table: CaptionTable, device: str = "cpu"
    ) -> None:
        decoder, self.training = config.decoder, config.training
        self.device = torch.device(device)
        self.embedding = nn.Embedding(vocab_size, decoder.embed_size)
        self.lstm = nn.LSTM(decoder.embed_size, decoder.hidden_size, batch_first=True)
        self.to_embed = nn.Linear(decoder.hidden_size, decoder.embed_size, bias=False)
        self.output = nn.Linear(decoder.embed_size, vocab_size)
        self.output.weight = self.embedding.weight
        self.layers = nn.ModuleList([self.embedding, self.lstm, self.to_embed, self.output])
        self.layers.to(self.device)
        lengths = table.lengths - 1
        batches = epoch_order(lengths, self.training.batch_size, seed=0, epoch=0)
        shapes = [(len(batch), int(lengths[batch].max())) for batch in batches]
        self.ids = [torch.randint(4, vocab_size, shape, device=self.device) for shape in shapes]
        dtype = DTYPES[best_precision(self.device)]
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def run(self) -> float:
        """Run every batch; return tokens per second."""
        started = perf_counter()
        for ids in self.ids:
            with self.autocast:
                outputs, _ = self.lstm(self.embedding(ids))
                logits = self.output(self.to_embed(outputs.flatten(0, 1)))
                smoothing = self.training.label_smoothing
                functional.cross_entropy(
                    logits.float(), ids.flatten(), label_smoothing=smoothing
                ).backward()
            self.layers.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return sum(ids.numel() for ids in self.ids) / (perf_counter() - started)


class Textbook:
    """A batch of the loop that tutorials show."""

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        table: CaptionTable,
        pictures: list[Path],
        captions_each: int,
    ) -> None:
        self.table, self.pictures, self.captions_each = table, pictures, captions_each
        self.batch_size = config.training.batch_size
        self.cnn = models.mobilenet_v2().eval().requires_grad_(False)
        self.cnn.classifier = nn.Identity()
        self.transform = transforms.Compose([
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])  # fmt: skip
        sizes = config.decoder
        self.start = nn.Linear(1280, sizes.hidden_size)
        self.embedding = nn.Embedding(vocab_size, sizes.embed_size)
        self.cell = nn.LSTMCell(sizes.embed_size, sizes.hidden_size)
        self.output = nn.Linear(sizes.hidden_size, vocab_size)
        layers = nn.ModuleList([self.start, self.embedding, self.cell, self.output])
        self.parameters = list(layers.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3)

    def run(self) -> float:
        """Train on one batch; return tokens per second."""
        started = perf_counter()
        owners = torch.randperm(IMAGES)[: self.batch_size // self.captions_each]
        images = [Image.open(self.pictures[i]).convert("RGB") for i in owners]
        features = self.cnn(torch.stack([self.transform(image) for image in images]))
        first = owners[:, None] * CAPTIONS_PER_IMAGE
        chosen = (first + torch.arange(self.captions_each)).flatten()
        captions = self.table.token_ids[chosen, : int(self.table.lengths[chosen].max())]
        tokens = self._step(features.repeat_interleave(self.captions_each, dim=0), captions)
        return tokens / (perf_counter() - started)

    def _step(self, features: Tensor, captions: Tensor) -> int:
        h = torch.tanh(self.start(features))
        c = torch.zeros_like(h)
        inputs, targets = captions[:, :-1], captions[:, 1:]
        loss = torch.zeros(())
        for t in range(inputs.shape[1]):
            h, c = self.cell(self.embedding(inputs[:, t]), (h, c))
            loss = loss + functional.cross_entropy(
                self.output(h), targets[:, t], ignore_index=Vocabulary.pad_id, reduction="sum"
            )
        tokens = int((targets != Vocabulary.pad_id).sum())
        self.optimizer.zero_grad()
        (loss / tokens).backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        return tokens


def race(contestants: Mapping[str, Contestant]) -> list[float]:
    """Let contestants take turns; print and return each one's median speed."""
    rounds = [[each.run() for each in contestants.values()] for _ in range(1 + ROUNDS)]
    speeds = [median(of) for of in zip(*rounds[1:], strict=True)]  # the first round warms up
    for name, speed in zip(contestants, speeds, strict=True):
        print(f"{name:24} {speed:10,.0f} tokens per second")
    return speeds


def coco_epoch(share: float, device: str, folder: Path) -> None:
    """Print how long an epoch of COCO's size takes, ours and the bare kernels.

    Args:
        share: of the data set, in (0, 1].
        device: to train on.
        folder: for what the runs write.
    """
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    words, images, captions = 9_000, round(82_783 * share), round(566_000 * share)
    vocabulary = Vocabulary(tuple(f"word{i}" for i in range(words)), (5,) * words, 5)
    table = make_table(vocabulary, 2048, images=images, captions=captions)
    print(f"{captions:,} captions of {images:,} images, {tokens_of(table):,} tokens, on {device}:")
    config = load_config("coco", ["training.epochs=100"])
    contestants: dict[str, Contestant] = {
        "ours": Ours(config, vocabulary, table, folder, device),
        "bare kernels": BareKernels(config, len(vocabulary), table, device),
    }
    speeds = {name: [each.run() for _ in range(2)][-1] for name, each in contestants.items()}
    for name, speed in speeds.items():
        print(
            f"{name:24} {speed:12,.0f} tokens per second, {tokens_of(table) / speed:7.1f} s an "
            f"epoch, {speed / speeds['bare kernels']:.2f} of the bare kernels"
        )


def main() -> int:
    print(describe_machine())
    parser = argparse.ArgumentParser()
    parser.add_argument("--coco", type=float, metavar="SHARE", help="only this share of COCO")
    share = parser.parse_args().coco
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if share or device == "cuda":
        with tempfile.TemporaryDirectory() as name:
            coco_epoch(share or 1.0, device, Path(name))
    if share:
        return 0
    torch.manual_seed(0)
    config = load_config("flickr8k", ["training.epochs=1000", "decoder.tie_weights=true"])
    vocabulary = Vocabulary(tuple(f"word{i}" for i in range(WORDS)), (5,) * WORDS, 5)
    table = make_table(vocabulary, feature_size=1280)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [folder / f"{i}.jpg" for i in range(IMAGES)]
        for seed, picture in enumerate(pictures):
            noise_jpeg(picture, seed=seed)
        words = len(vocabulary)
        ours = {"ours": Ours(config, vocabulary, table, folder)}
        bare = {"bare kernels": BareKernels(config, words, table)}
        textbook = {
            "textbook": Textbook(config, words, table, pictures, 1),
            "textbook, all captions": Textbook(config, words, table, pictures, CAPTIONS_PER_IMAGE),
        }
        # Two races: after the textbook's CNN the next to run would have to warm up memory again.
        fast, kernels = race(ours | bare)
        after_cnn, slow, kinder = race(ours | textbook)
    print(f"ours / textbook, all captions of a picture at once: {after_cnn / kinder:.2f}")
    met = check("ours / textbook", after_cnn / slow, at_least=20)
    met &= check("ours / bare kernels", fast / kernels, at_least=0.85)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
