"""A bound for the bytes that images take between being read and being resized.

A few threads that decode large pictures, or a stream of large members, could fill any memory. So
whoever is about to read or to decode asks for room here, and waits until others have given theirs
back. Images are put into a line in the order of their listing; the first in it never waits: what
is larger than the bound is done alone, and nothing waits for ever.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections import OrderedDict
from itertools import count
from pathlib import Path

import psutil

from captioner.errors import ConfigError
from captioner.system.workers import cores

PER_CORE = 2**27  # bytes: a photograph of 12 megapixels takes 100 MB to decode
LARGE = 2**26  # bytes; so many are given back to the system at once
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE | re.ASCII)

# The C library keeps for each thread what it freed, which doubles what large pictures take.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Memory:
    """Room for images, by bytes."""

    def __init__(self, limit: int | None = None):
        """Begin with nothing held.

        Args:
            limit: bytes; the first in the line may take half of it, or more where it needs more,
                all others together the other half. None: `usual_limit`.
        """
        self.limit = limit or usual_limit()
        self.used = 0  # bytes
        self._line: OrderedDict[int, int] = OrderedDict()  # bytes that each in it holds
        self._numbers = count()
        self._changed = threading.Condition()

    def join(self) -> int:
        """Take the next place in the line, which who has it leaves without waiting for others."""
        with self._changed:
            number = next(self._numbers)
            self._line[number] = 0
            return number

    def claim(self, size: int, number: int | None = None) -> None:
        """Wait for room.

        Args:
            size: bytes.
            number: place in the line; None: not in it yet, and kept until `give_back`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._may(size, number))
            self.used += size
            if number is not None:
                self._line[number] += size

    def _may(self, size: int, number: int | None) -> bool:
        # Those in the line end by themselves. Who waits outside waits for them, never for itself.
        first = next(iter(self._line), number)
        return first == number or self.used + size <= self.limit // 2

    def give_back(self, size: int) -> None:
        """Give back what was claimed without a place in the line."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()

    def leave(self, number: int) -> None:
        """Leave the line and give back all that was claimed from it."""
        with self._changed:
            size = self._line.pop(number)
            self.used -= size
            self._changed.notify_all()
        if size >= LARGE and _trim:
            _trim(0)


class Held:
    """Bytes that lie in memory since they were listed, and count until they are given back."""

    def __init__(self, content: bytes, memory: Memory, size: int):
        """Take over a claim.

        Args:
            content: the bytes.
            memory: that was asked for room, without a place in its line.
            size: that was asked for.
        """
        self.content, self.memory, self.size = content, memory, size

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.content

    def give_back(self) -> None:
        """Let go of the content; more than once is as good as once."""
        size, self.size, self.content = self.size, 0, b""
        if size:
            self.memory.give_back(size)

    def __del__(self) -> None:
        """Whoever drops it need not know."""
        self.give_back()


def usual_limit(threads: int | None = None) -> int:
    """Return a quarter of what is free, or what the threads can use, whichever is less.

    Args:
        threads: that read and decode; other processes of the machine have the other cores, and
            their share of the memory. None: `cores`.
    """
    threads = threads or cores()
    share = min(1, threads / max(1, psutil.cpu_count() or 1))
    return min(int(_free() / 4 * share), (threads + 1) * PER_CORE)


def _free() -> int:
    """Return the bytes that this process may still take, of the machine and of its container."""
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(free, PER_CORE)


def bytes_of(text: str) -> int:
    """Read a size such as `2G`, `1.5GiB`, `800MB` or a number of bytes.

    Raises:
        ConfigError: if it is none, or no byte.
    """
    found = _SIZE.fullmatch(text.strip())
    size = 0
    if found:
        unit = _UNITS[found[2].upper()]
        if found[3]:  # as in GiB
            unit = 2 ** (10 * list(_UNITS).index(found[2].upper()))
        size = int(float(found[1]) * unit) if len(found[1]) < 20 else 0
    if not 0 < size < 2**60:
        raise ConfigError(f"{text[:40]!r}: no size in bytes; write it like 2G or 800MB")
    return size
