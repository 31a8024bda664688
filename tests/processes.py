"""The processes that a test starts end with it, also when it fails."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

MARK = "CAPTIONER_TEST"  # an environment variable, which what a process starts has, too


@contextmanager
def ended() -> Iterator[None]:
    """Kill, at the end of the block, what was started in it, and what that has started.

    The workers of torchrun have a session of their own, and outlive it when it is killed.
    """
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        try:
            yield
        finally:
            while left := [each for each in psutil.process_iter() if _runs_with(mark, each)]:
                for process in left:
                    with suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(left, timeout=1)


def _runs_with(mark: str, process: psutil.Process) -> bool:
    with suppress(psutil.Error, OSError):
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.environ().get(MARK) == mark
    return False
