"""What a captioning job has done, so that it is done once, whatever happens to the job.

SQLite keeps it: a batch is in it whole or not at all, also after `kill -9`, and looking up one of
a million images takes microseconds and no memory. Each process of a job writes a journal of its
own and reads all of them.
"""

from __future__ import annotations

import heapq
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from captioner.errors import ConfigError, DataError
from captioner.inference.local import Done, Record
from captioner.models.captioner import Caption
from captioner.models.compiled import other_arithmetic

SUFFIX = ".journal"
SCHEMA = """
CREATE TABLE IF NOT EXISTS job (identity TEXT);
CREATE TABLE IF NOT EXISTS records (
    name BLOB, digest BLOB, row TEXT, failed INTEGER, PRIMARY KEY (name, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listing (position INTEGER PRIMARY KEY, name BLOB, digest BLOB);
"""


# What was said first stays: an image may be listed again, and drawn captions would be others.
ADD = """
INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (name, digest)
DO UPDATE SET row = excluded.row, failed = excluded.failed WHERE failed
"""


def journals_of(output: Path) -> list[Path]:
    """Return the journals beside an output file, those of all processes."""
    name = f"{output.name}{SUFFIX}"
    beside = output.parent.iterdir() if output.parent.is_dir() else iter(())
    return sorted(
        path
        for path in beside
        if path.name.startswith(name) and path.name.removeprefix(name).strip("0123456789.") == ""
    )


def forget(output: Path) -> None:
    """Delete all journals beside an output file."""
    for path in journals_of(output):
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)


class Journal:
    """The records of one process of a job, and those that all its processes had before."""

    def __init__(self, output: Path, rank: int, identity: Mapping[str, Any]):
        """Open a process's journal, or begin it.

        Args:
            output: the file that the job writes.
            rank: of this process.
            identity: what a record depends on besides the image: the model, the search.

        Raises:
            ConfigError: if what was done before was done by another model or with other settings.
            DataError: if the journal is damaged or cannot be written.
        """
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.own = output.with_name(f"{output.name}{SUFFIX}{f'.{rank}' if rank else ''}")
        text = json.dumps(identity, sort_keys=True)
        self.journals: list[sqlite3.Connection] = []
        for path in [self.own, *(p for p in journals_of(output) if p != self.own)]:
            with _usable(path):
                connection = _open(path, text)
                connection.execute("SELECT count(*) FROM listing").fetchone()
                _check(path, connection, identity)
            self.journals.append(connection)
        self.connection = self.journals[0]
        # Where images stand in the listing is found anew each time; an earlier job may have had
        # more processes.
        for connection in self.journals if rank == 0 else self.journals[:1]:
            with _usable(self.own), connection:
                connection.execute("DELETE FROM listing")

    def digests(self, name: str, *, failures: bool = True) -> frozenset[bytes]:
        """Tell what an image has held when it was captioned before.

        Args:
            name: of the item.
            failures: also when it failed.
        """
        query = "SELECT digest FROM records WHERE name = ?" + (
            "" if failures else " AND NOT failed"
        )
        key = (os.fsencode(name),)
        with _usable(self.own):
            return frozenset(row[0] for db in self.journals for row in db.execute(query, key))

    def add(self, positions: Iterable[int], batch: Sequence[Done]) -> None:
        """Note a batch, whole.

        Args:
            positions: of its images in the listing of the job.
            batch: what came of them.

        Raises:
            DataError: if it cannot be written.
        """
        keys = [(os.fsencode(done.name), done.digest) for done in batch]
        rows = [
            (*key, _dump(done.record), done.record.error is not None)
            for key, done in zip(keys, batch, strict=True)
            if done.record
        ]
        places = [(position, *key) for position, key in zip(positions, keys, strict=True)]
        try:
            with self.connection as db:
                db.executemany(ADD, rows)
                db.executemany("INSERT OR REPLACE INTO listing VALUES (?, ?, ?)", places)
        except sqlite3.Error as error:
            raise DataError(
                f"{self.own}: cannot be written ({error}); what was done before is kept: free some "
                f"space and run the same command again"
            ) from error

    def close(self) -> None:
        """Give the files back."""
        for connection in self.journals:
            connection.close()


def merged(output: Path) -> Iterator[Record]:
    """Yield what is in the journals of a job, in the order of its listing.

    Raises:
        DataError: if a place in the listing is empty or taken twice, or a journal is damaged.
    """
    query = "SELECT position, name, digest FROM listing ORDER BY position"
    with ExitStack() as stack:
        databases = [
            stack.enter_context(closing(sqlite3.connect(path))) for path in journals_of(output)
        ]
        stack.enter_context(_usable(output.with_name(f"{output.name}{SUFFIX}")))
        parts = (db.execute(query) for db in databases)
        listing = stack.enter_context(closing(heapq.merge(*parts)))
        for expected, (position, name, digest) in enumerate(listing):
            # A file that came or went meanwhile lets processes cut batches differently.
            if position != expected:
                raise DataError(
                    f"{output}: not written: the listing of images changed while the job ran "
                    f"({position} stands in place of {expected}); run the same command again"
                )
            rows = (_find(db, name, digest) for db in databases)
            row = next(row for row in rows if row is not None)
            yield _load(os.fsdecode(name), row)


def _find(db: sqlite3.Connection, name: bytes, digest: bytes) -> str | None:
    query = "SELECT row FROM records WHERE name = ? AND digest = ?"
    found = db.execute(query, (name, digest)).fetchone()
    return found[0] if found else None


def _open(path: Path, identity: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60)
    # Commits survive the death of the process; after a power cut the last may be done again.
    # A write-ahead log is in memory that processes share, which those of other machines cannot.
    alone = os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if alone else 'TRUNCATE'}")
    connection.execute("PRAGMA synchronous = NORMAL")
    with connection:
        connection.executescript(SCHEMA)
        if not connection.execute("SELECT 1 FROM job").fetchone():
            connection.execute("INSERT INTO job VALUES (?)", (identity,))
    return connection


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    # Whatever is wrong with the content of a damaged row.
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be used as this job's journal ({error}); --overwrite starts over"
        ) from error


def _check(path: Path, connection: sqlite3.Connection, identity: Mapping[str, Any]) -> None:
    began = dict(json.loads(connection.execute("SELECT identity FROM job").fetchone()[0]))
    differing = [
        _difference(key, began.get(key), value)
        for key, value in identity.items()
        if began.get(key) != value
    ]
    if differing:
        raise ConfigError(
            f"{path}: this job was begun otherwise ({'; '.join(differing)}); --overwrite starts "
            f"over, --output FILE writes elsewhere"
        )


def _difference(key: str, was: Any, now: Any) -> str:
    if key == "model":
        return "with another model"
    return other_arithmetic(was, now) if key == "arithmetic" else f"{key} was {was!r}, is {now!r}"


def _dump(record: Record) -> str:
    captions = [astuple(caption) for caption in record.captions]
    return json.dumps([captions, record.error, record.kind])


def _load(name: str, row: str) -> Record:
    captions, error, kind = json.loads(row)
    return Record(name, tuple(Caption(*caption) for caption in captions), error, kind)
