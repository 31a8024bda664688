"""Batches of images -> captions: threads read the next batches while one is captioned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from captioner.errors import within_memory
from captioner.system.workers import WithinMemory, workers

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

SEARCHED = 128  # images a core searches for together; fixed, as random draws depend on it


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
    """Caption batch by batch.

    The images of a batch go through the network together, whatever came before.

    Args:
        batches: see `Workers.map_ahead`.
        read: called by the threads; returns a result for an image, and its pixels, uint8
            (3, S, S), or None where there is nothing to caption. It raises nothing.
        encode: pixels, uint8 (B, 3, S, S), to features, (B, F).
        search: features, (B, F), to what is written about each image.
        device: on which `encode` and `search` compute.
        images_per_pass: images that one core of a processor encodes at a time.
        needed: called with the results of a batch; False: its pixels are dropped.
        num_workers: threads; None: one for each core. On a processor they also encode and search.

    Yields:
        For each image of a batch its result, and what is written about it; None without pixels.

    Raises:
        Exception: what the iterator of batches raises, after the captions of those before.
    """
    encoding, searching = WithinMemory(encode), WithinMemory(search)
    with workers(num_workers, device) as crew:
        for batch in crew.map_ahead(read, batches):
            wanted = needed([result for result, _ in batch])
            pixels = [seen for _, seen in batch if wanted and seen is not None]
            captions: Iterator[C] = iter(())
            if pixels:
                with within_memory("to caption"):
                    features = crew.compute(encoding, torch.stack(pixels), images_per_pass)
                    found = crew.compute(searching, torch.cat(features), SEARCHED)
                captions = chain.from_iterable(found)
            yield [
                (result, next(captions) if wanted and seen is not None else None)
                for result, seen in batch
            ]
