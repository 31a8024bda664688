"""Split an iterable into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

from captioner.errors import ConfigError
from captioner.system.foreign import excerpt

T = TypeVar("T")

MOST_TOGETHER = 2**16  # items per batch


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last, or the one before an exception, may be shorter.

    Raises:
        ConfigError: at once, if the size is not 1 to 65,536.
    """
    _check_size(size)
    return _batches(iter(items), size)


def in_turn(items: Iterable[T], size: int) -> Iterator[Iterator[T]]:
    """Yield iterators over `size` items each; consume each completely before the next.

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
        except Exception as error:  # usually StopIteration
            ended = error
        if batch:
            yield batch
    if not isinstance(ended, StopIteration):
        raise ended
