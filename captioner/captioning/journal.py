"""The journal of a captioning job: an interrupted job resumes without captioning images twice.

A journal is an SQLite database. A batch is stored completely or not at all, even after `kill -9`,
and finding one of a million images takes microseconds and no memory. Each process of a job writes
its own journal and reads all of them. Each row has a checksum, because SQLite does not detect a
flipped bit.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from captioner.captioning.records import Record
from captioner.encoder.encoder import other_arithmetic
from captioner.errors import ConfigError, DataError
from captioner.system.files import advice, no_stream, whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import JOURNAL_ID, JOURNAL_SUFFIX, check, owns

SUFFIX = JOURNAL_SUFFIX
ENDINGS = ("-wal", "-shm", "-journal")  # of the files that SQLite keeps next to a database
SCHEMA = """
CREATE TABLE IF NOT EXISTS job (identity TEXT, checksum BLOB);
CREATE TABLE IF NOT EXISTS records (
    name BLOB, digest BLOB, row TEXT, failed INTEGER, checksum BLOB, PRIMARY KEY (name, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listing (
    position INTEGER PRIMARY KEY, name BLOB, digest BLOB, checksum BLOB
);
"""

# Valid bytes at offsets of a journal's header; the first value is that of an intact journal. For
# flipped bits there, SQLite may report a foreign file or a missing permission instead of damage.
HEADER = {
    0: (b"SQLite format 3\0",),
    16: (b"\x10\0\x02\x02\0\x40\x20\x20", b"\x10\0\x01\x01\0\x40\x20\x20"),
    44: (b"\0\0\0\x04", bytes(4)),
    56: (b"\0\0\0\x01", bytes(4)),
}

# If an image is listed twice, its first caption is kept: a sampled caption would differ.
ADD = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, digest)
DO UPDATE SET row = excluded.row, failed = excluded.failed, checksum = excluded.checksum
WHERE failed
"""
# Errors that a damaged database or row can raise.
DAMAGE = (sqlite3.Error, OSError, ValueError, TypeError, KeyError)
# Errors of an intact database: a lock, a full disk, a missing permission.
NOT_DAMAGE = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
)


@dataclass(frozen=True, slots=True)
class Done:
    """One finished image of a batch.

    Attributes:
        name: name of the item.
        digest: hash of its content; empty if it could not be read.
        record: its record; None if the journal holds it already.
    """

    name: str
    digest: bytes
    record: Record | None


def journals_of(output: Path) -> list[Path]:
    """Return the journals of all processes next to an output file."""
    name = re.compile(re.escape(output.name + SUFFIX) + r"(\.[1-9][0-9]*)?")
    paths = output.parent.iterdir() if output.parent.is_dir() else iter(())
    return sorted(path for path in paths if name.fullmatch(path.name))


def check_journals(output: Path) -> None:
    """Refuse an output whose journal files are not captioner's.

    Raises:
        ConfigError: if a file with a journal's name is not a journal.
    """
    for path in {*journals_of(output), output.with_name(output.name + SUFFIX)}:
        check(path, "journal")
        # SQLite would replay a foreign file of this name into the journal.
        for ending in ENDINGS:
            companion = Path(f"{path}{ending}")
            if os.path.lexists(companion) and not owns(path, "journal"):
                raise ConfigError(f"{companion}: belongs to no journal; move it away")


def forget(output: Path) -> None:
    """Delete all journals next to an output file."""
    for path in journals_of(output):
        for ending in (*ENDINGS, ""):
            Path(f"{path}{ending}").unlink(missing_ok=True)


class Journal:
    """The journal of one process; also reads those of the other processes."""

    def __init__(self, output: Path, rank: int, identity: Mapping[str, Any], run_id: bytes = b""):
        """Open or create the journal of a process.

        Args:
            output: the file that the job writes.
            rank: rank of this process.
            identity: everything that a record depends on, except the image: model, settings.
            run_id: random bytes that mark the rows of this run; equal in all processes.

        Raises:
            ConfigError: if the journal was started with another model or other settings.
            DataError: if the journal is damaged or cannot be written.
        """
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.own = output.with_name(f"{output.name}{SUFFIX}{f'.{rank}' if rank else ''}")
        text = json.dumps(identity, sort_keys=True)
        self.key, self.listing_key = _key(text), _key(text, run_id)
        self.journals: dict[Path, sqlite3.Connection] = {}
        for path in [self.own, *(p for p in journals_of(output) if p != self.own)]:
            with _usable(path):
                connection = _open(path, text)
                connection.execute("SELECT count(*) FROM listing").fetchone()
                rows = connection.execute("SELECT count(*) FROM records").fetchone()[0]
                _check(path, _identity(connection), identity, f"{rows:,} finished images")
            self.journals[path] = connection
        self.places = {path: _place(path) for path in self.journals}
        self.connection = self.journals[self.own]
        # Each run lists the images again; an earlier run may have had more processes.
        for path in self.journals if rank == 0 else [self.own]:
            with _usable(path), self.journals[path] as connection:
                connection.execute("DELETE FROM listing")

    def digests(self, name: str, *, failures: bool = True) -> frozenset[bytes]:
        """Return the digests with which an image is in the journals.

        Args:
            name: name of the item.
            failures: also return the digests of failures.

        Raises:
            DataError: if a row does not match its checksum.
        """
        query = "SELECT digest, row, failed, checksum FROM records WHERE name = ?"
        key, digests = os.fsencode(name), set()
        for path, db in self.journals.items():
            with _usable(path):
                for digest, row, failed, checksum in db.execute(query, (key,)):
                    _verify(checksum, self.key, key, digest, row, failed)
                    if failures or not failed:
                        digests.add(digest)
        return frozenset(digests)

    def add(self, positions: Iterable[int], batch: Sequence[Done]) -> None:
        """Store a batch, completely or not at all.

        Args:
            positions: of its images in the job's list of images.
            batch: its finished images.

        Raises:
            DataError: if the batch cannot be written, or the journal was moved or removed.
        """
        keys = [(os.fsencode(done.name), done.digest) for done in batch]
        rows = [
            _sealed(self.key, *key, done.record.to_json(), int(done.record.error is not None))
            for key, done in zip(keys, batch, strict=True)
            if done.record
        ]
        places = [
            _sealed(self.listing_key, position, *key)
            for position, key in zip(positions, keys, strict=True)
        ]
        try:
            with self.connection as db:
                db.executemany(ADD, rows)
                db.executemany("INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?)", places)
        except sqlite3.Error as error:
            self.check_place()
            raise DataError(
                f"{self.own}: cannot be written ({plain(error)}{advice(error)}); results so far "
                f"are kept; run the same command to continue"
            ) from error
        self.check_place()

    def check_place(self) -> None:
        """Check that the journals are still the files that were opened.

        SQLite would continue to write into a file that was moved or removed.

        Raises:
            DataError: if a journal was moved or removed; names its new place if that is known.
        """
        for path, place in self.places.items():
            if _place(path) == place:
                continue
            if there := _moved_to(place):
                raise DataError(
                    f"{path}: was moved to {there} while the job ran; move it back and run the "
                    f"same command to continue"
                )
            event = "replaced" if os.path.lexists(path) else "removed or moved away"
            raise DataError(
                f"{path}: was {event} while the job ran; no output was written; put the journal "
                f"back and run the same command to continue (without it, the job captions its "
                f"images again)"
            )

    def merged(self, listed: int) -> Iterator[Record]:
        """Yield the records of all journals, in the order of the images.

        Args:
            listed: number of images that all processes listed.

        Raises:
            DataError: if a position is missing or occurs twice, or if a journal is damaged or
                belongs to another job.
        """
        with ExitStack() as stack:
            databases = {}
            for path in journals_of(self.output):
                with _usable(path):
                    databases[path] = stack.enter_context(closing(_connect(path)))
            journaled = 0
            for path, db in databases.items():
                with _usable(path):
                    journaled += db.execute("SELECT count(*) FROM listing").fetchone()[0]
            if journaled != listed:
                names = ", ".join(path.name for path in databases) or "no journal exists"
                raise DataError(
                    f"{self.output}: not written: {listed:,} images were listed, {journaled:,} are "
                    f"in the journals ({names}): a journal was removed or replaced while the job "
                    f"ran; run the same command to caption the missing images"
                )
            listings = (self._listing(path, db) for path, db in databases.items())
            listing = stack.enter_context(closing(heapq.merge(*listings)))
            merged = 0
            for expected, (position, name, digest) in enumerate(listing):
                # If files appear or disappear meanwhile, processes cut different batches.
                if position != expected:
                    raise DataError(
                        f"{self.output}: not written: the list of images changed while the job ran "
                        f"(found position {position}, expected {expected}); run the same command "
                        f"again"
                    )
                rows = (self._find(path, db, name, digest) for path, db in databases.items())
                row = next((row for row in rows if row is not None), None)
                if row is None:
                    raise DataError(
                        f"{self.output}: not written: {excerpt(os.fsdecode(name))} was captioned "
                        f"but is in no journal: a journal was removed or damaged; run the same "
                        f"command to caption the image again"
                    )
                merged += 1
                yield Record.from_json(os.fsdecode(name), row)
            if merged != listed:
                raise DataError(
                    f"{self.output}: not written: {merged:,} rows for {listed:,} images"
                )

    def _listing(self, path: Path, db: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes]]:
        query = "SELECT position, name, digest, checksum FROM listing ORDER BY position"
        with _usable(path):
            for position, name, digest, checksum in db.execute(query):
                _verify(checksum, self.listing_key, position, name, digest)
                yield position, name, digest

    def _find(self, path: Path, db: sqlite3.Connection, name: bytes, digest: bytes) -> str | None:
        with _usable(path):
            return _find(db, self.key, name, digest)[0]

    def close(self) -> None:
        """Close the databases."""
        for connection in self.journals.values():
            connection.close()


def salvaged(output: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """Replace each damaged journal by one with its intact rows, and rename the damaged file.

    Args:
        output: the file that the job writes; no process has opened its journals.
        identity: see `Journal`.

    Yields:
        A message for each damaged journal.

    Raises:
        ConfigError: if a journal was started with another model or other settings.
        DataError: if a journal cannot be read or written.
    """
    text = json.dumps(identity, sort_keys=True)
    for path in journals_of(output):
        with _usable(path), closing(_connect(path)) as damaged:
            problem = _problem(path, damaged, identity)
            if problem is None:
                continue
            with _repaired(path) as copy:
                kept, lost = _sound_rows(copy, _key(text))
        with whole_file(path, "journal") as fresh:
            with _usable(path), closing(sqlite3.connect(fresh)) as db:
                _begin(db, text)
                with db:
                    db.executemany(ADD, kept)
            aside = _free_name(path)
            for ending in (*ENDINGS, ""):
                with suppress(FileNotFoundError):
                    Path(f"{path}{ending}").rename(f"{aside}{ending}")
        yield (
            f"{path}: damaged ({problem}): {len(kept):,} intact row(s) kept, {lost}; the damaged "
            f"file is now {aside}"
        )


@contextmanager
def _repaired(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a damaged journal with an intact header."""
    with _usable(path), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for ending in ("", "-wal", "-journal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{ending}", f"{copy}{ending}")
        with copy.open("r+b") as file:
            for offset, (content, *_) in HEADER.items():
                file.seek(offset)
                file.write(content)
        with closing(_connect(copy)) as db:
            yield db


def _check_header(path: Path) -> None:
    """Check the header bytes that SQLite would report as a missing permission.

    Raises:
        ValueError: if the header is damaged.
    """
    with open(path, "rb", opener=no_stream) as file:
        header = file.read(100)
    for offset, contents in HEADER.items() if header else ():
        if not header.startswith(contents, offset):
            raise ValueError("its header is damaged")


def _problem(path: Path, db: sqlite3.Connection, identity: Mapping[str, Any]) -> str | None:
    """Return what is damaged in a journal; None if it is intact."""
    try:
        _check_header(path)
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return None  # its process was killed before it created the tables
        started = _identity(db)
    except DAMAGE as error:
        _refuse_if_not_damage(error)
        return _one_line(error)
    _check(path, started, identity, "earlier results")
    key = _key(json.dumps(started, sort_keys=True))
    try:
        result = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if result != "ok":
            return _one_line(result)
        for row in db.execute("SELECT name, digest, row, failed, checksum FROM records"):
            _verify(row[-1], key, *row[:-1])
    except DAMAGE as error:
        _refuse_if_not_damage(error)
        return _one_line(error)
    return None


def _sound_rows(db: sqlite3.Connection, key: bytes) -> tuple[list[tuple[Any, ...]], str]:
    """Read the rows around the damage, one by one.

    Returns:
        The rows whose checksums match, and how many rows are lost, as text.
    """
    names: dict[tuple[bytes, bytes], None] = {}
    whole = True
    # Scan both tables from both ends: a scan stops at the first damaged page.
    for table in ("records", "listing"):
        for order in ("", " DESC"):
            by = "name {0}, digest {0}" if table == "records" else "position {0}"
            query = f"SELECT name, digest FROM {table} ORDER BY {by.format(order)}"
            try:
                for name in db.execute(query):
                    names[name] = None
            except DAMAGE as error:
                _refuse_if_not_damage(error)
                whole = False
    kept, lost = [], 0
    for name, digest in names:
        try:
            row, failed, checksum = _find(db, key, name, digest)
        except DAMAGE as error:
            _refuse_if_not_damage(error)
            row = None
        if row is None:
            lost += 1
        else:
            kept.append((name, digest, row, failed, checksum))
    return kept, f"{lost:,} lost" if whole else f"{lost:,} or more lost"


def _find(
    db: sqlite3.Connection, key: bytes, name: bytes, digest: bytes
) -> tuple[str | None, int, bytes]:
    query = "SELECT row, failed, checksum FROM records WHERE name = ? AND digest = ?"
    result = db.execute(query, (name, digest)).fetchone()
    if not result:
        return None, 0, b""
    row, failed, checksum = result
    _verify(checksum, key, name, digest, row, failed)
    return row, failed, checksum


def _key(identity: str, run_id: bytes = b"") -> bytes:
    """Return the prefix of hashed rows, so that checksums of different jobs differ."""
    return hashlib.blake2b(identity.encode(), digest_size=16).digest() + run_id


def _checksum(key: bytes, *values: bytes | str | int) -> bytes:
    return hashlib.blake2b(key + repr(values).encode(), digest_size=16).digest()


def _sealed(key: bytes, *values: bytes | str | int) -> tuple[bytes | str | int, ...]:
    return (*values, _checksum(key, *values))


def _verify(checksum: bytes, key: bytes, *values: bytes | str | int) -> None:
    """Check a row against its checksum.

    Raises:
        ValueError: if the checksum does not match.
    """
    if checksum != _checksum(key, *values):
        raise ValueError("the checksum of a row does not match")


def _place(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _moved_to(place: tuple[int, int] | None) -> Path | None:
    """Return the current path of a file that this process has open; Linux only."""
    for link in Path("/proc/self/fd").glob("*"):
        if _place(link) == place:
            with suppress(OSError):
                there = link.readlink()
                return there if _place(there) == place else None
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


def _open(path: Path, identity: str) -> sqlite3.Connection:
    connection = _connect(path)
    _check_header(path)
    # Set first, so that `owns` recognises a journal whose process was killed early.
    if connection.execute("PRAGMA application_id").fetchone() != (JOURNAL_ID,):
        connection.execute(f"PRAGMA application_id = {JOURNAL_ID}")
    # Commits survive a killed process; a power failure may lose the last ones. A write-ahead log
    # needs shared memory, so processes on several machines cannot use it.
    alone = os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if alone else 'TRUNCATE'}")
    connection.execute("PRAGMA synchronous = NORMAL")
    _begin(connection, identity)
    return connection


def _begin(connection: sqlite3.Connection, identity: str) -> None:
    with connection:
        connection.executescript(SCHEMA)
        if not connection.execute("SELECT 1 FROM job").fetchone():
            connection.execute("INSERT INTO job VALUES (?, ?)", _sealed(b"", identity))


def _identity(connection: sqlite3.Connection) -> dict[str, Any]:
    """Read the settings that the job was started with.

    Raises:
        ValueError: if they are damaged.
    """
    columns = {row[1] for row in connection.execute("PRAGMA table_info(records)")}
    if columns and "checksum" not in columns:
        raise ValueError("its rows have no checksums: an older captioner wrote it")
    text, checksum = connection.execute("SELECT identity, checksum FROM job").fetchone()
    _verify(checksum, b"", text)
    return dict(json.loads(text))


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        _refuse_if_not_damage(error, path)
        raise DataError(
            f"{path}: damaged journal ({_one_line(error)}); --salvage keeps its intact rows, "
            f"captions the other images again, and renames the damaged file"
        ) from error


def _refuse_if_not_damage(error: Exception, path: Path | None = None) -> None:
    """Raise an error that is not damage: a full disk, a lock or a missing permission.

    Raises:
        DataError: for such an error, if the journal's path is given; else the error itself.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, OSError) and (code is None or code & 0xFF not in NOT_DAMAGE):
        return
    if path is None:
        raise error
    raise DataError(
        f"{path}: cannot be used as this job's journal ({_one_line(error)}); results so far are "
        f"kept; fix the cause and run the same command to continue"
    ) from error


def _one_line(problem: object) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return plain(problem)


def _check(
    path: Path, started: Mapping[str, Any], identity: Mapping[str, Any], discarded: str
) -> None:
    differences = [
        _difference(key, started.get(key), value)
        for key, value in identity.items()
        if started.get(key) != value
    ]
    if differences:
        raise ConfigError(
            f"{path}: this job was started with different settings ({'; '.join(differences)}); "
            f"choose another --output, or --overwrite to discard {discarded}"
        )


def _difference(key: str, was: Any, now: Any) -> str:
    if key == "model":
        return "another model"
    return (
        other_arithmetic(was, now)
        if key == "arithmetic"
        else f"{key} was {excerpt(was)}, is {excerpt(now)}"
    )
