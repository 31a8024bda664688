"""From a JPEG to the pixels a CNN is given: what scaled decoding, threads and processes bring.

    python benchmarks/decoding.py

Pictures are smooth noise, the pixels those of the usual 256 and 224. In one run:

- scaled decoding: `read_image(..., at_least=n)` lets libjpeg skip what the resizing would throw
  away. Time of decoding and resizing at full size to that with n of 2 x 256 and of 1 x 256, and by
  how much the pixels then differ, of 255. For 4000 x 3000, 2 x 256 must be at least twice as fast.
- one thread, two threads and two processes on 640 x 480, in pictures per second. Both Pillow's
  decoder and its resizing let other threads run, and a process must send its pixels back: two
  threads must reach 0.9 of two processes.
- torchvision's decoder beside Pillow's: decoding alone, and with the resizing of each.

Contestants take turns; times are medians over the rounds. Exits with code 1 if a target is missed.
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
PICTURES = 160  # 640 x 480, for the speeds
PREPROCESS = Preprocess()


def crop(data: bytes, at_least: int | None = None) -> NDArray[np.uint8]:
    """Decode, resize and crop: uint8 (3, 224, 224)."""
    return PREPROCESS.pixels(read_image(data, at_least=at_least)).numpy()


def torchvision_crop(data: bytes) -> Tensor:
    """Do the same by torchvision alone."""
    image = transforms.resize(torchvision_decode(data), [PREPROCESS.resize_size], antialias=True)
    return transforms.center_crop(image, [PREPROCESS.crop_size])


def torchvision_decode(data: bytes) -> Tensor:
    """Decode as torchvision does: uint8 (3, H, W)."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def take_turns(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return each one's median time in seconds; the first turn is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + ROUNDS):
        for name, run in contestants.items():
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
        off = [np.abs(other - full) for other in (twice, once)]
        print(
            f"{width:5} x {height:4} "
            + " ".join(f"{1e3 * seconds:6.1f} ms" for seconds in times.values())
            + "   "
            + ", ".join(f"{wrong.mean():.2f} and {wrong.max()}" for wrong in off)
        )
        print(
            f"{'':12} full to 2 x 256: {times['full'] / times['twice']:.2f}, "
            f"to 1 x 256: {times['full'] / times['once']:.2f}"
        )
    return check("4000 x 3000, full to 2 x 256", times["full"] / times["twice"], at_least=2)


def workers(pictures: list[bytes]) -> bool:
    """Compare threads with processes."""

    def alone() -> None:
        for data in pictures:
            crop(data)

    def consume(crops: Iterator[object]) -> None:
        for _ in crops:
            pass

    # Forking a process that has threads is asking for trouble.
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
        print(f"{name:12} {speed:7.1f} pictures of 640 x 480 per second")
    ratio = speeds["2 threads"] / speeds["2 processes"]
    return check("2 threads to 2 processes", ratio, at_least=0.9)


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
        print(f"{name:36} {1e3 * seconds / len(pictures):5.2f} ms per picture of 640 x 480")


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
