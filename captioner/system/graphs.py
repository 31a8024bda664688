"""CUDA graphs: the kernels of a function, recorded once for each shape and then replayed.

A network of a hundred layers costs hundreds of launches; a replay costs one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[[Tensor], Tensor]


class Graphed:
    """Applies a function of a batch, each row alone, to batches of few different sizes.

    A batch is filled up to `fixed_rows`. The function runs as it is for the first batch of a size
    and is recorded for the second. If it cannot be recorded, it runs as it is.
    """

    def __init__(self, function: Function, record: Callable[[Function, Tensor], Function]):
        """Use `record`, which returns what replays the function for a shape."""
        self._function, self._record = function, record
        self._known: dict[torch.Size, Function | None] = {}  # None: seen once

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Return the function's result for a batch, (B, ...)."""
        rows = fixed_rows(len(batch))
        filling = batch[:1].expand(rows - len(batch), *batch.shape[1:])
        whole = torch.cat((batch, filling)) if len(filling) else batch
        try:
            return self._of(whole)[: len(batch)]
        except RuntimeError:  # usually memory ran out: release what the graphs hold
            self._known.clear()
            raise

    def _of(self, batch: Tensor) -> Tensor:
        if batch.shape not in self._known:
            self._known[batch.shape] = None
            return self._function(batch)
        replay = self._known[batch.shape]
        if replay is None:
            try:
                replay = self._record(self._function, batch)
            except RuntimeError:
                replay = self._function
            self._known[batch.shape] = replay
        return replay(batch)


def fixed_rows(rows: int) -> int:
    """Return the rows to which a batch is filled up: a power of two, or a multiple of 64."""
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64


def record(function: Function, batch: Tensor) -> Function:
    """Record a function for the shape of a batch on a CUDA device, and return what replays it.

    Raises:
        RuntimeError: if it waits for the device or copies from the processor, or memory is short.
    """
    given = batch.clone()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(batch.device)
    # Other threads decode meanwhile, and may allocate memory.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        found = function(given)

    def replay(batch: Tensor) -> Tensor:
        given.copy_(batch)
        graph.replay()
        return found.clone()  # the next replay overwrites it

    return replay
