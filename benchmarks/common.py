"""What the benchmarks share: pictures of noise, the machine in a line, ratios with their targets."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image


def noise_jpeg(path: Path, *, seed: int, size: int = 224) -> None:
    """Write a JPEG with about as many bytes as a photograph of its size: smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size // 8, size // 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    picture.save(path, quality=90)


def describe_machine() -> str:
    """Return processor, versions, commit and load, as one line."""
    import torch
    import torchvision

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"commit {commit or 'unknown'}, load {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def verdict(
    what: str, ratio: float, *, at_least: float | None = None, at_most: float | None = None
) -> str:
    """Return a line with a ratio, its target and whether it is met."""
    if at_least is not None:
        target, met = f"at least {at_least:g}", ratio >= at_least
    else:
        assert at_most is not None
        target, met = f"at most {at_most:g}", ratio <= at_most
    return f"{what}: {ratio:.2f} (target: {target}; {'met' if met else 'MISSED'})"
