"""Batches of images -> captions; threads read the next batches meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from captioner.errors import within_memory
from captioner.system.stages import during, timed
from captioner.system.workers import WithinMemory, workers

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

IMAGES_PER_SEARCH = 128  # per core; fixed, because random draws depend on it


def run(
    batches: Iterable[Iterable[T]],
    read: Callable[[T], tuple[R, Tensor | None]],
    encode: Callable[[Tensor], Tensor],
    search: Callable[[Tensor], Sequence[C]],
    *,
    device: torch.device,
    images_per_pass: int,
    needed: Callable[[list[R]], bool] = lambda results: True,  # noqa: ARG005
    num_workers: int | None = None,
) -> Iterator[list[tuple[R, C | None]]]:
    """Caption images batch by batch.

    Args:
        batches: see `Workers.map_ahead`.
        read: called by the threads; returns a result for an image, and its pixels, uint8
            (3, S, S), or None if there is nothing to caption. Must not raise.
        encode: pixels, uint8 (B, 3, S, S), to features, (B, F).
        search: features, (B, F), to the captions of each image.
        device: of `encode` and `search`.
        images_per_pass: images that one CPU core encodes at a time.
        needed: called with the results of a batch; False: do not caption the batch.
        num_workers: threads; None: one per core. On a CPU they also encode and search.

    Yields:
        For each image of a batch: its result and its captions, None without pixels.

    Raises:
        Exception: any exception of the iterator of batches, after the captions of earlier batches.
    """
    encoding, searching = WithinMemory(encode), WithinMemory(search)
    with within_memory("to caption"), workers(num_workers, device) as crew:
        for batch in timed("reading", crew.map_ahead(read, batches)):
            wanted = needed([result for result, _ in batch])
            stack = [pixels for _, pixels in batch if wanted and pixels is not None]
            captions: Iterator[C] = iter(())
            if stack:
                with during("cnn"):
                    features = crew.compute(encoding, torch.stack(stack), images_per_pass)
                with during("search"):
                    captioned = crew.compute(searching, torch.cat(features), IMAGES_PER_SEARCH)
                captions = chain.from_iterable(captioned)
            yield [
                (result, next(captions) if wanted and pixels is not None else None)
                for result, pixels in batch
            ]
