"""What one GPU does: every speed beside a limit measured in the same run, in under nine minutes.

    python benchmarks/gpu.py [--output FOLDER] [--only SECTION ...]
    python benchmarks/gpu.py --write FOLDER/gpu.json
    python benchmarks/gpu.py --dry

It needs this repository, and of packages torch, torchvision, numpy, pillow and these wheels:
annotated-types, fonttools, psutil, pydantic, pydantic-core, PyYAML, safetensors, tqdm and
typing-inspection; psutil, pydantic-core, PyYAML and safetensors are compiled. It asks no network.
Where pytest and what the tests import are installed, it also runs the tests that are marked `gpu`.

It draws its own pictures: smooth noise, 640 x 480, JPEG quality 90. CNNs and decoders have random
weights, as in `captioning.py` and `training.py`; only the section `agreement` uses a trained model,
the bundled `photos`. The sections:

- peak: a large matrix product in the CNN's number format, and the data sheet where it is known.
- cnn: CNNs alone, fed from the device's memory, at their best batch; the ratio is the achieved FLOP
  per second / the measured product's.
- decoding: JPEG to pixels alone, on the processor's threads and by nvJPEG.
- files: `caption_files` / the slower of decoding and CNN, with beam 1, 3 and 5, with and without
  attention. Target: at least 0.9.
- search: batched beam search alone.
- profile: what takes the device's time from files to captions, in ten lines.
- training: a slice of an epoch of COCO's size (566,000 captions, 82,783 images, 2,048 features,
  9,000 words, `configs/coco.yaml`) / the same batches through the bare cuDNN kernels. Target: at
  least 0.85. The time of an epoch is that of the slice, scaled.
- agreement: captions of `photos` on the GPU and on the processor: how many are the same, how far
  the scores are apart.
- loss: after 200 steps without dropout, on the GPU and on the processor. Target: 1% apart.
- self-critical: a step, and its part of sampling and rewards.
- tests: `pytest -m gpu`.
- switches: parts of the GPU's road on and off, in turns.
- compiled: training with the output layer and the loss under `torch.compile`.

Variants take turns; values are medians over rounds after a warm-up. A section that fails writes
one line, and the others go on. `gpu.json` is written after each section, so a run that is cut
keeps what it has. `--dry` does all of it in tiny sizes on the processor: its numbers mean nothing.
The exit code is 1 if a section failed.
"""
# ruff: noqa: E402 the first imports say where captioner is

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # captioner need not be installed
    sys.path.insert(1, str(ROOT))
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import PIL
import torch
import torchvision
from captioning import random_captioner
from common import describe_commit, noise_jpeg, output_of, processor
from gpu_table import KEPT, summary, write_docs
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg
from training import BareKernels, Ours, make_table, tokens_of

from captioner.captioner import Captioner
from captioner.captioning.records import CaptioningOptions, caption_files
from captioner.captioning.sources import Item
from captioner.config import load_config
from captioner.data.caption_table import CaptionTable, iterate
from captioner.encoder.backbones import build_backbone, remove_head
from captioner.encoder.encoder import DTYPES, Encoder, FrozenEncoder, best_precision, side_by_side
from captioner.encoder.nvjpeg import Arrivals, Arrived
from captioner.errors import is_shortage
from captioner.images.decode import read_image
from captioner.images.plain_jpeg import plain_jpeg
from captioner.search import beam
from captioner.system.cores import cores
from captioner.system.gpu import SWITCH
from captioner.system.graphs import Graphed, record
from captioner.text import Caption, Vocabulary
from captioner.training import bptt

TOTAL = 510  # seconds for all sections
COCO_CAPTIONS, COCO_IMAGES = 566_000, 82_783
# TFLOP/s of dense products in bf16, or fp16 before Ampere; the first name that fits counts.
DATA_SHEET = {
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 311.9,
    "L40S": 362.1,
    "L4": 121.0,
    "T4": 65.1,
    "V100": 125.0,
}
PARTS = ("nvjpeg", "graphs", "streams")  # of the way through a GPU


@dataclass(frozen=True)
class Sizes:
    """How much to measure."""

    rounds: int = 3
    least: float = 0.2  # seconds of one round
    matmul: int = 8192
    networks: tuple[str, ...] = ("mobilenet_v2", "resnet50", "convnext_tiny")
    image: int = 224
    batches: tuple[int, ...] = (64, 256, 1024)
    picture: tuple[int, int] = (640, 480)
    pictures: int = 512  # different ones
    files: int = 8192
    profiled: int = 2048
    beams: tuple[int, ...] = (1, 3, 5)
    searched: tuple[int, ...] = (64, 256, 1024)
    words: int = 9000
    captions: int = COCO_CAPTIONS
    images: int = COCO_IMAGES
    features: int = 2048
    slice: int = COCO_CAPTIONS // 4
    settings: tuple[str, ...] = ()  # of every configuration
    rewarded: int = 2048  # images of the self-critical epoch
    varied: int = 20  # generated from each picture of data/pictures
    learned: int = 512  # images of the section loss
    steps: int = 200


DRY = Sizes(
    rounds=1,
    least=0,
    matmul=64,
    networks=("mobilenet_v2",),
    image=64,
    batches=(2,),
    picture=(64, 48),
    pictures=4,
    files=8,
    profiled=4,
    beams=(1, 3),
    searched=(4,),
    words=60,
    captions=240,
    images=40,
    features=16,
    slice=120,
    settings=(
        "encoder.image_size=64",
        "encoder.grid=2",
        "decoder.hidden_size=16",
        "decoder.embed_size=8",
        "training.batch_size=16",
    ),
    rewarded=16,
    varied=0,
    learned=16,
    steps=10,
)


class OutOfTime(BaseException):
    """A section took more than its time; no code may catch it as an `Exception`."""


@dataclass(frozen=True)
class Speed:
    """Things per second: the median, the lowest and the highest round."""

    median: float
    low: float
    high: float


@dataclass(eq=False)
class Bench:
    """What the sections share: device, sizes, pictures, captioners; and the rows of one section."""

    device: torch.device
    sizes: Sizes
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    soft: float = math.inf  # `perf_counter` at which no further round starts
    hard: float = math.inf  # and at which the section is stopped
    captioners: dict[str, tuple[Captioner, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        """Whether nothing is really measured."""
        return self.sizes is DRY

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def row(
        self,
        what: str,
        value: float | Speed | str,
        unit: str = "",
        *,
        against: str = "",
        ratio: float | None = None,
        **target: float,
    ) -> None:
        """Add and print a finding; the target is `at_least` or `at_most`, see `gpu_table`."""
        row: dict[str, Any] = {"what": what, "unit": unit, **target}
        if isinstance(value, Speed):
            row |= {"value": value.median, "low": value.low, "high": value.high}
        else:
            row["text" if isinstance(value, str) else "value"] = value
        row |= {"against": against} if against else {}
        row |= {} if ratio is None else {"ratio": ratio}
        self.rows.append(row)
        shown = f"{row.get('value', row.get('text'))} {unit}".rstrip()
        beside = "" if ratio is None else f", {ratio:.3f} of {against}"
        print(f"  {what}: {shown}{beside}", flush=True)

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Return the time of one repetition, with the device idle before and after."""
        self.sync()
        started = perf_counter()
        for _ in range(repeats):
            work()
        self.sync()
        return (perf_counter() - started) / repeats

    def race(self, variants: Mapping[str, tuple[Callable[[], object], int]]) -> dict[str, Speed]:
        """Run variants in turn; return things per second of each.

        The first run of each warms up; it, or if it was short a second one, says how many of them
        fill a round. A variant for which the device's memory is too short is left out.

        Args:
            variants: name -> function and number of things that one call processes.
        """
        repeats: dict[str, int] = {}
        for name, (work, _) in variants.items():
            try:
                once = self.seconds(work)
                if once < 5 * self.sizes.least:
                    once = self.seconds(work)
            except RuntimeError as error:
                if not is_shortage(error):
                    raise
                print(f"  {name}: memory is short", flush=True)
                torch.cuda.empty_cache()
                continue
            repeats[name] = min(1000, max(1, math.ceil(self.sizes.least / once)))
        rounds: dict[str, list[float]] = {name: [] for name in repeats}
        for index in range(self.sizes.rounds):
            if index and perf_counter() > self.soft:
                break
            for name, count in repeats.items():
                work, things = variants[name]
                rounds[name].append(things / self.seconds(work, count))
        return {name: Speed(median(r), min(r), max(r)) for name, r in rounds.items()}

    @cached_property
    def files(self) -> list[Path]:
        """The pictures."""
        files = [self.folder / f"{i:04}.jpg" for i in range(self.sizes.pictures)]
        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(
                lambda i: noise_jpeg(files[i], seed=i, size=self.sizes.picture), range(len(files))
            ):
                pass
        return files

    def many(self, count: int) -> list[Path]:
        """Return so many files; each picture comes several times."""
        return [self.files[i % len(self.files)] for i in range(count)]

    def config(self, name: str, *changes: str) -> Any:
        """Return a bundled configuration, in the sizes of this run."""
        return load_config(name, [*self.sizes.settings, *changes])

    def captioner(self, attention: str) -> tuple[Captioner, Tensor, Tensor]:
        """Return a random captioner with attention "none" or "spatial", pixels and features."""
        if attention not in self.captioners:
            torch.manual_seed(0)
            name = "flickr8k-attention" if attention == "spatial" else "flickr8k"
            config = self.config(name, "decoder.tie_weights=true")
            words = min(2540, self.sizes.words)
            some = self.files[:128]
            made = random_captioner(config, some, self.folder, str(self.device), words)
            self.captioners[attention] = made
        return self.captioners[attention]


@dataclass(frozen=True)
class Section:
    """One section: its time in seconds and what it does."""

    seconds: float
    work: Callable[[Bench], None]


SECTIONS: dict[str, Section] = {}


def section(name: str, seconds: float) -> Callable[[Callable[[Bench], None]], Callable[..., None]]:
    """Register a section."""

    def register(work: Callable[[Bench], None]) -> Callable[[Bench], None]:
        SECTIONS[name] = Section(seconds, work)
        return work

    return register


# --- the device's limit, the CNN, decoding ---


def number_format(bench: Bench) -> str:
    """Return the CNN's number format, "bf16" or "fp16"; on a processor also "fp32"."""
    return best_precision(bench.device)


def matmul_speed(bench: Bench) -> Speed:
    """Return the FLOP per second of a large matrix product, on random numbers."""
    size, dtype = bench.sizes.matmul, DTYPES[number_format(bench)]
    left, right = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    [speed] = bench.race(
        {"product": (partial(torch.mm, left, right, out=out), 2 * size**3)}
    ).values()
    return speed


def data_sheet(bench: Bench) -> float | None:
    """Return the TFLOP/s that the device's data sheet names, if it is known."""
    name = torch.cuda.get_device_name() if bench.cuda else ""
    return next((peak for known, peak in DATA_SHEET.items() if known in name), None)


@section("peak", 12)
def peak_section(bench: Bench) -> None:
    size, speed = bench.sizes.matmul, matmul_speed(bench)
    sheet = data_sheet(bench)
    scaled = Speed(*(number / 1e12 for number in (speed.median, speed.low, speed.high)))
    bench.row(
        f"product of {size} x {size} matrices, {number_format(bench)}",
        scaled,
        "TFLOP/s",
        **(
            {"against": f"data sheet, {sheet} TFLOP/s", "ratio": scaled.median / sheet}
            if sheet
            else {}
        ),
    )


def flops_of(name: str, size: int) -> int:
    """Count the floating-point operations of a CNN without its last layer, for one image."""
    network = build_backbone(name, {}, device="meta").eval()
    remove_head(network)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops())


def ways_to_encode(bench: Bench, encoder: Encoder) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return a CNN as it is and under CUDA graphs."""
    replayed = Graphed(encoder.see, record if bench.cuda else lambda function, _: function)
    return {
        "": encoder.see,
        " in a CUDA graph": lambda pixels: replayed(pixels.to(bench.device, non_blocking=True)),
    }


@section("cnn", 50)
def cnn_section(bench: Bench) -> None:
    peak, size, sheet = matmul_speed(bench).median, bench.sizes.image, data_sheet(bench)
    for name in bench.sizes.networks:
        torch.manual_seed(0)
        encoder = FrozenEncoder.create(name, "none", image_size=size).to_device(bench.device)
        pixels = torch.randint(0, 256, (max(bench.sizes.batches), 3, size, size), dtype=torch.uint8)
        on_device, ways = pixels.to(bench.device), ways_to_encode(bench, encoder)
        speeds = bench.race(
            {
                f"{n}{how}": (partial(way, on_device[:n]), n)
                for n in bench.sizes.batches
                for how, way in ways.items()
            }
        )
        best = max(speeds, key=lambda n: speeds[n].median)
        each = ", ".join(f"{n}: {speed.median:,.0f}" for n, speed in speeds.items())
        flops = flops_of(name, size) * speeds[best].median
        of_sheet = f", {flops / 1e10 / sheet:.1f}% of the data sheet" if sheet else ""
        bench.row(
            f"{name}, batches of {best} ({encoder.arithmetic}; {each})",
            speeds[best],
            "images/s",
            against=f"the product; {flops / 1e12:.3g} TFLOP/s{of_sheet}",
            ratio=flops / peak,
        )
        held = pixels[: int(best.split()[0])]
        held = held.pin_memory() if bench.cuda else held
        [fed] = bench.race({"fed": (partial(encoder.see, held), len(held))}).values()
        bench.row(
            f"{name}, fed from the host's pinned memory, no graph",
            fed,
            "images/s",
            against="its best",
            ratio=fed.median / speeds[best].median,
        )


def decode_by_threads(files: Sequence[Path], encoder: Encoder, threads: int) -> None:
    """Read, decode, resize and crop files as `caption_files` does on the processor."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda file: encoder.preprocess.pixels(read_image(file)), files):
            pass


def decode_by_device(contents: Sequence[Tensor], device: torch.device, batch: int = 64) -> None:
    """Decode JPEG bytes with torchvision, on a GPU by nvJPEG; no resizing."""
    for start in range(0, len(contents), batch):
        decode_jpeg(list(contents[start : start + batch]), ImageReadMode.RGB, device=device)


def decode_and_resize(files: Sequence[Path], encoder: Encoder, batch: int = 256) -> None:
    """Read, decode, resize and crop files as `caption_files` does on a GPU."""
    arrivals = Arrivals(encoder, lambda file: encoder.preprocess.pixels(read_image(file.data)))
    for start in range(0, len(files), batch):
        data = [plain_jpeg(file.read_bytes()) for file in files[start : start + batch]]
        if not all(isinstance(each, Arrived) for each in arrivals.bring(data)):
            raise RuntimeError("a file was not decoded")


def bytes_of(files: Sequence[Path]) -> list[Tensor]:
    """Read files as torchvision wants them."""
    return [torch.from_numpy(np.fromfile(file, np.uint8)) for file in files]


def race_of_decoders(bench: Bench, encoder: Encoder, *, alone: bool) -> dict[str, Speed]:
    """Measure JPEG decoding, with one thread if `alone`, with all, and by nvJPEG on a GPU."""
    files = bench.many(bench.sizes.profiled)
    few = files[: max(1, len(files) // cores() // 4)]
    contents = bytes_of(files)
    variants: dict[str, tuple[Callable[[], object], int]] = {
        f"processor, {cores()} threads": (
            partial(decode_by_threads, files, encoder, cores()),
            len(files),
        )
    }
    if alone:
        one = partial(decode_by_threads, few, encoder, 1)
        variants = {"processor, one thread": (one, len(few))} | variants
    try:
        decode_by_device(contents[:2], bench.device)
    except (RuntimeError, AttributeError) as error:  # such as a torchvision without it
        bench.row("nvJPEG", str(error).partition("\n")[0][:100])
    else:
        resized = partial(decode_and_resize, files, encoder)
        variants["nvJPEG, resized there, batches of 256"] = (resized, len(files))
        for batch in (64, 256) if alone else (64,):
            work = partial(decode_by_device, contents, bench.device, batch)
            variants[f"nvJPEG, not resized, batches of {batch}"] = (work, len(contents))
    return bench.race(variants)


@section("decoding", 25)
def decoding_section(bench: Bench) -> None:
    encoder = bench.captioner("none")[0].encoder
    speeds = race_of_decoders(bench, encoder, alone=True)
    width, height = bench.sizes.picture
    for name, speed in speeds.items():
        bench.row(f"{name}, {width} x {height}", speed, "images/s")


# --- files to captions, search ---


def caption_all(bench: Bench, attention: str, beam: int, count: int, batch: int = 0) -> None:
    """Caption so many files; raise if one failed."""
    captioner, _, _ = bench.captioner(attention)
    how = CaptioningOptions(batch_size=batch) if batch else CaptioningOptions()
    items = (Item(f"{i}.jpg", file) for i, file in enumerate(bench.many(count)))
    options = captioner.settings(beam_size=beam)
    records = caption_files(captioner, items, options, how)
    errors = [record.error for record in records if record.error]
    if errors:
        raise RuntimeError(f"{len(errors)} of {count} files failed: {errors[0]}")


def slower_part(bench: Bench, attention: str) -> tuple[str, float]:
    """Return the name and the images per second of the slower of decoding and CNN."""
    encoder, pixels = bench.captioner(attention)[0].encoder, bench.captioner(attention)[1]
    decoders = race_of_decoders(bench, encoder, alone=False)
    held = pixels.repeat(-(-256 // len(pixels)), 1, 1, 1)[: 4 if bench.dry else 256]
    held = held.pin_memory() if bench.cuda else held
    ways = ways_to_encode(bench, encoder)
    cnn = bench.race({how: (partial(way, held), len(held)) for how, way in ways.items()})
    fastest = max(speed.median for speed in cnn.values())
    best = max(decoders, key=lambda name: decoders[name].median)
    if decoders[best].median < fastest:
        return f"decoding, {best}", decoders[best].median
    return "CNN", fastest


@section("files", 110)
def files_section(bench: Bench) -> None:
    count = bench.sizes.files
    for attention in ("none", "spatial"):
        name, possible = slower_part(bench, attention)
        works = {
            f"beam {beam}, {'with' if attention == 'spatial' else 'without'} attention": (
                partial(caption_all, bench, attention, beam, count),
                count,
            )
            for beam in bench.sizes.beams
        }
        for what, speed in bench.race(works).items():
            bench.row(
                f"JPEG to caption, {what}",
                speed,
                "images/s",
                against=f"{name}: {possible:,.0f} images/s",
                ratio=speed.median / possible,
                at_least=0.9,
            )


@section("search", 25)
def search_section(bench: Bench) -> None:
    for attention in ("none", "spatial"):
        captioner, _, features = bench.captioner(attention)
        most = max(bench.sizes.searched)
        features = features.repeat(-(-most // len(features)), 1)[:most]
        several = {
            (n, beam): (
                partial(captioner.search, features[:n], captioner.settings(beam_size=beam)),
                n,
            )
            for n in bench.sizes.searched
            for beam in bench.sizes.beams
        }
        speeds = bench.race({f"{n} images, beam {beam}": w for (n, beam), w in several.items()})
        words = "with" if attention == "spatial" else "without"
        for what, speed in speeds.items():
            bench.row(f"search of {what}, {words} attention", speed, "images/s")


@section("profile", 20)
def profile_section(bench: Bench) -> None:
    work = partial(caption_all, bench, "none", 3, bench.sizes.profiled)
    work()
    bench.sync()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.cuda
    with profile(activities=kinds, acc_events=True) as profiler:
        seconds = bench.seconds(work)
    wanted = DeviceType.CUDA if bench.cuda else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == wanted]

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if bench.cuda else event.self_cpu_time_total)

    total = sum(map(microseconds, events))
    bench.row("the device works", 100 * total / 1e6 / seconds, "% of the time, kernels added up")
    for event in sorted(events, key=microseconds, reverse=True)[:10]:
        share = 100 * microseconds(event) / max(total, 1)
        bench.row(f"{event.key[:70]}, {event.count:,} times", share, "% of it")


# --- training ---


def coco_table(bench: Bench, vocabulary: Vocabulary) -> CaptionTable:
    """Draw a slice of COCO's captions, with the features of all images on the device."""
    sizes = bench.sizes
    table = make_table(vocabulary, 1, images=sizes.images, captions=sizes.captions)
    shape = 2 * sizes.images, sizes.features
    features = torch.randn(shape, dtype=torch.float16, device=bench.device)
    return replace(table, features=features).sample(sizes.slice)


def coco_loops(bench: Bench, *, compiled: bool) -> None:
    """Measure our loop, compiled too if wanted, and the bare kernels on a slice of COCO."""
    torch.manual_seed(0)
    vocabulary = Vocabulary({f"word{i}": 5 for i in range(bench.sizes.words)}, 5)
    table = coco_table(bench, vocabulary)
    config, device = bench.config("coco", "training.epochs=1000"), str(bench.device)
    tokens = tokens_of(table)

    def eager(name: str) -> Ours:
        return Ours(config, vocabulary, table, bench.folder / name, device)

    ours = eager("eager")
    variants: dict[str, tuple[Callable[[], object], int]] = {"eager": (ours.run, tokens)}
    if compiled:
        variants["compiled"] = (partial(run_compiled, eager("compiled"), bench), tokens)
    else:
        bare = BareKernels(config, len(vocabulary), table, device)
        variants["bare cuDNN kernels"] = (bare.run, tokens)
    speeds = bench.race(variants)
    whole = tokens * COCO_CAPTIONS / len(table)
    steps = ours.trainer.steps_per_epoch
    # Ours is first or, with the compiler, what the compiled one is compared with.
    base, least = ("eager", {}) if compiled else ("bare cuDNN kernels", {"at_least": 0.85})
    for name, speed in speeds.items():
        ratio = speed.median / speeds[base].median
        beside: dict[str, Any] = {} if name == base else {"against": base, "ratio": ratio, **least}
        bench.row(
            f"{name}, slice of {len(table):,} captions, {steps} steps",
            speed,
            f"tokens/s, {whole / speed.median:.1f} s per epoch of COCO (scaled)",
            **beside,
        )


def run_compiled(ours: Ours, bench: Bench) -> None:
    """Train an epoch with the output layer and the loss compiled."""
    decoder = ours.trainer.decoder
    how: dict[str, Any] = {"backend": "eager" if bench.dry else "inductor", "dynamic": True}
    if "to_logits" not in vars(decoder):
        decoder.to_logits = torch.compile(decoder.to_logits, **how)
        ours.compiled_loss = torch.compile(_plain_loss, **how)
    with patch.object(bptt, "cross_entropy", ours.compiled_loss):
        ours.run()


def _plain_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The loss as the compiler likes it; it fuses what `training/loss.py` does by hand."""
    del weights  # of self-critical training
    return functional.cross_entropy(
        logits.float(), targets, label_smoothing=label_smoothing, reduction="sum"
    )


@section("training", 50)
def training_section(bench: Bench) -> None:
    coco_loops(bench, compiled=False)


@section("agreement", 45)
def agreement_section(bench: Bench) -> None:
    pictures = real_pictures(bench.sizes.varied)
    processor_, device = Captioner.load("photos", "cpu"), Captioner.load("photos", bench.device)
    usual = f"{device.encoder.arithmetic} and {processor_.encoder.arithmetic}"
    full = f"fp32 on {bench.device.type} and on cpu"
    with without_tf32():
        pairs = {full: [describe(exact(each), pictures) for each in (device, processor_)]}
    pairs[usual] = [describe(each, pictures) for each in (device, processor_)]
    for name, ((features, captions), (expected, references)) in pairs.items():
        both = list(zip(captions, references, strict=True))
        apart = [abs(a.score - b.score) for a, b in both]
        cosine = torch.cosine_similarity(features, expected).min().item()
        same = sum(a.text == b.text for a, b in both)
        bench.row(f"{name}: same captions", 100 * same / len(both), f"% of {len(both)}")
        bench.row(f"{name}: scores apart, mean", sum(apart) / len(apart), "nats per word")
        bench.row(f"{name}: scores apart, most", max(apart), "nats per word")
        bench.row(f"{name}: smallest cosine of the features", cosine)


def real_pictures(varied: int) -> list[Image.Image]:
    """Return the pictures of `data/pictures`, and so many crops of each, mirrored and lit anew."""
    random = np.random.default_rng(0)
    pictures: list[Image.Image] = []
    for file in sorted((ROOT / "data" / "pictures").glob("*.jpg")):
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        pictures.append(picture)
        for _ in range(varied):
            side = int(min(picture.size) * random.uniform(0.5, 0.95))
            left = int(random.integers(picture.width - side + 1))
            top = int(random.integers(picture.height - side + 1))
            crop = picture.crop((left, top, left + side, top + side))
            crop = ImageOps.mirror(crop) if random.random() < 0.5 else crop
            pictures.append(ImageEnhance.Brightness(crop).enhance(random.uniform(0.7, 1.3)))
    return pictures


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let cuDNN compute float32 in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def exact(captioner: Captioner) -> Captioner:
    """Return the captioner in fp32, its search too."""
    cnns = [
        FrozenEncoder(cnn.spec, cnn.state, "fp32", cnn.grid, cnn.grid_channels)
        for cnn in captioner.encoder.cnns
    ]
    encoder = side_by_side(cnns)
    encoder.mirrored = captioner.encoder.mirrored
    decoding = captioner.decoding.model_copy(update={"precision": "fp32"})
    parts = captioner.decoder, captioner.vocabulary, decoding, captioner.neighbours
    return Captioner(encoder, *parts).to(captioner.device)


def describe(captioner: Captioner, pictures: list[Image.Image]) -> tuple[Tensor, list[Caption]]:
    """Return the features on the processor, and the best caption of each picture."""
    features = captioner.encode(pictures)
    return features.cpu(), [best for best, *_ in captioner.search(features)]


@section("loss", 40)
def loss_section(bench: Bench) -> None:
    sizes = bench.sizes
    vocabulary = Vocabulary({f"word{i}": 5 for i in range(min(200, sizes.words))}, 5)
    table = make_table(vocabulary, min(256, sizes.features), images=sizes.learned)
    table = replace(table, token_ids=learnable(table.token_ids, len(vocabulary)))
    losses: dict[str, float] = {}
    for device, precision in (
        ("cpu", "fp32"),
        (str(bench.device), "fp32"),
        (str(bench.device), "auto"),
    ):
        config = bench.config(
            "flickr8k",
            "decoder.dropout=0",
            "decoder.feature_dropout=0",
            f"training.precision={precision}",
            f"training.batch_size={max(1, len(table) // 40)}",
            "training.epochs=1000",
            *(() if bench.dry else ("decoder.hidden_size=256", "decoder.embed_size=128")),
        )
        torch.manual_seed(0)
        name = f"{precision} on {device}"
        ours = Ours(config, vocabulary, table, bench.folder / f"loss {name}", device)
        while ours.trainer.progress.step < sizes.steps:
            ours.run()
        losses[name] = mean_loss(ours)
    first, *others = losses
    bench.row(f"{first}, after {ours.trainer.progress.step} steps", losses[first], "nats per token")
    for name in others:
        apart = abs(losses[name] / losses[first] - 1)
        bench.row(
            name, losses[name], "nats per token", against=first, ratio=losses[name] / losses[first]
        )
        bench.row(f"{name}: apart", 100 * apart, "%", at_most=1.0)


def learnable(token_ids: Tensor, vocab_size: int) -> Tensor:
    """Replace words, so that each word is followed by one of three: there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    first = len(Vocabulary.specials)
    next_words = torch.randint(first, vocab_size, (vocab_size, 3), generator=generator)
    token_ids = token_ids.clone()
    for t in range(2, token_ids.shape[1]):
        words = token_ids[:, t] >= first
        choice = torch.randint(3, (len(token_ids),), generator=generator)
        followers = next_words[token_ids[:, t - 1], choice]
        token_ids[:, t] = torch.where(words, followers, token_ids[:, t])
    return token_ids


@torch.no_grad()
def mean_loss(ours: Ours) -> float:
    """Return the loss over the training captions, in nats per token."""
    trainer = ours.trainer
    trainer.decoder.eval()
    losses, tokens = 0.0, 0
    for batch in iterate(trainer.table, 256, seed=0, epoch=0):
        losses += float(bptt.total_loss(trainer.decoder, batch))
        tokens += batch.tokens
    return losses / tokens


@section("self-critical", 25)
def self_critical_section(bench: Bench) -> None:
    sizes = bench.sizes
    torch.manual_seed(0)
    vocabulary = Vocabulary({f"word{i}": 5 for i in range(sizes.words)}, 5)
    table = make_table(vocabulary, sizes.features, images=sizes.rewarded)
    config = bench.config("coco", "training.epochs=1000", "training.learning_rate=1e-6")
    ours = Ours(config, vocabulary, table, bench.folder / "scst", str(bench.device), critic=True)
    trainer, images = ours.trainer, sizes.rewarded
    with torch.no_grad():  # captions of about ten words
        trainer.decoder.output.bias[Vocabulary.eos_id] = math.log(len(vocabulary) / 10)

    def write() -> None:
        for batch in iterate(trainer.table, config.training.batch_size, seed=0, epoch=0):
            assert trainer.critic is not None
            trainer.critic.write(batch)

    speeds = bench.race({"steps": (ours.run, images), "samples": (write, images)})
    steps, samples = speeds.values()
    of_each = config.training.batch_size
    bench.row(
        f"whole steps, {of_each} images, {config.training.samples} samples each",
        steps,
        f"images/s, {1e3 * of_each / steps.median:.0f} ms a step",
    )
    part = "samples and rewards alone"
    bench.row(
        part, samples, "images/s", against="time of a step", ratio=steps.median / samples.median
    )


# --- tests, switches, compiler ---


@section("tests", 60)
def tests_section(bench: Bench) -> None:
    if not importlib.util.find_spec("pytest"):
        raise RuntimeError("pytest is absent: the tests did not run")
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text()]
    if not files:
        bench.row("tests marked gpu", 0)
        return
    where = [str(ROOT), os.environ.get("PYTHONPATH")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *(["--collect-only"] if bench.dry else []), *map(str, files)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, where))},
        capture_output=True,
        text=True,
        timeout=max(1, bench.hard - perf_counter() - 1),
        check=False,
    )
    print(run.stdout[-3000:], run.stderr[-1000:], flush=True)
    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else f"exit {run.returncode}"
    bench.row("pytest -m gpu", last.strip("= "))
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error)", last)}
    bench.row("failed", counts.get("failed", 0) + counts.get("error", 0), at_most=0)
    if not bench.dry and run.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {run.returncode}: {last[:200]}")


@contextmanager
def road(parts: Sequence[str] | None) -> Iterator[None]:
    """Use these parts of the GPU's road; None: what captioner chooses."""
    changed = {} if parts is None else {SWITCH: ",".join(parts)}
    with patch.dict(os.environ, changed):
        if parts is None:
            os.environ.pop(SWITCH, None)
        yield


def on_road(parts: Sequence[str] | None, work: Callable[[], object]) -> None:
    """Work with these parts of the GPU's road."""
    with road(parts):
        work()


def looking(steps: int, work: Callable[[], object]) -> None:
    """Work while the search looks for finished images every so many steps."""
    with patch.object(beam, "GPU_STEPS", steps):
        work()


@section("switches", 50)
def switches_section(bench: Bench) -> None:
    count = bench.sizes.files // 2
    work = partial(caption_all, bench, "none", 3, count)
    works: dict[str, Callable[[], object]] = {
        "as captioner chooses": partial(on_road, None, work),
        "all parts": partial(on_road, PARTS, work),
    }
    for left_out in PARTS:
        rest = [part for part in PARTS if part != left_out]
        works[f"all parts but {left_out}"] = partial(on_road, rest, work)
    works["no part"] = partial(on_road, (), work)
    works["search looks at each step"] = partial(looking, 1, work)
    for batch in (2,) if bench.dry else (128, 512):
        works[f"batches of {batch}"] = partial(caption_all, bench, "none", 3, count, batch)
    speeds = bench.race({name: (each, count) for name, each in works.items()})
    first = next(iter(speeds))
    for name, speed in speeds.items():
        beside = (
            {}
            if name == first
            else {"against": first, "ratio": speed.median / speeds[first].median}
        )
        bench.row(f"JPEG to caption, beam 3, {name}", speed, "images/s", **beside)


@section("compiled", 60)
def compiled_section(bench: Bench) -> None:
    coco_loops(bench, compiled=True)


# --- the run ---


def describe_run(bench: Bench, commit: str) -> dict[str, str]:
    """Return device, driver, versions and processor."""
    machine = {"device": str(bench.device)}
    if bench.cuda:
        known = torch.cuda.get_device_properties(bench.device)
        major, minor = known.major, known.minor
        query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
        machine = {
            "device": f"{known.name}, {known.total_memory / 2**30:.0f} GiB, sm_{major}{minor}, "
            f"{known.multi_processor_count} multiprocessors",
            "driver, most MHz, power": output_of("nvidia-smi", query, "--format=csv,noheader"),
            "CUDA": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        }
    return machine | {
        "processor": f"{processor()}, {cores()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, numpy {np.__version__}, Pillow {PIL.__version__}",
        "commit": commit or describe_commit(),
    }


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after so many seconds."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clear_memory(bench: Bench) -> None:
    """Free what earlier sections left, and count the peak anew."""
    gc.collect()
    if bench.cuda:
        torch.ones(1, device=bench.device)  # starts CUDA
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_section(bench: Bench, each: Section, left: float) -> dict[str, Any]:
    """Run a section within the time that is left; return its findings."""
    started = perf_counter()
    most = min(left, 1.5 * each.seconds)
    bench.rows, bench.soft, bench.hard = [], started + 0.7 * each.seconds, started + most
    error = None
    try:
        clear_memory(bench)
        with stopped_after(most):
            each.work(bench)
    except OutOfTime:
        error = f"stopped after {most:.0f} s"
    except Exception as failure:
        traceback.print_exc()
        lines = [line for line in str(failure).splitlines() if line.strip()] or [""]
        error = f"{type(failure).__name__}: {lines[0].strip()[:300]}"
    peak = torch.cuda.max_memory_allocated() / 2**20 if bench.cuda else 0.0
    seconds = round(perf_counter() - started, 2)
    return {"rows": bench.rows, "seconds": seconds, "peak_mib": peak, "error": error}


def broken(bench: Bench) -> bool:
    """Return whether the device answers nothing any more, as after an illegal address."""
    try:
        bench.sync()
        torch.ones(1, device=bench.device).item()
    except RuntimeError:
        return True
    return False


def run(bench: Bench, names: Sequence[str], output: Path, findings: dict[str, Any]) -> bool:
    """Run sections and write their findings after each; return whether the device is broken."""
    sections = findings["sections"]
    for name in names:
        left = TOTAL - (time.time() - findings["started"])
        if left < 5:
            sections[name] = {"rows": [], "seconds": 0.0, "peak_mib": 0.0, "error": "no time left"}
        else:
            print(f"{name}:", flush=True)
            sections[name] = run_section(bench, SECTIONS[name], left)
            if sections[name]["error"]:
                print(f"  failed: {sections[name]['error']}", flush=True)
        findings["seconds"] = time.time() - findings["started"]
        write(output, findings)
        if sections[name]["error"] and broken(bench):
            return True
    return False


def write(output: Path, findings: dict[str, Any]) -> None:
    """Write `gpu.json` and `gpu.md`, each whole."""
    for name, text in (
        ("gpu.json", json.dumps(findings, indent=1, ensure_ascii=False) + "\n"),
        ("gpu.md", f"{summary(findings)}\n"),
    ):
        aside = output / f"{name}.part"
        aside.write_text(text, encoding="utf-8")
        aside.replace(output / name)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path(), help="folder of gpu.json, gpu.md")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="run these sections")
    parser.add_argument("--commit", default="", help="the commit, where git cannot say it")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the processor")
    parser.add_argument(
        "--write", type=Path, metavar="JSON", help="write docs/results.md from JSON"
    )
    parser.add_argument("--go-on", action="store_true", help="run the sections gpu.json lacks")
    given = parser.parse_args()
    if not (given.dry or given.write or torch.cuda.is_available()):
        parser.error("no CUDA device here; --dry runs tiny sizes on the processor")
    return given


def main() -> int:
    given = parse()
    if given.write:
        findings = json.loads(given.write.read_text(encoding="utf-8"))
        if findings["dry"]:
            sys.exit(f"{given.write}: of a dry run; measure on a GPU")
        KEPT.write_text(json.dumps(findings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_docs(findings)
        return 0
    given.output.mkdir(parents=True, exist_ok=True)
    findings = {"dry": given.dry, "started": time.time(), "seconds": 0.0, "sections": {}}
    if given.go_on:
        findings = json.loads((given.output / "gpu.json").read_text(encoding="utf-8"))
    # A call that never returns is not stopped by a signal.
    left = TOTAL - (time.time() - findings["started"])
    faulthandler.dump_traceback_later(max(1, left) + 10, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cpu" if given.dry else "cuda")
        bench = Bench(device, DRY if given.dry else Sizes(), Path(folder))
        findings["machine"] = describe_run(bench, given.commit)
        names = [n for n in given.only or SECTIONS if n not in findings["sections"]]
        lost = run(bench, names, given.output, findings)
        faulthandler.cancel_dump_traceback_later()
    if lost:  # only a new process gets the device back
        os.execv(sys.executable, [sys.executable, *sys.argv, *([] if given.go_on else ["--go-on"])])
    print(f"\n{summary(findings)}")
    return int(any(each["error"] for each in findings["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
