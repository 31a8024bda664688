"""Record SIGINT and SIGTERM, so that a run can save before it stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Record SIGINT and SIGTERM in a list; a second one of the same kind has its usual effect."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        with suppress(ValueError):  # only the main thread can handle signals
            for number in before:
                signal.signal(number, catch)
        yield caught
    finally:
        with suppress(ValueError):
            for number, handler in before.items():
                signal.signal(number, handler)
