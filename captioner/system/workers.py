"""Threads that read, decode and, on a CPU, compute.

On a CPU, a batch is split and each thread computes its rows with one core: decoding and matrix
products would compete for the cores, and a product waits for its slowest thread.
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

from captioner.errors import is_shortage
from captioner.system.cores import cores

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # batches that are read while one is computed

# A forked process does not inherit threads, so PyTorch would wait for ever for its thread pool.
# With one thread it uses no pool; PyTorch's own data loaders do the same.
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class Workers:
    """Threads that read ahead for a device and, if it is the CPU, compute."""

    def __init__(self, pool: ThreadPoolExecutor, device: torch.device):
        """Use a thread pool; see `workers`."""
        self.pool = pool
        self.device = device

    def map_ahead(
        self,
        function: Callable[[T], R],
        batches: Iterable[Iterable[T]],
        gather: Callable[[list[R]], list[R]] | None = None,
    ) -> Iterator[list[R]]:
        """Yield the function's results batch by batch, while threads are `AHEAD` batches ahead.

        Batches are consumed lazily. An item is submitted to a thread before the next item of its
        batch is requested. `gather` is called by a thread with the results of each batch, and
        returns those to yield.

        Raises:
            Exception: any exception of the iterator of batches, after the results of earlier ones.
        """
        source = iter(batches)
        waiting: deque[Callable[[], list[R]]] = deque()
        ended: Exception | None = None

        def results_of(futures: list[Future[R]]) -> list[R]:
            results = [future.result() for future in futures]
            return gather(results) if gather else results

        def read_ahead() -> None:
            nonlocal ended
            while ended is None and len(waiting) < AHEAD:
                futures: list[Future[R]] = []
                try:
                    for item in next(source):
                        futures.append(self.pool.submit(function, item))
                except Exception as error:  # usually StopIteration
                    ended = error
                if futures and gather:  # its turn comes after the items of its batch
                    waiting.append(self.pool.submit(results_of, futures).result)
                elif futures:
                    waiting.append(partial(results_of, futures))

        read_ahead()
        while waiting:
            results = waiting.popleft()()
            read_ahead()
            yield results
        if ended and not isinstance(ended, StopIteration):
            raise ended

    def compute(self, function: WithinMemory[T], batch: Tensor, size: int) -> list[T]:
        """Apply a function to a batch, (B, ...), on the device; `size` rows per CPU core."""
        if self.device.type == "cpu":
            pieces = self.pool.map(function, batch.split(size))
            return [result for results in pieces for result in results]
        if self.device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # several times faster to copy
        return function(batch)


@contextmanager
def workers(count: int | None, device: torch.device) -> Iterator[Workers]:
    """Give threads, by default one per core; leaving the block cancels calls that wait.

    If the device that computes is a CPU, each thread computes with one core.
    """
    threads = torch.get_num_threads()
    single = partial(torch.set_num_threads, 1) if device.type == "cpu" else None
    pool = ThreadPoolExecutor(count or cores(), initializer=single)
    try:
        yield Workers(pool, device)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # otherwise new threads would compute with one core


class WithinMemory(Generic[T]):
    """Applies a function to a batch; if memory runs out, halves the batch size from then on."""

    def __init__(self, function: Callable[[Tensor], T]):
        """Start with whole batches."""
        self.function = function
        self.limit: int | None = None

    def __call__(self, batch: Tensor) -> list[T]:
        """Return the results for the pieces of the batch, in order."""
        while True:
            size = min(self.limit or len(batch), len(batch))
            try:
                return [self.function(piece) for piece in batch.split(size)]
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not is_shortage(error):
                    raise
                self.limit = size // 2
            torch.cuda.empty_cache()  # the error is gone, and with it what it kept alive
