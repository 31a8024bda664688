"""Training speed in tokens per second, compared with a textbook loop and with bare kernels.

    python benchmarks/training.py

The variants take turns on the same random captions, with the lengths and the vocabulary size of
Flickr8k, and the decoder, batch size and precision of `configs/flickr8k.yaml` with tied words:

- ours: `Trainer`, as in `captioner train`: batches, forward, loss, backward, clipping, AdamW,
  moving average, progress bar and log, with features from a table.
- textbook: the pairs of image and caption are shuffled. In every epoch, the images of each batch
  are decoded and go through the eager CNN. A cell reads the padded captions step by step, in fp32,
  without gradients through the CNN. Target for ours / textbook: at least 20. A second textbook
  loop, without a target, encodes each image once per epoch, for all its captions.
- bare kernels: embedding, LSTM, output layer, loss and backward on random ids, with the same batch
  shapes without padding, the same layers, autocast and loss. There is no gathering, dropout,
  clipping or optimizer step. Target for ours / bare kernels: at least 0.85.

An epoch of COCO's size on a GPU is in `gpu.py`.

Speeds are medians over the rounds; padding does not count. The exit code is 1 if a target is
missed.
"""

from __future__ import annotations

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
from captioner.encoder.encoder import DTYPES, best_precision, dtype_of
from captioner.system.world import World
from captioner.text import Vocabulary
from captioner.training.dev import DevSplit
from captioner.training.loop import Trainer
from captioner.training.self_critical import SelfCritical
from captioner.training.telemetry import RunLog

WORDS = 2536
IMAGES, CAPTIONS_PER_IMAGE = 512, 5
ROUNDS = 7


def make_table(
    vocabulary: Vocabulary, feature_size: int, *, images: int = IMAGES, captions: int | None = None
) -> CaptionTable:
    """Draw features of two views per image, and captions of 7 to 20 words, 11 on average."""
    random = np.random.default_rng(0)
    count = captions or images * CAPTIONS_PER_IMAGE
    words = torch.from_numpy(7 + random.binomial(13, 0.3, count))
    places = torch.arange(int(words.max()) + 2)
    first = len(Vocabulary.specials)
    token_ids = torch.from_numpy(random.integers(first, len(vocabulary), (count, len(places))))
    token_ids[:, 0] = Vocabulary.bos_id
    token_ids[places == words[:, None] + 1] = Vocabulary.eos_id
    token_ids[places > words[:, None] + 1] = Vocabulary.pad_id
    owners = torch.arange(count) * images // count
    features = torch.from_numpy(random.standard_normal((2 * images, feature_size), np.float32))
    rows = torch.arange(2 * images).view(images, 2)[owners]
    return CaptionTable(features.half(), token_ids, words + 2, rows, owners)


def tokens_of(table: CaptionTable) -> int:
    """Return the number of target tokens: words and end tokens."""
    return int(table.lengths.sum()) - len(table)


def no_captioner(_: Decoder) -> NoReturn:
    """Replace what builds a captioner for dev scores: nothing is scored here."""
    raise AssertionError


class Variant(Protocol):
    """What to measure."""

    def run(self) -> float:
        """Work for a while; return tokens, or other things, per second."""


def critic_of(
    decoder: Decoder, table: CaptionTable, vocabulary: Vocabulary, config: Config
) -> SelfCritical:
    """Build what samples and rewards captions, on the decoder's device."""
    tokens = vocabulary.specials + vocabulary.words
    references: list[list[list[str]]] = [[] for _ in range(int(table.images.max()) + 1)]
    for ids, length, image in zip(
        table.token_ids.tolist(), table.lengths.tolist(), table.images.tolist(), strict=True
    ):
        references[image].append([tokens[i] for i in ids[1 : length - 1]])
    dtype = dtype_of(config.training.precision, decoder.output.bias.device)
    return SelfCritical(
        decoder,
        vocabulary,
        references,
        config.training,
        max_length=config.decoding.max_length,
        dtype=dtype,
    )


class Ours:
    """`Trainer`: one epoch per turn."""

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        table: CaptionTable,
        folder: Path,
        device: str = "cpu",
        *,
        places: int = 0,
        channels: int = 0,
        critic: bool = False,
    ) -> None:
        decoder = Decoder(
            config.decoder,
            vocab_size=len(vocabulary),
            feature_size=table.features.shape[1],
            places=places,
            channels=channels,
        )
        dev = DevSplit(SplitTable((), table.features[:0], [], []), table, no_captioner, print)
        self.tokens = tokens_of(table)
        log = RunLog(folder / "run")
        decoder.to(device)
        judge = None
        if critic:  # self-critical training, with the table's captions as references
            judge, table = critic_of(decoder, table, vocabulary, config), table.per_image()
        self.trainer = Trainer(decoder, table, dev, config.training, log, {}, World(), judge)

    def run(self) -> float:
        """Train for an epoch; return tokens per second."""
        with tqdm(total=self.trainer.steps_per_epoch, leave=False) as bar:
            started = perf_counter()
            self.trainer._epoch(bar, [])
            if self.trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = perf_counter() - started
        return self.tokens / seconds


class BareKernels:
    """The same layers on random ids, forward and backward: one epoch per turn."""

    def __init__(
        self, config: Config, vocab_size: int, table: CaptionTable, device: str = "cpu"
    ) -> None:
        decoder, self.training = config.decoder, config.training
        self.device = torch.device(device)
        self.embedding = nn.Embedding(vocab_size, decoder.embed_size)
        self.lstm = nn.LSTM(decoder.embed_size, decoder.hidden_size, batch_first=True)
        self.to_embed: nn.Module = nn.Identity()
        self.output = nn.Linear(decoder.hidden_size, vocab_size)
        if decoder.tie_weights:
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
    """The loop of many tutorials: one batch per turn."""

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


def race(variants: Mapping[str, Variant], unit: str = "tokens") -> list[float]:
    """Run variants in turn; print and return the median speed of each."""
    rounds = [[variant.run() for variant in variants.values()] for _ in range(1 + ROUNDS)]
    speeds = [median(runs) for runs in zip(*rounds[1:], strict=True)]  # the first round warms up
    for name, speed in zip(variants, speeds, strict=True):
        print(f"{name:24} {speed:10,.0f} {unit} per second")
    return speeds


def main() -> int:
    print(describe_machine())
    torch.manual_seed(0)
    config = load_config("flickr8k", ["training.epochs=1000", "decoder.tie_weights=true"])
    vocabulary = Vocabulary({f"word{i}": 5 for i in range(WORDS)}, 5)
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
        # Two races: the textbook's CNN evicts memory that the next variant must warm up again.
        ours_first, kernels = race(ours | bare)
        ours_second, by_pair, by_image = race(ours | textbook)
    print(f"ours / textbook, all captions of an image at once: {ours_second / by_image:.2f}")
    met = check("ours / textbook", ours_second / by_pair, at_least=20)
    met &= check("ours / bare kernels", ours_first / kernels, at_least=0.85)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
