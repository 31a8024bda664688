"""Threads that read, decode and, on a processor, compute.

A GPU is fed: threads read and decode while it works. On a processor there is nothing to feed. Its
cores would only be fought for, and the threads of a matrix product wait for each other: one that
decodes in between keeps all waiting. So there the work is cut into pieces instead, and each
thread computes its piece with one core.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@contextmanager
def workers(count: int | None, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Give threads; what is not begun when the block is left is dropped.

    Args:
        count: of threads; None: one per core.
        device: that computes; where it is the processor, each thread computes with one core.
    """
    threads = torch.get_num_threads()
    single = partial(torch.set_num_threads, 1) if device.type == "cpu" else None
    pool = ThreadPoolExecutor(count or os.cpu_count() or 1, initializer=single)
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


def spread(function: Callable[[Tensor], T], batch: Tensor, size: int) -> list[T]:
    """Apply a function to a batch in pieces, on all cores that this thread may use; in order.

    Args:
        function: of a piece.
        batch: cut along its first dimension.
        size: of a piece, at most.
    """
    cores = torch.get_num_threads()
    size = max(1, min(size, math.ceil(len(batch) / cores)))
    if cores == 1 or len(batch) <= size:
        return [function(piece) for piece in batch.split(size)]
    with workers(cores, batch.device) as pool:
        return on_cores(pool, function, batch, size)
