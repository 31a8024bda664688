"""A limit for the memory that images take between reading and resizing.

A thread claims memory before it reads or decodes. Images queue in the order of the list. The first
in the queue never waits, so an image above the limit is decoded alone.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import ByteSize, TypeAdapter, ValidationError

from captioner.errors import ConfigError
from captioner.system.cores import cores

if TYPE_CHECKING:
    import torch

PER_CORE = 2**27  # bytes: a photograph of 12 megapixels takes 100 MB to decode
LARGE = 2**26  # bytes; releasing this many returns freed memory to the system
CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (  # limit and use, in versions 2 and 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)

# The C library keeps freed memory per thread, which doubles the memory for large pictures.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Memory:
    """A memory limit in bytes, with a queue of images."""

    def __init__(self, limit: int | None = None):
        """Start with nothing claimed; None: `usual_limit`.

        All images except the first in the queue share half of the limit; the first takes the other
        half, or more if needed.
        """
        self.limit = limit or usual_limit()
        self.used = 0  # bytes
        self._queue: OrderedDict[int, int] = OrderedDict()  # number -> claimed bytes
        self._numbers = count()
        self._changed = threading.Condition()

    def join(self) -> int:
        """Join the queue and return its number; call `leave` without waiting for other images."""
        with self._changed:
            number = next(self._numbers)
            self._queue[number] = 0
            return number

    def claim(self, size: int, number: int | None = None) -> None:
        """Wait until memory is available, and claim it; without a number outside the queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._may(size, number))
            self.used += size
            if number is not None:
                self._queue[number] += size

    def _may(self, size: int, number: int | None) -> bool:
        # Images in the queue finish on their own. A claim from outside waits for them only if
        # there are some, so it never waits for itself.
        first = next(iter(self._queue), number)
        return first == number or self.used + size <= self.limit // 2

    def give_back(self, size: int) -> None:
        """Release memory that was claimed outside the queue."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()

    def leave(self, number: int) -> None:
        """Leave the queue and release all memory claimed with this number."""
        with self._changed:
            size = self._queue.pop(number)
            self.used -= size
            self._changed.notify_all()
        if size >= LARGE and _trim:
            _trim(0)


class Held:
    """Bytes of an image that was read while it was listed.

    `give_back` frees them and releases their claim outside the queue, at the latest when the object
    goes; further calls do nothing.
    """

    def __init__(self, content: bytes, memory: Memory, size: int):
        """Take over a claim of `size` bytes."""
        self.content, self.size = content, size
        self._release = weakref.finalize(self, memory.give_back, size)

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.content

    def give_back(self) -> None:
        """Free the content and release the claim."""
        self.content = b""
        self._release()


def usual_limit(threads: int | None = None) -> int:
    """Return a quarter of the free memory, or what the threads can use if that is less.

    The other cores, and their part of the memory, are left to other processes.
    """
    threads = threads or cores()
    fraction = min(1, threads / max(1, psutil.cpu_count() or 1))
    return min(int(free_memory() / 4 * fraction), (threads + 1) * PER_CORE)


def fits(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes take at most half of a device's free memory."""
    return 2 * size <= free_memory(device)


def free_memory(device: torch.device | None = None) -> int:
    """Return the free bytes of a device; for the CPU or None, of the machine and its container."""
    if device and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    for limit, used in CGROUP_FILES:
        with suppress(OSError, ValueError):  # no such cgroup, or "max"
            free = min(free, int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text()))
    return max(free, PER_CORE)


def bytes_of(text: str) -> int:
    """Parse a size such as `2G`, `1.5GiB`, `800MB` or a number of bytes.

    Raises:
        ConfigError: if the text is not a size, or the size is 0 or too large.
    """
    size = 0
    with suppress(ValidationError, OverflowError):
        size = TypeAdapter(ByteSize).validate_python(text.strip())
    if not text.isascii() or not 0 < size < 2**60:
        raise ConfigError(f"{text[:40]!r}: not a size in bytes; write 2G or 800MB, for example")
    return size
