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
    """Return the batches of `in_turn` as lists."""
    return map(list, in_turn(items, size))


def in_turn(items: Iterable[T], size: int) -> Iterator[Iterator[T]]:
    """Return iterators over `size` items each; consume each completely before the next.

    Raises:
        ConfigError: at once, if the size is not 1 to 65,536.
    """
    if not isinstance(size, int) or not 1 <= size <= MOST_TOGETHER:
        raise ConfigError(f"batch_size: must be 1 to {MOST_TOGETHER:,}, given {excerpt(size, 60)}")
    source = iter(items)
    return (chain([first], islice(source, size - 1)) for first in source)
