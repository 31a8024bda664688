"""What the time of a job goes to: seconds for each named stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")
_spent: ContextVar[dict[str, float] | None] = ContextVar("spent", default=None)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure the stages of this thread; gives their seconds so far, by name."""
    spent: dict[str, float] = {}
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


@contextmanager
def during(stage: str) -> Iterator[None]:
    """Count the time of the block for a stage; of no account where nothing measures."""
    spent = _spent.get()
    if spent is None:
        yield
        return
    started = perf_counter()
    try:
        yield
    finally:
        spent[stage] = spent.get(stage, 0.0) + perf_counter() - started


def timed(stage: str, items: Iterable[T]) -> Iterator[T]:
    """Yield the items; the time that each takes to come counts for a stage."""
    source = iter(items)
    while True:
        with during(stage):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item
