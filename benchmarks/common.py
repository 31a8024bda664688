"""Shared by the benchmarks: noise images, a description of the machine, target ratios."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image


def noise_jpeg(path: Path, *, seed: int, size: int | tuple[int, int] = 224) -> None:
    """Write a JPEG of smooth noise, about as large in bytes as a photograph.

    Args:
        path: file to write.
        seed: seed of the noise.
        size: width and height in pixels, or the side of a square.
    """
    width, height = (size, size) if isinstance(size, int) else size
    shape = (height // 8, width // 8, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(path, quality=90)


def describe_machine() -> str:
    """Return processor, versions, commit and load in one line."""
    import torch
    import torchvision

    return (
        f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"commit {describe_commit()}, load {os.getloadavg()[0]:.1f}"
    )


def describe_commit() -> str:
    """Return the commit of this checkout, or "unknown"."""
    return output_of("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")


def output_of(*command: str) -> str:
    """Return what a command prints; "unknown" if it is absent, fails or prints nothing."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip() or "unknown"


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check(name: str, ratio: float, *, at_least: float = 0.0, at_most: float = math.inf) -> bool:
    """Print a ratio and its target; return whether the target is met."""
    target = f"at most {at_most:g}" if at_most < math.inf else f"at least {at_least:g}"
    met = at_least <= ratio <= at_most
    print(f"{name}: {ratio:.2f} (target: {target}; {'met' if met else 'MISSED'})")
    return met
