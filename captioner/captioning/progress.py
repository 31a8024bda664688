"""The progress of a job: a bar, or a line of JSON a second on stderr, and what journals note."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import NoReturn, Self

import psutil
from tqdm import tqdm

from captioner.captioning.journal import Journal
from captioner.captioning.run_state import Noted, RunState
from captioner.system.addresses import COMMAND, without_secrets
from captioner.system.cores import torchrun_number
from captioner.system.stages import measured
from captioner.system.world import World

FORMS = ("bar", "json", "none")
STAGES = ("reading", "cnn", "search", "writing")
SECONDS = 1.0  # between two lines, and between two signs of life
LONGEST = 2000  # characters of a command to note


class Progress:
    """Counts what this process does; the leader also shows what all processes do."""

    def __init__(
        self,
        form: str = "bar",
        count: Callable[[], int | None] = lambda: None,
        world: World | None = None,
        *,
        run: str = "",
        command: str = "",
        alive: Callable[[], None] = lambda: None,
    ):
        """Prepare; a `with` block starts.

        Args:
            form: bar: on a terminal; json: a line a second; none.
            count: counts the images of the whole job in a thread; None if that takes long.
            world: the processes of the job; None: this one alone.
            run: the same for all processes of a run.
            command: that continues the job; see `command_to_continue`.
            alive: called every second by the leader.
        """
        self.form, self.count, self.world = form, count, world or World()
        self.alive, self.failed = alive, 0
        self._notes: Callable[[], Iterable[Noted]] | None = None
        self.state = RunState(
            run=run,
            rank=self.world.rank,
            process=os.getpid(),
            born=psutil.Process().create_time(),
            host=socket.gethostname(),
            processes=self.world.size,
            command=command,
            folder=str(Path.cwd()),
        )
        self._bar: tqdm[NoReturn] | None = None
        self._ended, self._ticker = Event(), Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self.state.started = self.state.updated = time.time()
        self._measured = measured()
        self.state.stages = self._measured.__enter__()
        if self.world.leads:
            Thread(target=self._add_total, daemon=True).start()
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self.world.leads:
            self._ticker.join()
        self._measured.__exit__(kind, error, trace)
        if self.form == "json" and self.world.leads and (kind is None or self.state.listed):
            self._print()

    def follow(self, journal: Journal) -> None:
        """Note the state in a journal, and count what all journals of the job say."""
        journal.note(self.state)
        self._notes = partial(journal.notes, self.world.size)

    def add(self, images: int, fresh: int, failed: int) -> RunState:
        """Count a batch; return the state to note.

        Args:
            images: of the batch.
            fresh: those of them that no earlier run had finished.
            failed: those of these that failed.
        """
        state = self.state
        if fresh and not state.since:
            state.since = state.updated
        state.updated = time.time()
        state.listed += images
        state.fresh += fresh
        self.failed += failed
        if self._bar is not None:
            self._bar.update(images)
        return state

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show a bar on a terminal."""
        disable = None if self.form == "bar" and self.world.leads else True
        with tqdm(unit="image", disable=disable) as self._bar:
            self._set_total()
            yield
        self._bar = None

    def line(self) -> str:
        """Return the progress of all processes as a line of JSON."""
        own, failed = self.state, self.failed
        states = [own]
        if self._notes:
            with suppress(sqlite3.Error, OSError):  # the job itself reports it
                notes = [*self._notes()]
                failed = sum(note.failed for note in notes)
                found = [note.state for note in notes if note.state and note.state.run == own.run]
                states += [state for state in found if state.rank != own.rank]
        done, rate = sum(state.listed for state in states), sum(state.rate for state in states)
        seconds = [max(time.time(), state.updated) - state.started for state in states]
        shares = {
            name: round(sum(s.stages.get(name, 0.0) for s in states) / max(sum(seconds), 1e-9), 3)
            for name in dict.fromkeys((*STAGES, *own.stages))
        }
        left = None if own.total is None else max(0, own.total - done)
        eta = left / rate if left is not None and rate else 0.0 if left == 0 else None
        return json.dumps(
            {
                "seconds": round(seconds[0], 1),
                "done": done,
                "failed": failed,
                "total": own.total,
                "rate": round(rate, 2),
                "eta": None if eta is None else round(eta, 1),
                "shares": shares,
            }
        )

    def _tick(self) -> None:
        while not self._ended.wait(SECONDS):
            self.alive()
            if self.form == "json":
                self._print()

    def _print(self) -> None:
        with suppress(OSError, ValueError):  # a closed stderr must not end the job
            sys.stderr.write(self.line() + "\n")
            sys.stderr.flush()

    def _add_total(self) -> None:
        with suppress(Exception):  # the job itself reports it
            self.state.total = self.count()
            self._set_total()

    def _set_total(self) -> None:
        bar, total = self._bar, self.state.total
        if bar is not None and total:
            bar.total = -(-total // self.world.size)


def command_to_continue(words: Sequence[str]) -> str:
    """Return the command line that continues a job.

    Args:
        words: of the command line, after `captioner`.

    `--overwrite` is left out, because it would start the job over. Commands of `pipe:` and the
    passwords in addresses are not shown. A long list of images is cut.

    Raises:
        ConfigError: if a variable of `torchrun` is not a number.
    """
    shown = []
    for word in words:
        if word == "--overwrite":
            continue
        safe = f"{COMMAND}..." if word.startswith(COMMAND) else without_secrets(word)
        shown.append(shlex.quote(safe))
    start = "captioner"
    if (size := torchrun_number("WORLD_SIZE", "1", least=1)) > 1:
        local = torchrun_number("LOCAL_WORLD_SIZE", str(size), least=1, most=size)
        nodes = f"--nnodes {size // local} " if local != size else ""
        start = f"torchrun {nodes}--nproc-per-node {local} -m captioner"
    text = " ".join((start, *shown))
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rpartition(' ')[0]} ..."
