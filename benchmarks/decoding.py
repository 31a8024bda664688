"""Time from JPEG to CNN input: scaled decoding, threads and processes, Pillow and torchvision.

    python benchmarks/decoding.py

The images are smooth noise, resized to 256 and cropped to 224. One run measures:

- scaled decoding: `read_image(..., at_least=n)` lets libjpeg decode at a smaller size. The ratio
  is the time of decoding and resizing at full size / the time with n = 2 x 256 and 1 x 256. The
  pixel differences are on a scale of 255. Target for 4000 x 3000 and 2 x 256: at least 2.
- one thread, two threads and two processes on 640 x 480, in images per second. Pillow releases
  the GIL while decoding and resizing; a process must send its pixels back. Target for two threads
  / two processes: at least 0.9.
- torchvision's decoder and Pillow's: decoding alone, and with resizing.

The variants take turns; times are medians over the rounds. The exit code is 1 if a target is
missed.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import check, describe_machine, noise_jpeg
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional as transforms

from captioner.encoder.preprocess import Preprocess
from captioner.images.decode import read_image

SIZES = ((224, 224), (640, 480), (1920, 1080), (4000, 3000))
ROUNDS = 9
PICTURES = 160  # images of 640 x 480
PREPROCESS = Preprocess()


def crop(data: bytes, at_least: int | None = None) -> NDArray[np.uint8]:
    """Decode, resize and crop: uint8 (3, 224, 224)."""
    return PREPROCESS.pixels(read_image(data, at_least=at_least)).numpy()


def torchvision_crop(data: bytes) -> Tensor:
    """Decode, resize and crop with torchvision alone."""
    image = transforms.resize(torchvision_decode(data), [PREPROCESS.resize_size], antialias=True)
    return transforms.center_crop(image, [PREPROCESS.crop_size])


def torchvision_decode(data: bytes) -> Tensor:
    """Decode with torchvision: uint8 (3, H, W)."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def take_turns(variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median time of each variant in seconds, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + ROUNDS):
        for name, run in variants.items():
            started = perf_counter()
            run()
            seconds[name].append(perf_counter() - started)
    return {name: median(times[1:]) for name, times in seconds.items()}


def scaled(folder: Path) -> bool:
    """Compare scaled with full decoding."""
    target = PREPROCESS.resize_size
    print(f"{'JPEG':>12} {'full':>9} {'2 x 256':>9} {'1 x 256':>9}   difference, mean and max")
    for width, height in SIZES:
        path = folder / "one.jpg"
        noise_jpeg(path, seed=0, size=(width, height))
        data = path.read_bytes()
        times = take_turns(
            {
                "full": partial(crop, data),
                "twice": partial(crop, data, PREPROCESS.enough),
                "once": partial(crop, data, target),
            }
        )
        full, twice, once = (crop(data, n).astype(int) for n in (None, PREPROCESS.enough, target))
        errors = [np.abs(other - full) for other in (twice, once)]
        print(
            f"{width:5} x {height:4} "
            + " ".join(f"{1e3 * seconds:6.1f} ms" for seconds in times.values())
            + "   "
            + ", ".join(f"{error.mean():.2f} and {error.max()}" for error in errors)
        )
        print(
            f"{'':12} full / 2 x 256: {times['full'] / times['twice']:.2f}, "
            f"full / 1 x 256: {times['full'] / times['once']:.2f}"
        )
    return check("4000 x 3000, full / 2 x 256", times["full"] / times["twice"], at_least=2)


def workers(pictures: list[bytes]) -> bool:
    """Compare threads with processes."""

    def alone() -> None:
        for data in pictures:
            crop(data)

    def consume(crops: Iterator[object]) -> None:
        for _ in crops:
            pass

    # Forking a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(2) as threads, context.Pool(2) as processes:
        times = take_turns(
            {
                "1 thread": alone,
                "2 threads": lambda: consume(threads.map(crop, pictures)),
                "2 processes": lambda: consume(processes.imap(crop, pictures, chunksize=8)),
            }
        )
    speeds = {name: len(pictures) / seconds for name, seconds in times.items()}
    for name, speed in speeds.items():
        print(f"{name:12} {speed:7.1f} images of 640 x 480 per second")
    ratio = speeds["2 threads"] / speeds["2 processes"]
    return check("2 threads / 2 processes", ratio, at_least=0.9)


def decoders(pictures: list[bytes]) -> None:
    """Compare Pillow with torchvision."""

    def every(work: Callable[[bytes], object]) -> Callable[[], None]:
        def run() -> None:
            for data in pictures:
                work(data)

        return run

    times = take_turns(
        {
            "Pillow, decoding": every(read_image),
            "torchvision, decoding": every(torchvision_decode),
            "Pillow, decoding and resizing": every(crop),
            "torchvision, decoding and resizing": every(torchvision_crop),
        }
    )
    for name, seconds in times.items():
        print(f"{name:36} {1e3 * seconds / len(pictures):5.2f} ms per image of 640 x 480")


def main() -> int:
    torch.set_num_threads(1)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = []
        for seed in range(PICTURES):
            noise_jpeg(folder / "one.jpg", seed=seed, size=(640, 480))
            pictures.append((folder / "one.jpg").read_bytes())
        met = scaled(folder)
        met &= workers(pictures)
        decoders(pictures[: PICTURES // 4])
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
