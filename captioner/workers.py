"""Threads that read, decode and, on a processor, compute.

A GPU is fed: threads read and decode while it works. On a processor there is nothing to feed. Its
cores would only be fought for, and the threads of a matrix product wait for each other: one that
decodes in between keeps all waiting. So there the work is cut into pieces instead, and each
thread computes its piece with one core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from captioner.errors import ConfigError
from captioner.foreign import excerpt

T = TypeVar("T")
MOST_RANKS = 10**6  # of one machine

# A forked process has none of its parent's threads, and hangs for ever when PyTorch waits for
# them. With one thread it waits for none; PyTorch's own loaders do the same.
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def cores() -> int:
    """Return how many cores this process has: those it may use, shared with the other ranks."""
    may_use = getattr(os, "sched_getaffinity", None)  # not all of the machine's, in containers
    own = len(may_use(0)) if may_use else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not ranks.isdecimal() or not 1 <= int(ranks[:9]) <= MOST_RANKS:
        raise ConfigError(
            f"$LOCAL_WORLD_SIZE: must be 1 to {MOST_RANKS:,}, given {excerpt(ranks, 60)}"
        )
    return max(1, own // int(ranks))


@contextmanager
def workers(count: int | None, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Give threads; what is not begun when the block is left is dropped.

    Args:
        count: of threads; None: one for each of `cores`.
        device: that computes; where it is the processor, each thread computes with one core.
    """
    threads = torch.get_num_threads()
    single = partial(torch.set_num_threads, 1) if device.type == "cpu" else None
    pool = ThreadPoolExecutor(count or cores(), initializer=single)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # or else other new threads would begin with one


def on_cores(
    pool: ThreadPoolExecutor, function: Callable[[Tensor], T], batch: Tensor, size: int
) -> list[T]:
    """Apply a function to a batch, in pieces of a size, each on one core; in order."""
    return list(pool.map(function, batch.split(size)))
