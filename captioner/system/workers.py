"""Threads that read, decode and, on a processor, compute.

A GPU is fed: threads read and decode while it works. On a processor there is nothing to feed. Its
cores would only be fought for, and the threads of a matrix product wait for each other: one that
decodes in between keeps all waiting. So there the work is cut into pieces instead, and each
thread computes its piece with one core.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from captioner.errors import ConfigError, is_shortage
from captioner.system.foreign import excerpt

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # batches that are read while one is computed
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


class Workers:
    """Threads that read ahead for a device and, where it is the processor, compute."""

    def __init__(self, pool: ThreadPoolExecutor, device: torch.device):
        """Use a pool; see `workers`."""
        self.pool = pool
        self.device = device

    def map_ahead(
        self, function: Callable[[T], R], batches: Iterable[Iterable[T]]
    ) -> Iterator[list[R]]:
        """Apply a function to items, `AHEAD` batches ahead of the one that is asked for.

        Args:
            function: called by the threads.
            batches: taken only as they are needed, so that memory does not grow with their
                number; an item is with a thread before the next of its batch is asked for.

        Yields:
            What the function returns for the items of a batch, in order.

        Raises:
            Exception: what the iterator of batches raises, after the results of those before.
        """
        source = iter(batches)
        waiting: deque[list[Future[R]]] = deque()
        ended: Exception | None = None

        def read_ahead() -> None:
            nonlocal ended
            while ended is None and len(waiting) < AHEAD:
                begun: list[Future[R]] = []
                try:
                    for item in next(source):
                        begun.append(self.pool.submit(function, item))
                except Exception as error:  # StopIteration as a rule
                    ended = error
                if begun:
                    waiting.append(begun)

        read_ahead()
        while waiting:
            results = [each.result() for each in waiting.popleft()]
            read_ahead()
            yield results
        if ended and not isinstance(ended, StopIteration):
            raise ended

    def compute(self, function: WithinMemory[T], batch: Tensor, size: int) -> list[T]:
        """Apply a function to a batch on the device.

        Args:
            function: computes on the device.
            batch: (B, ...).
            size: rows that a core of a processor computes at a time; other devices compute all.

        Returns:
            What the function returns for each part of the batch, in order.
        """
        if self.device.type == "cpu":
            return [part for parts in self.pool.map(function, batch.split(size)) for part in parts]
        if self.device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # which is copied several times as fast
        return function(batch)


@contextmanager
def workers(count: int | None, device: torch.device) -> Iterator[Workers]:
    """Give threads; what is not begun when the block is left is dropped.

    Args:
        count: of threads; None: one for each of `cores`.
        device: that computes; where it is the processor, each thread computes with one core.
    """
    threads = torch.get_num_threads()
    single = partial(torch.set_num_threads, 1) if device.type == "cpu" else None
    pool = ThreadPoolExecutor(count or cores(), initializer=single)
    try:
        yield Workers(pool, device)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # or else other new threads would begin with one


class WithinMemory(Generic[T]):
    """Applies a function to a batch, in halves from then on where the memory is short."""

    def __init__(self, function: Callable[[Tensor], T]):
        """Begin with whole batches."""
        self.function = function
        self.limit: int | None = None

    def __call__(self, batch: Tensor) -> list[T]:
        """Return what the function returns for each part, in order."""
        while True:
            size = min(self.limit or len(batch), len(batch))
            try:
                return [self.function(part) for part in batch.split(size)]
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not is_shortage(error):
                    raise
                self.limit = size // 2
                torch.cuda.empty_cache()
