"""What a report of a bug needs to know about this installation."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata

from captioner.system.cores import allowed_cores
from captioner.system.foreign import plain
from captioner.system.version import __version__

# Variables that change what captioner or torch does; their values are short and no secrets.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE")


def summary() -> str:
    """Return the versions of captioner and of what it computes with, in two lines."""
    torch, torchvision = _version("torch"), _version("torchvision")
    return f"captioner {__version__}\ntorch {torch}, torchvision {torchvision}, device {_device()}"


def environment() -> list[tuple[str, str]]:
    """Return names and values: versions, machine and device. Holds no path and no user name."""
    import psutil
    import torch

    rows = [
        ("captioner", __version__),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("cores", f"{allowed_cores()} of {os.cpu_count()}"),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.1f} GiB"),
        ("device", _device()),
        ("processor's instructions", torch.backends.cpu.get_cpu_capability()),
    ]
    rows += [(f"${name}", plain(os.environ[name], 60)) for name in VARIABLES if name in os.environ]
    return rows + [(name, _version(name)) for name in _packages()]


def _packages() -> Iterator[str]:
    """Yield the packages that captioner and its extras for users name."""
    tools = {"docs", "test", "dev"}
    seen = {"captioner"}
    for line in metadata.requires("captioner") or ():
        name = re.split(r"[^\w.-]", line)[0]
        extra = re.search(r"extra == ['\"](\w+)", line)
        if name not in seen and (extra is None or extra[1] not in tools):
            seen.add(name)
            yield name


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """Return the device that `--device auto` takes, with its name and driver."""
    try:
        import torch

        from captioner.system.devices import choose_device
    except (ImportError, OSError) as error:  # OSError: a library of CUDA is missing
        return f"none: torch cannot be imported: {plain(error, 200)}"
    device = choose_device("auto")
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"
    return device.type
