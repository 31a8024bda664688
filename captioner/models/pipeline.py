"""Batches of images -> captions: threads read the next batches while one is captioned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from captioner.config import DecodingConfig
from captioner.errors import ConfigError, ImageError, is_shortage, within_memory
from captioner.foreign import excerpt
from captioner.workers import cores, on_cores, workers

if TYPE_CHECKING:
    from captioner.models.captioner import Caption, Captioner

T = TypeVar("T")
R = TypeVar("R")

MOST_TOGETHER = 2**16  # images of a batch
MOST_WORKERS = 1024
AHEAD = 2  # batches that are read while one is captioned
SEARCHED = 128  # images a core searches for together; fixed, as random draws depend on it


def captions_of(
    captioner: Captioner,
    batches: Iterable[Iterable[T]],
    read: Callable[[T], tuple[R, Tensor | None]],
    options: DecodingConfig,
    *,
    needed: Callable[[list[R]], bool] = lambda made: True,  # noqa: ARG005
    num_workers: int | None = None,
    n_best: int = 1,
) -> Iterator[list[tuple[R, list[Caption] | ImageError]]]:
    """Caption batch by batch.

    The images of a batch go through the network together, whatever came before.

    Args:
        captioner: on its device.
        batches: taken only as they are needed, so that memory does not grow with their number;
            an image is on its way to be read before the next of its batch is asked for.
        read: called by the threads; what it makes of an image, and pixels, uint8 (3, S, S), or
            None where there is nothing to caption. It raises nothing.
        options: how to search.
        needed: told what `read` made of a batch; False: its pixels are dropped.
        num_workers: threads; None: one for each core. On a processor they also encode and search.
        n_best: captions per image.

    Yields:
        For each image of a batch what `read` made of it, and its captions, best first; none
        where there were no pixels, an error where the model gives no numbers.

    Raises:
        ConfigError: if `num_workers` is out of bounds.
        Exception: what the iterator of batches raises, after the captions of those before.
    """
    if num_workers is not None and not (
        isinstance(num_workers, int) and 1 <= num_workers <= MOST_WORKERS
    ):
        raise ConfigError(
            f"num_workers: must be 1 to {MOST_WORKERS:,}, given {excerpt(num_workers, 60)}"
        )
    encode = WithinMemory(captioner.encoder.see)
    search = WithinMemory(partial(captioner.search_each, options=options, n_best=n_best))
    together = captioner.encoder.images_per_pass
    source = iter(batches)

    def caption(pixels: list[Tensor]) -> Iterator[list[Caption] | ImageError]:
        if not pixels:
            return iter(())
        stacked = torch.stack(pixels)
        if captioner.device.type == "cpu":
            features = on_cores(pool, captioner.encoder.see, stacked, together)
            parts = on_cores(pool, search, torch.cat(features), SEARCHED)
        else:
            if captioner.device.type == "cuda":
                stacked = stacked.pin_memory()  # which is copied several times as fast
            parts = [search(torch.cat(encode(stacked)))]
        return (captions for part in parts for some in part for captions in some)

    captioner.encoder.prepare(num_workers or cores())
    with workers(num_workers, captioner.device) as pool:
        waiting: deque[list[Future[tuple[R, Tensor | None]]]] = deque()

        ended: Exception | None = None

        def read_ahead() -> None:
            nonlocal ended
            while ended is None and len(waiting) < AHEAD:
                begun: list[Future[tuple[R, Tensor | None]]] = []
                try:
                    for image in next(source):
                        begun.append(pool.submit(read, image))
                except Exception as error:  # StopIteration as a rule
                    ended = error
                if begun:
                    waiting.append(begun)

        read_ahead()
        while waiting:
            ready = [image.result() for image in waiting.popleft()]
            if not needed([made for made, _ in ready]):
                ready = [(made, None) for made, _ in ready]
            read_ahead()
            with within_memory("to caption"):
                found = caption([pixels for _, pixels in ready if pixels is not None])
            yield [(made, [] if pixels is None else next(found)) for made, pixels in ready]
    if ended and not isinstance(ended, StopIteration):
        raise ended  # when all that came before is captioned


class WithinMemory:
    """Applies a function to a batch, in halves from then on where the memory is short."""

    def __init__(self, function: Callable[[Tensor], Any]):
        self.function = function
        self.limit: int | None = None

    def __call__(self, batch: Tensor) -> list[Any]:
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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Give items in lists of a size; the last may be shorter, also where their iterator raises.

    Raises:
        ConfigError: at once, if the size is not 1 to 65,536.
    """
    _check_size(size)
    return _batches(iter(items), size)


def in_turn(items: Iterable[T], size: int) -> Iterator[Iterator[T]]:
    """Cut items into batches of a size that are taken item by item, each whole before the next.

    Raises:
        ConfigError: at once, if the size is not 1 to 65,536.
    """
    _check_size(size)
    source = iter(items)
    return (chain([first], islice(source, size - 1)) for first in source)


def _check_size(size: int) -> None:
    if not isinstance(size, int) or not 1 <= size <= MOST_TOGETHER:
        raise ConfigError(f"batch_size: must be 1 to {MOST_TOGETHER:,}, given {excerpt(size, 60)}")


def _batches(source: Iterator[T], size: int) -> Iterator[list[T]]:
    ended: Exception | None = None
    while ended is None:
        batch: list[T] = []
        try:
            while len(batch) < size:
                batch.append(next(source))
        except Exception as error:  # StopIteration as a rule
            ended = error
        if batch:
            yield batch
    if not isinstance(ended, StopIteration):
        raise ended
