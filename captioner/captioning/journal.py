"""The journal of a captioning job: an interrupted job resumes without captioning images twice.

A journal is an SQLite database. A batch is stored completely or not at all, even after `kill -9`.
Finding one of a million images takes microseconds and no memory. Each process of a job writes
its own journal and reads all of them. Each row has a checksum, because SQLite does not detect a
flipped bit.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from captioner.captioning.records import Record
from captioner.captioning.run_state import FIRST, UPDATE, Noted, RunState, noted_in
from captioner.captioning.run_state import SCHEMA as RUN
from captioner.errors import ConfigError, DataError, other_arithmetic
from captioner.system.disk import is_full
from captioner.system.files import no_stream, whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import JOURNAL_ID, JOURNAL_SUFFIX, check, owns

ENDINGS = ("-wal", "-shm", "-journal")  # of the files that SQLite keeps next to a database
SCHEMA = """
CREATE TABLE IF NOT EXISTS job (identity TEXT, checksum BLOB);
CREATE TABLE IF NOT EXISTS records (
    name BLOB, digest BLOB, row TEXT, failed INTEGER, checksum BLOB, PRIMARY KEY (name, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listing (
    position INTEGER PRIMARY KEY, name BLOB, digest BLOB, given_id TEXT, checksum BLOB
);
"""

# If an image is listed twice, its first caption is kept: a sampled caption would differ.
ADD = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, digest)
DO UPDATE SET row = excluded.row, failed = excluded.failed, checksum = excluded.checksum
WHERE failed
"""
LOOK_UP = "SELECT name, digest, row, failed, checksum FROM records WHERE name = ?"
NEW = "CREATE TABLE new (name, digest)"
# After the rows, because sorting them once is faster than finding a place for each of millions.
INDEX = "CREATE INDEX names ON new (name); CREATE INDEX same ON new (digest)"
SAME = "SELECT min(name) FROM new WHERE digest = ?"
# Errors of a database; those of an intact one: a lock, a full disk, a missing permission.
ERRORS = (sqlite3.Error, OSError, ValueError)
NOT_DAMAGE = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
)

CACHE_KIB = 2**16  # of pages; names in a random order need more of them than SQLite's 2 MiB
MISMATCH = "the checksum of a row does not match"
Value = bytes | str | int


@dataclass(frozen=True, slots=True)
class Done:
    """One finished image of a batch."""

    name: str
    digest: bytes  # of its content; empty if it could not be read
    record: Record | None  # None: the journal holds it already
    given_id: str = ""  # see `Record`


def journals_of(output: Path) -> list[Path]:
    """Return the journals of all processes next to an output file."""
    name = re.compile(re.escape(output.name + JOURNAL_SUFFIX) + r"(\.[1-9][0-9]*)?")
    paths = output.parent.iterdir() if output.parent.is_dir() else iter(())
    return sorted(path for path in paths if name.fullmatch(path.name))


def lock_of(output: Path) -> Path:
    """Return the lock of the job that writes an output; the job changes its time while it lives."""
    return output.with_name(f".{output.name}.captioner.lock")


def check_journals(output: Path) -> None:
    """Raise `ConfigError` if a file with the name of a journal is not captioner's."""
    for path in {*journals_of(output), output.with_name(output.name + JOURNAL_SUFFIX)}:
        check(path, "journal")
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{path}: a link to nothing; move it away")
        # SQLite would replay a foreign file of this name into the journal.
        for companion in (f"{path}{ending}" for ending in ENDINGS):
            if os.path.lexists(companion) and not owns(path, "journal"):
                raise ConfigError(f"{companion}: belongs to no journal; move it away")


def forget(output: Path) -> None:
    """Delete all journals next to an output file."""
    for path in journals_of(output):
        _delete(path)


def _delete(path: Path) -> None:
    for ending in (*ENDINGS, ""):
        Path(f"{path}{ending}").unlink(missing_ok=True)


class Journal:
    """The journal of one process; also reads those of the other processes."""

    def __init__(self, output: Path, rank: int, identity: Mapping[str, Any], run_id: bytes = b""):
        """Open or create the journal of a process.

        The identity is the model and the settings: all that a record depends on besides the image.
        The random `run_id` marks the rows of this run; all processes share it.

        Raises:
            ConfigError: if the journal was started with another model or other settings.
            DataError: if the journal is damaged or cannot be written.
        """
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.own = output.with_name(f"{output.name}{JOURNAL_SUFFIX}{f'.{rank}' if rank else ''}")
        self.key = _key(identity)
        self.listing_key = self.key + run_id
        self.journals: dict[Path, sqlite3.Connection] = {}
        for path in [self.own, *(p for p in journals_of(output) if p != self.own)]:
            with _usable(path):
                self.journals[path] = db = _open(path, identity)
                _check_identity(path, db, identity)
                # Each run lists the images again; an earlier run may have had more processes.
                if rank == 0 or path == self.own:
                    db.executescript(f"DROP TABLE IF EXISTS listing; {SCHEMA}")
        self.journals[self.own].execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.places = {path: _place(path) for path in self.journals}

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse another model or other settings.

        Raises:
            ConfigError: if the journal was started with others.
        """
        for path, db in self.journals.items():
            _check_identity(path, db, identity)

    def digests(self, name: str, *, failures: bool = True) -> frozenset[bytes]:
        """Return an image's digests in the journals, with or without failures."""
        # Called for each image of a job, so without the generators of `_rows`.
        key, found = os.fsencode(name), []
        for path, db in self.journals.items():
            try:
                rows = db.execute(LOOK_UP, (key,)).fetchall()
            except ERRORS:
                with _usable(path):
                    raise
            for *row, checksum in rows:
                if checksum != _checksum(self.key, *row):
                    with _usable(path):
                        raise ValueError(MISMATCH)
                if failures or not row[3]:
                    found.append(row[1])
        return frozenset(found)

    def add(
        self, positions: Iterable[int], batch: Sequence[Done], state: RunState | None = None
    ) -> None:
        """Store a batch, the positions of its images and the state, completely or not at all."""
        keys = [(os.fsencode(done.name), done.digest) for done in batch]
        rows = [
            _sealed(self.key, *key, done.record.to_json(), int(done.record.error is not None))
            for key, done in zip(keys, batch, strict=True)
            if done.record
        ]
        listing = [
            _sealed(self.listing_key, position, *key, done.given_id)
            for position, key, done in zip(positions, keys, batch, strict=True)
        ]
        with _usable(self.own):
            try:
                with self.journals[self.own] as db:
                    db.executemany(ADD, rows)
                    db.executemany("INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?, ?)", listing)
                    if state:
                        db.execute(UPDATE, (state.to_json(),))
            finally:
                self.check_place()

    def note(self, state: RunState) -> None:
        """Store the state of this process."""
        with _usable(self.own), self.journals[self.own] as db:
            db.execute(UPDATE, (state.to_json(),))

    def finish(self, state: RunState) -> None:
        """Store the last state of the run, when the output is written and the journal closed."""
        with _usable(self.own), closing(_connect(self.own)) as db, db:
            db.execute(UPDATE, (state.to_json(),))

    def notes(self, processes: int) -> list[Noted]:
        """Return what the journals say; `processes` of them are of this run."""
        ranks = (f".{rank}" if rank else "" for rank in range(processes))
        own = [self.output.with_name(f"{self.output.name}{JOURNAL_SUFFIX}{rank}") for rank in ranks]
        paths = dict.fromkeys((*self.journals, *own))
        return [noted_in(path) for path in paths if path.exists()]

    def check_place(self) -> None:
        """Raise `DataError` if a journal was moved or deleted: SQLite would still write into it."""
        for path, place in self.places.items():
            if _place(path) != place:
                raise DataError(
                    f"{path}: was moved, removed or replaced while the job ran; no output was "
                    f"written; put the journal back and run the same command to continue (without "
                    f"it, the job captions its images again)"
                )

    def merged(self, listed: int) -> Iterator[Record]:
        """Yield the records of all journals, in the order of the images that were listed.

        Raises:
            DataError: if a position is missing or occurs twice, or if a journal is damaged or
                belongs to another job.
        """
        with ExitStack() as stack:
            databases = self._all(stack)
            query = "SELECT * FROM listing ORDER BY position"
            listing = heapq.merge(
                *(_rows(path, db, self.listing_key, query) for path, db in databases.items())
            )
            merged = 0
            for position, name, digest, given_id in listing:
                rows = (
                    row
                    for path, db in databases.items()
                    for _, _, row, _ in _rows(
                        path, db, self.key, f"{LOOK_UP} AND digest = ?", name, digest
                    )
                )
                row = next(rows, None)
                # If files appear or disappear meanwhile, processes cut different batches.
                if position != merged or row is None:
                    break
                merged += 1
                yield replace(Record.from_json(os.fsdecode(name), row), given_id=given_id)
            else:
                if merged == listed:
                    return
            for path, db in databases.items():
                _check_order(path, db)
            raise DataError(
                f"{self.output}: not written: {listed:,} images were listed, and the journals hold "
                f"{merged:,} of them in order: a journal was removed or replaced, or the list of "
                f"images changed while the job ran; run the same command again"
            )

    def absent(self, fresh: int) -> Iterator[tuple[str, str | None]]:
        """Yield the images of earlier runs that this run did not list, sorted by name.

        Damaged names are left out.

        Args:
            fresh: number of records of this run; without any others, nothing is looked up.

        Yields:
            The old name, and the name of an image of this run with the same content, or None.
        """
        with ExitStack() as stack:
            new = stack.enter_context(closing(sqlite3.connect("")))  # SQLite's temporary file
            new.execute(NEW)
            databases, records = self._all(stack), 0
            for path, db in databases.items():
                with _usable(path):
                    records += db.execute("SELECT count(*) FROM records").fetchone()[0]
            if records <= fresh:
                return
            old = []
            for path, db in databases.items():
                query = "SELECT * FROM listing"
                listing = _rows(path, db, self.listing_key, query, intact_only=True)
                new.executemany("INSERT INTO new VALUES (?, ?)", (row[1:3] for row in listing))
                query = "SELECT * FROM records ORDER BY name, digest"
                old.append(_rows(path, db, self.key, query, intact_only=True))
            new.executescript(INDEX)
            for was, rows in groupby(heapq.merge(*old), key=itemgetter(0)):
                digests = [digest for _, digest, *_ in rows if digest]
                if not new.execute("SELECT 1 FROM new WHERE name = ?", (was,)).fetchone():
                    names = [new.execute(SAME, (digest,)).fetchone()[0] for digest in digests]
                    now = min(filter(None, names), default=None)
                    yield os.fsdecode(was), now and os.fsdecode(now)

    def _all(self, stack: ExitStack) -> dict[Path, sqlite3.Connection]:
        """Open the journals of all processes, until the stack closes."""
        databases = {}
        for path in journals_of(self.output):
            with _usable(path):
                databases[path] = stack.enter_context(closing(_connect(path)))
        return databases

    def close(self) -> None:
        """Close the databases."""
        for connection in self.journals.values():
            connection.close()


def known_arithmetic(output: Path, identity: Mapping[str, Any]) -> str | None:
    """Return the arithmetic of a job that was started before; None if it is not the same job.

    Args:
        output: of the job.
        identity: see `Journal`, without the arithmetic.

    Raises:
        ConfigError: if a file with the name of a journal is not captioner's.
    """
    check_journals(output)
    path = output.with_name(output.name + JOURNAL_SUFFIX)
    with suppress(*ERRORS):  # opening the journal reports them
        if path.is_file():
            with closing(_connect(path)) as db:
                [(text, checksum)] = db.execute("SELECT identity, checksum FROM job")
            started = json.loads(text)
            if checksum != _checksum(b"", text):
                return None
            if all(started.get(key) == value for key, value in identity.items()):
                arithmetic: str | None = started.get("arithmetic")
                return arithmetic
    return None


def salvaged(output: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """Replace each damaged journal by its intact rows and keep it renamed; yield a message."""
    for path in journals_of(output):
        with _usable(path), closing(_connect(path)) as damaged:
            rows, problem = _intact_rows(path, damaged, identity)
        if problem is None:
            continue
        with whole_file(path, "journal") as fresh:
            with _usable(path), closing(_open(fresh, identity)) as db, db:
                db.executemany(ADD, rows)
            aside = _free_name(path)
            for ending in (*ENDINGS, ""):
                with suppress(FileNotFoundError):
                    Path(f"{path}{ending}").rename(f"{aside}{ending}")
        yield (
            f"{path}: damaged ({problem}): {len(rows):,} intact row(s) kept; the damaged file is "
            f"now {aside}"
        )


def _intact_rows(
    path: Path, db: sqlite3.Connection, identity: Mapping[str, Any]
) -> tuple[list[tuple[Value, ...]], str | None]:
    """Return the rows with correct checksums, and the first damage or None."""
    problems: list[str] = []

    @contextmanager
    def continued() -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            if not _is_damage(error):
                raise
            problems.append(plain(error))

    with continued():
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            return [], None  # its process was killed before it created the tables
        _check_identity(path, db, identity)
    with continued():
        if (result := _integrity(db)) != "ok":
            problems.append(plain(result))
    rows: dict[tuple[Value, ...], None] = {}
    # A scan stops at the first damaged page, so scan from both ends.
    for order in ("", " DESC"):
        with continued():
            for row in db.execute(f"SELECT * FROM records ORDER BY name{order}, digest{order}"):
                if row == _sealed(_key(identity), *row[:-1]):
                    rows[row] = None
                else:
                    problems.append(MISMATCH)
    return list(rows), problems[0] if problems else None


def _integrity(db: sqlite3.Connection) -> str:
    """Return the first damage that SQLite finds in the order of rows, or ok."""
    return str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])


def _check_order(path: Path, db: sqlite3.Connection) -> None:
    """Raise `DataError` if rows lie where SQLite does not find them."""
    with _usable(path):
        if (result := _integrity(db)) != "ok":
            raise ValueError(result)


def _rows(
    path: Path,
    db: sqlite3.Connection,
    key: bytes,
    query: str,
    *values: Value,
    intact_only: bool = False,
) -> Iterator[list[Any]]:
    """Check the checksum, the last column of a query, and yield the rows without it."""
    with _usable(path):
        for *row, checksum in db.execute(query, values):
            if checksum == _checksum(key, *row):
                yield row
            elif not intact_only:
                raise ValueError(MISMATCH)


def _text(identity: Mapping[str, Any]) -> str:
    """Return a job's identity as JSON; a setting that is None leaves the text as it was before."""
    given = {key: value for key, value in identity.items() if value is not None}
    return json.dumps(given, sort_keys=True)


def _key(identity: Mapping[str, Any]) -> bytes:
    """Return the prefix of hashed rows, so that checksums of different jobs differ."""
    return hashlib.blake2b(_text(identity).encode(), digest_size=16).digest()


def _checksum(key: bytes, *values: Value) -> bytes:
    return hashlib.blake2b(key + repr(values).encode(), digest_size=16).digest()


def _sealed(key: bytes, *values: Value) -> tuple[Value, ...]:
    return (*values, _checksum(key, *values))


def _place(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if it does not exist."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _free_name(path: Path) -> Path:
    """Return an unused name for a damaged journal."""
    names = (path.with_name(f"{path.name}.damaged{f'.{n}' if n else ''}") for n in count())
    return next(name for name in names if not os.path.lexists(name))


def _connect(path: Path) -> sqlite3.Connection:
    if os.path.lexists(path):  # SQLite would wait for ever on a pipe
        os.close(no_stream(str(path), os.O_RDONLY))
    connection = sqlite3.connect(path, timeout=60)
    # Text that is not UTF-8 any more fails its checksum.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def _open(path: Path, identity: Mapping[str, Any]) -> sqlite3.Connection:
    """Open a journal; create what it lacks. A new one that cannot be filled is deleted again."""
    is_new = not os.path.lexists(path)
    try:
        return _filled(path, identity)
    except ERRORS:
        if is_new:
            with suppress(OSError):
                _delete(path)
        raise


def _filled(path: Path, identity: Mapping[str, Any]) -> sqlite3.Connection:
    connection = _connect(path)
    # Set first, so that `owns` recognises a journal whose process was killed early.
    if connection.execute("PRAGMA application_id").fetchone() != (JOURNAL_ID,):
        connection.execute(f"PRAGMA application_id = {JOURNAL_ID}")
    # Commits survive a killed process; a power failure may lose the last ones. A write-ahead log
    # needs shared memory, so processes on several machines cannot use it.
    alone = os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if alone else 'TRUNCATE'}")
    connection.execute("PRAGMA synchronous = NORMAL")
    with connection:
        connection.executescript(SCHEMA + RUN)
        if not connection.execute("SELECT 1 FROM job").fetchone():
            connection.execute("INSERT INTO job VALUES (?, ?)", _sealed(b"", _text(identity)))
        if not connection.execute("SELECT 1 FROM run").fetchone():
            connection.execute(FIRST)
    return connection


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn an error of a journal into one that says what to do."""
    try:
        yield
    except ERRORS as error:
        if _is_damage(error):
            raise DataError(
                f"{path}: damaged journal ({plain(error)}); --salvage keeps its intact rows, "
                f"captions the other images again, and renames the damaged file"
            ) from error
        reason, remedy = getattr(error, "strerror", None) or plain(error), "fix the cause"
        if is_full(error, path.parent):
            reason, remedy = "the disk is full", "free some space"
        raise DataError(
            f"{path}: cannot be used as this job's journal ({reason}); results so far are kept; "
            f"{remedy} and run the same command to continue"
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether an error means damage, rather than a full disk, a lock or a missing permission."""
    code = getattr(error, "sqlite_errorcode", 0)
    return not isinstance(error, OSError) and code & 0xFF not in NOT_DAMAGE


def _check_identity(path: Path, db: sqlite3.Connection, identity: Mapping[str, Any]) -> None:
    """Refuse a journal of another job."""
    [(text, checksum)] = db.execute("SELECT identity, checksum FROM job")
    if checksum != _checksum(b"", text):
        raise ValueError(MISMATCH)
    started = json.loads(text)
    differences = [
        difference(key, started.get(key), value)
        for key, value in identity.items()
        if started.get(key) != value
    ]
    if differences:
        (rows,) = db.execute("SELECT count(*) FROM records").fetchone()
        raise ConfigError(
            f"{path}: this job was started with different settings ({'; '.join(differences)}); "
            f"choose another --output, or --overwrite to discard {rows:,} finished images"
        )


def difference(key: str, was: Any, now: Any) -> str:
    """Say how a setting of a job differs."""
    if key == "model":
        return "another model"
    if key == "arithmetic":
        return other_arithmetic(was, now)
    if key == "words":
        return "with --words or --min-confidence" if was else "without --words, --min-confidence"
    return f"{key} was {excerpt(was)}, is {excerpt(now)}"
