"""What a process of a job last noted in its journal: for the progress of the job, from outside."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from captioner.system.files import no_stream

# `done` and `failed` count the records; triggers keep them, so that nobody has to count millions.
SCHEMA = """
CREATE TABLE IF NOT EXISTS run (done INTEGER, failed INTEGER, state TEXT);
CREATE TRIGGER IF NOT EXISTS record_added AFTER INSERT ON records BEGIN
    UPDATE run SET done = done + 1, failed = failed + new.failed;
END;
CREATE TRIGGER IF NOT EXISTS record_changed AFTER UPDATE ON records BEGIN
    UPDATE run SET failed = failed + new.failed - old.failed;
END;
"""
COUNTS = "SELECT count(*), coalesce(sum(failed), 0), '' FROM records"
FIRST = f"INSERT INTO run SELECT * FROM ({COUNTS}) WHERE NOT EXISTS (SELECT 1 FROM run)"
UPDATE = "UPDATE run SET state = ?"
PATIENCE = 5  # seconds to wait for a job that is writing
SILENCE = 60  # seconds after which a job on another machine counts as stopped
DRIFT = 5  # seconds by which the start of a process may seem to change


@dataclass
class RunState:
    """The state of one process in its current run.

    Attributes:
        run: the same for all processes of a run.
        rank: of the process in its job, from 0.
        process: its id on its machine; 0: it has ended.
        born: when the process started, in seconds since 1970, because ids are used again.
        host: name of its machine.
        processes: number of processes of the run.
        command: that continues the job, if it was started from a command line.
        folder: in which the command was given.
        started: of the run, in seconds since 1970.
        since: start of the first batch with an image that no earlier run had finished.
        updated: when this state was noted.
        listed: images that this process passed, those that earlier runs had finished included.
        fresh: images that this process captioned, or that failed.
        total: images of the whole job, if known.
        stages: seconds, by name.
        finished: the output is written.
    """

    run: str = ""
    rank: int = 0
    process: int = 0
    born: float = 0.0
    host: str = ""
    processes: int = 1
    command: str = ""
    folder: str = ""
    started: float = 0.0
    since: float = 0.0
    updated: float = 0.0
    listed: int = 0
    fresh: int = 0
    total: int | None = None
    stages: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    @property
    def rate(self) -> float:
        """Images per second that this process captions."""
        seconds = self.updated - self.since
        return self.fresh / seconds if self.since and seconds > 0 else 0.0

    def to_json(self) -> str:
        """Return all fields."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Noted:
    """What a journal says at once: its records, their failures, and the last run, if known."""

    done: int
    failed: int
    state: RunState | None


def noted(db: sqlite3.Connection) -> Noted:
    """Return what a journal says; journals of older versions are counted.

    Raises:
        sqlite3.Error: if the journal is damaged.
    """
    try:
        row = db.execute("SELECT done, failed, state FROM run").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        row = None
    done, failed, text = row or db.execute(COUNTS).fetchone()
    return Noted(int(done), int(failed), _state(text))


def noted_in(path: Path) -> Noted:
    """Return what a journal says; never writes to it, and never waits for its job.

    Raises:
        OSError: if the file cannot be read.
        sqlite3.Error: if the journal is damaged.
    """
    with open(path, "rb", opener=no_stream) as file:
        has_log = file.read(20)[18:19] == b"\2"
    log = Path(f"{path}-wal")
    # Without a log no process has the journal open. Reading it as a file that never changes then
    # leaves nothing in its folder, and needs no permission to write there.
    closed = has_log and not (log.exists() and log.stat().st_size)
    for mode in ("immutable=1",) if closed else ("mode=ro", "immutable=1"):
        address = f"{path.absolute().as_uri()}?{mode}"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE)) as db:
                return noted(db)
        except sqlite3.Error as error:
            last = error
    raise last


def is_running(state: RunState, beat: float | None) -> bool:
    """Whether the process of a state lives; on another machine, a sign of life tells.

    Args:
        state: of the leader of a job.
        beat: its last sign of life, in seconds since 1970; None: it has ended.
    """
    if beat is None or not state.process:
        return False
    if state.host != socket.gethostname():
        return time.time() - beat < SILENCE
    try:
        process = psutil.Process(state.process)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - state.born) < DRIFT)
    except psutil.AccessDenied:
        return time.time() - beat < SILENCE
    except psutil.Error:
        return False


def state_of(content: Any) -> RunState | None:
    """Return the state in parsed JSON; None if there is none, or it is of another version."""
    try:
        return RunState(**content)
    except TypeError:
        return None


def _state(text: Any) -> RunState | None:
    try:
        return state_of(json.loads(text))
    except (TypeError, ValueError):
        return None
