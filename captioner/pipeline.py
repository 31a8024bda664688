"""Batches of images -> captions; threads read the next batches meanwhile.

On a CUDA device the CNN encodes the next batch on a stream beside the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from captioner.errors import within_memory
from captioner.images.plain_jpeg import Jpeg
from captioner.system.gpu import SideStream, use, uses
from captioner.system.graphs import Graphed, record
from captioner.system.stages import during, timed
from captioner.system.workers import WithinMemory, workers

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")

Pixels: TypeAlias = Tensor | Jpeg | None
Gather: TypeAlias = Callable[[list[tuple[R, Pixels]]], list[tuple[R, Pixels]]]

IMAGES_PER_SEARCH = 128  # per core; fixed, because random draws depend on it


class _Encoded(NamedTuple, Generic[R]):
    """A batch after the CNN."""

    results: list[tuple[R, bool]]  # of `read`; and whether the image has a row of features
    features: Tensor | None
    made: torch.cuda.Event | None  # mark of the stream that computes the features


def run(
    batches: Iterable[Iterable[T]],
    read: Callable[[T], tuple[R, Pixels]],
    encode: Callable[[Tensor], Tensor],
    search: Callable[[Tensor], Sequence[C]],
    *,
    device: torch.device,
    images_per_pass: int,
    needed: Callable[[list[R]], bool] = lambda results: True,  # noqa: ARG005
    gather: Gather[R] | None = None,
    num_workers: int | None = None,
) -> Iterator[list[tuple[R, C | None]]]:
    """Caption images batch by batch.

    Args:
        batches: see `Workers.map_ahead`.
        read: called by the threads; returns a result for an image, and its pixels, uint8
            (3, S, S), or None if there is nothing to caption, or a file for `gather`. Must not
            raise.
        encode: pixels, uint8 (B, 3, S, S), to features, (B, F).
        search: features, (B, F), to the captions of each image.
        device: of `encode` and `search`.
        images_per_pass: images that one CPU core encodes at a time.
        needed: called with the results of a batch; False: do not caption the batch.
        gather: called by a thread with a batch as it was read; returns it with all pixels on the
            device, computed. None: the batch is as it should be.
        num_workers: threads; None: one per core. On a CPU they also encode and search.

    Yields:
        For each image of a batch: its result and its captions, None without pixels.

    Raises:
        Exception: any exception of the iterator of batches, after the captions of earlier batches.
    """
    encoding = WithinMemory(Graphed(encode, record) if uses("graphs", device) else encode)
    searching, streams = WithinMemory(search), uses("streams", device)
    side = SideStream(device, streams)

    def encoded(batch: list[tuple[R, Pixels]]) -> _Encoded[R]:
        wanted = needed([result for result, _ in batch])
        stack = [pixels for _, pixels in batch if wanted and isinstance(pixels, Tensor)]
        results = [(result, wanted and pixels is not None) for result, pixels in batch]
        with during("cnn"), side.current():
            use(stack)
            parts = crew.compute(encoding, torch.stack(stack), images_per_pass) if stack else []
            return _Encoded(results, torch.cat(parts) if parts else None, side.mark())

    with within_memory("to caption"), workers(num_workers, device) as crew:
        read_batches = timed("reading", crew.map_ahead(read, batches, gather))
        batches_encoded = map(encoded, read_batches)
        for results, features, made in one_ahead(batches_encoded) if streams else batches_encoded:
            captions: Iterator[C] = iter(())
            if features is not None:
                use([features], made)
                with during("search"):
                    captioned = crew.compute(searching, features, IMAGES_PER_SEARCH)
                captions = chain.from_iterable(captioned)
            yield [(result, next(captions) if has else None) for result, has in results]


def one_ahead(results: Iterator[T]) -> Iterator[T]:
    """Yield each result when the next one is there; an exception comes after those before it."""
    before: list[T] = []
    try:
        for result in results:
            yield from before
            before = [result]
    except Exception:
        yield from before
        raise
    yield from before
