"""What a captioning job has done, so that it is done once, whatever happens to the job.

SQLite keeps it: a batch is in it whole or not at all, also after `kill -9`, and looking up one of
a million images takes microseconds and no memory. Each process of a job writes a journal of its
own and reads all of them. SQLite itself does not see a flipped bit, so each row has a checksum.
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
from captioner.system.files import no_stream, room, whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import JOURNAL_ID, JOURNAL_SUFFIX, check, owns

SUFFIX = JOURNAL_SUFFIX
ENDINGS = ("-wal", "-shm", "-journal")  # of what SQLite keeps beside a data base
SCHEMA = """
CREATE TABLE IF NOT EXISTS job (identity TEXT, checksum BLOB);
CREATE TABLE IF NOT EXISTS records (
    name BLOB, digest BLOB, row TEXT, failed INTEGER, checksum BLOB, PRIMARY KEY (name, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listing (
    position INTEGER PRIMARY KEY, name BLOB, digest BLOB, checksum BLOB
);
"""

# What a journal's header may say at a place: first, what a whole one says. SQLite takes some
# flipped bits there for a file that is not its own, or that it may not write.
HEADER = {
    0: (b"SQLite format 3\0",),
    16: (b"\x10\0\x02\x02\0\x40\x20\x20", b"\x10\0\x01\x01\0\x40\x20\x20"),
    44: (b"\0\0\0\x04", bytes(4)),
    56: (b"\0\0\0\x01", bytes(4)),
}

# What was said first stays: an image may be listed again, and drawn captions would be others.
ADD = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, digest)
DO UPDATE SET row = excluded.row, failed = excluded.failed, checksum = excluded.checksum
WHERE failed
"""
# What goes wrong when what SQLite or a row holds is not what was written.
DAMAGE = (sqlite3.Error, OSError, ValueError, TypeError, KeyError)
# What goes wrong though it is.
CIRCUMSTANCES = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
)


@dataclass(frozen=True, slots=True)
class Done:
    """One image of a batch that is done.

    Attributes:
        name: of the item.
        digest: of its content; empty where there was none to read.
        record: what came of it; None where that is known already.
    """

    name: str
    digest: bytes
    record: Record | None


def journals_of(output: Path) -> list[Path]:
    """Return the journals beside an output file, those of all processes."""
    name = re.compile(re.escape(output.name + SUFFIX) + r"(\.[1-9][0-9]*)?")
    beside = output.parent.iterdir() if output.parent.is_dir() else iter(())
    return sorted(path for path in beside if name.fullmatch(path.name))


def check_journals(output: Path) -> None:
    """Refuse to work where something else than journals stands in their places.

    Raises:
        ConfigError: if so.
    """
    for path in {*journals_of(output), output.with_name(output.name + SUFFIX)}:
        check(path, "journal")
        # SQLite would take a stranger's file for what a killed process left behind.
        for ending in ENDINGS:
            beside = Path(f"{path}{ending}")
            if os.path.lexists(beside) and not owns(path, "journal"):
                raise ConfigError(f"{beside}: belongs to no journal; move it away")


def forget(output: Path) -> None:
    """Delete all journals beside an output file."""
    for path in journals_of(output):
        for ending in (*ENDINGS, ""):
            Path(f"{path}{ending}").unlink(missing_ok=True)


class Journal:
    """The records of one process of a job, and those that all its processes had before."""

    def __init__(self, output: Path, rank: int, identity: Mapping[str, Any], sitting: bytes = b""):
        """Open a process's journal, or begin it.

        Args:
            output: the file that the job writes.
            rank: of this process.
            identity: what a record depends on besides the image: the model, the search.
            sitting: random bytes, of all processes the same: what is written is of this sitting.

        Raises:
            ConfigError: if what was done before was done by another model or with other settings.
            DataError: if the journal is damaged or cannot be written.
        """
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.own = output.with_name(f"{output.name}{SUFFIX}{f'.{rank}' if rank else ''}")
        text = json.dumps(identity, sort_keys=True)
        self.key, self.listing_key = _key(text), _key(text, sitting)
        self.journals: dict[Path, sqlite3.Connection] = {}
        for path in [self.own, *(p for p in journals_of(output) if p != self.own)]:
            with _usable(path):
                connection = _open(path, text)
                connection.execute("SELECT count(*) FROM listing").fetchone()
                rows = connection.execute("SELECT count(*) FROM records").fetchone()[0]
                _check(path, _identity(connection), identity, f"the {rows:,} images that are done")
            self.journals[path] = connection
        self.places = {path: _place(path) for path in self.journals}
        self.connection = self.journals[self.own]
        # Where images stand in the listing is found anew each time; an earlier job may have had
        # more processes.
        for path in self.journals if rank == 0 else [self.own]:
            with _usable(path), self.journals[path] as connection:
                connection.execute("DELETE FROM listing")

    def digests(self, name: str, *, failures: bool = True) -> frozenset[bytes]:
        """Tell what an image has held when it was captioned before.

        Args:
            name: of the item.
            failures: also when it failed.

        Raises:
            DataError: if what is noted of it is not what was written.
        """
        query = "SELECT digest, row, failed, checksum FROM records WHERE name = ?"
        key, found = os.fsencode(name), set()
        for path, db in self.journals.items():
            with _usable(path):
                for digest, row, failed, checksum in db.execute(query, (key,)):
                    _same(checksum, self.key, key, digest, row, failed)
                    if failures or not failed:
                        found.add(digest)
        return frozenset(found)

    def add(self, positions: Iterable[int], batch: Sequence[Done]) -> None:
        """Note a batch, whole.

        Args:
            positions: of its images in the listing of the job.
            batch: what came of them.

        Raises:
            DataError: if it cannot be written, or the journal is no longer where it was.
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
                f"{self.own}: cannot be written ({plain(error)}{room(error)}); what was done "
                f"before is kept, and the same command goes on"
            ) from error
        self.check_place()

    def check_place(self) -> None:
        """See to it that the journals are still the files that were opened.

        SQLite writes on into a file that was moved or removed, and nobody finds it there.

        Raises:
            DataError: if one is not; says where it is now, if that can be found.
        """
        for path, place in self.places.items():
            if _place(path) == place:
                continue
            if there := _moved_to(place):
                raise DataError(
                    f"{path}: is now {there}: it was moved while the job ran; move it back, "
                    f"and the same command goes on"
                )
            taken = os.path.lexists(path)
            what = "another file took its place" if taken else "it was removed or moved away"
            raise DataError(
                f"{path}: {what} while the job ran; nothing is written: with the journal back in "
                f"its place the same command goes on, without it it does again what is missing"
            )

    def merged(self, listed: int) -> Iterator[Record]:
        """Yield what is in the journals of the job, in the order of its listing.

        Args:
            listed: images, by all processes.

        Raises:
            DataError: if a place in the listing is empty or taken twice, or a journal is damaged,
                or is not of this job.
        """
        with ExitStack() as stack:
            databases = {}
            for path in journals_of(self.output):
                with _usable(path):
                    databases[path] = stack.enter_context(closing(_connect(path)))
            noted = 0
            for path, db in databases.items():
                with _usable(path):
                    noted += db.execute("SELECT count(*) FROM listing").fetchone()[0]
            if noted != listed:
                names = ", ".join(path.name for path in databases) or "none is there"
                raise DataError(
                    f"{self.output}: not written: {listed:,} images were listed, {noted:,} are in "
                    f"the journals ({names}): one was removed or replaced while the job ran; the "
                    f"same command does what is missing"
                )
            parts = (self._listing(path, db) for path, db in databases.items())
            listing = stack.enter_context(closing(heapq.merge(*parts)))
            merged = 0
            for expected, (position, name, digest) in enumerate(listing):
                # A file that came or went meanwhile lets processes cut batches differently.
                if position != expected:
                    raise DataError(
                        f"{self.output}: not written: the listing of images changed while the "
                        f"job ran ({position} stands in place of {expected}); run the same command "
                        f"again"
                    )
                rows = (self._find(path, db, name, digest) for path, db in databases.items())
                row = next((row for row in rows if row is not None), None)
                if row is None:
                    raise DataError(
                        f"{self.output}: not written: {excerpt(os.fsdecode(name))} was done, and "
                        f"is in no journal: one was removed or damaged; the same command does it "
                        f"again"
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
                _same(checksum, self.listing_key, position, name, digest)
                yield position, name, digest

    def _find(self, path: Path, db: sqlite3.Connection, name: bytes, digest: bytes) -> str | None:
        with _usable(path):
            return _find(db, self.key, name, digest)[0]

    def close(self) -> None:
        """Give the files back."""
        for connection in self.journals.values():
            connection.close()


def salvaged(output: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """Set damaged journals aside, and begin each anew with the rows of it that are sound.

    Args:
        output: the file that the job writes; no process has opened its journals.
        identity: see `Journal`.

    Yields:
        What became of each damaged journal.

    Raises:
        ConfigError: if what was done before was done by another model or with other settings.
        DataError: if a journal cannot be read or written.
    """
    text = json.dumps(identity, sort_keys=True)
    for path in journals_of(output):
        with _usable(path), closing(_connect(path)) as damaged:
            problem = _problem(path, damaged, identity)
            if problem is None:
                continue
            with _mended(path) as copy:
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
            f"{path}: damaged ({problem}): {len(kept):,} sound row(s) kept, {lost}; the damaged "
            f"file is {aside} now"
        )


@contextmanager
def _mended(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a damaged journal, with the header of a sound one."""
    with _usable(path), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for ending in ("", "-wal", "-journal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{ending}", f"{copy}{ending}")
        with copy.open("r+b") as file:
            for place, (content, *_) in HEADER.items():
                file.seek(place)
                file.write(content)
        with closing(_connect(copy)) as db:
            yield db


def _check_header(path: Path) -> None:
    """Look at what SQLite does not tell from a missing permission.

    Raises:
        ValueError: if a header is not what was written.
    """
    with open(path, "rb", opener=no_stream) as file:
        header = file.read(100)
    for place, contents in HEADER.items() if header else ():
        if not header.startswith(contents, place):
            raise ValueError("its header is not what was written")


def _problem(path: Path, db: sqlite3.Connection, identity: Mapping[str, Any]) -> str | None:
    """Say what is damaged in a journal, if anything is."""
    try:
        _check_header(path)
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return None  # killed when it was about to begin
        began = _identity(db)
    except DAMAGE as error:
        _refuse_if_not_damage(error)
        return _one_line(error)
    _check(path, began, identity, "what was done")
    key = _key(json.dumps(began, sort_keys=True))
    try:
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            return _one_line(found)
        for row in db.execute("SELECT name, digest, row, failed, checksum FROM records"):
            _same(row[-1], key, *row[:-1])
    except DAMAGE as error:
        _refuse_if_not_damage(error)
        return _one_line(error)
    return None


def _sound_rows(db: sqlite3.Connection, key: bytes) -> tuple[list[tuple[Any, ...]], str]:
    """Read what can be read around the damage, row by row.

    Returns:
        The rows whose checksums hold, and how many are lost, in words.
    """
    names: dict[tuple[bytes, bytes], None] = {}
    whole = True
    # From both ends, and from what the listing knows: a damaged page stops only who walks over it.
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
    found = db.execute(query, (name, digest)).fetchone()
    if not found:
        return None, 0, b""
    row, failed, checksum = found
    _same(checksum, key, name, digest, row, failed)
    return row, failed, checksum


def _key(identity: str, sitting: bytes = b"") -> bytes:
    """Return what checksums of a job's rows begin with: another job's are others."""
    return hashlib.blake2b(identity.encode(), digest_size=16).digest() + sitting


def _checksum(key: bytes, *values: bytes | str | int) -> bytes:
    return hashlib.blake2b(key + repr(values).encode(), digest_size=16).digest()


def _sealed(key: bytes, *values: bytes | str | int) -> tuple[bytes | str | int, ...]:
    return (*values, _checksum(key, *values))


def _same(checksum: bytes, key: bytes, *values: bytes | str | int) -> None:
    """Hold a row against its checksum.

    Raises:
        ValueError: if it is another.
    """
    if checksum != _checksum(key, *values):
        raise ValueError("a row is not what was written")


def _place(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _moved_to(place: tuple[int, int] | None) -> Path | None:
    """Find where a file that this process has open is now, where the system tells (Linux)."""
    for link in Path("/proc/self/fd").glob("*"):
        if _place(link) == place:
            with suppress(OSError):
                there = link.readlink()
                return there if _place(there) == place else None
    return None


def _free_name(path: Path) -> Path:
    """Return the name that a damaged journal gets; none that is taken."""
    names = (path.with_name(f"{path.name}.damaged{f'.{n}' if n else ''}") for n in count())
    return next(name for name in names if not os.path.lexists(name))


def _connect(path: Path) -> sqlite3.Connection:
    if os.path.lexists(path):  # a pipe in its place would be waited for
        os.close(no_stream(str(path), os.O_RDONLY))
    connection = sqlite3.connect(path, timeout=60)
    # What is no text any more is found by its checksum.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def _open(path: Path, identity: str) -> sqlite3.Connection:
    connection = _connect(path)
    _check_header(path)
    # First of all: whoever finds the file can tell what it is.
    if connection.execute("PRAGMA application_id").fetchone() != (JOURNAL_ID,):
        connection.execute(f"PRAGMA application_id = {JOURNAL_ID}")
    # Commits survive the death of the process; after a power cut the last may be done again.
    # A write-ahead log is in memory that processes share, which those of other machines cannot.
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
    """Read what the job was begun with.

    Raises:
        ValueError: if it is not what was written.
    """
    columns = {row[1] for row in connection.execute("PRAGMA table_info(records)")}
    if columns and "checksum" not in columns:
        raise ValueError("its rows have no checksums: it is of an older captioner")
    text, checksum = connection.execute("SELECT identity, checksum FROM job").fetchone()
    _same(checksum, b"", text)
    return dict(json.loads(text))


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        _refuse_if_not_damage(error, path)
        raise DataError(
            f"{path}: a damaged journal ({_one_line(error)}); --salvage sets it aside, keeps the "
            f"rows that are sound and does the others again"
        ) from error


def _refuse_if_not_damage(error: Exception, path: Path | None = None) -> None:
    """Tell a full disk, a lock or a missing permission from damage.

    Raises:
        DataError: if it is one of them and the journal's path is given; else the error itself.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, OSError) and (code is None or code & 0xFF not in CIRCUMSTANCES):
        return
    if path is None:
        raise error
    raise DataError(
        f"{path}: cannot be used as this job's journal ({_one_line(error)}); what was done is "
        f"kept: mend that, and the same command goes on"
    ) from error


def _one_line(problem: object) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return plain(problem)


def _check(path: Path, began: Mapping[str, Any], identity: Mapping[str, Any], done: str) -> None:
    differing = [
        _difference(key, began.get(key), value)
        for key, value in identity.items()
        if began.get(key) != value
    ]
    if differing:
        raise ConfigError(
            f"{path}: this job was begun otherwise ({'; '.join(differing)}); --output FILE "
            f"writes elsewhere, --overwrite gives up {done}"
        )


def _difference(key: str, was: Any, now: Any) -> str:
    if key == "model":
        return "with another model"
    return (
        other_arithmetic(was, now)
        if key == "arithmetic"
        else f"{key} was {excerpt(was)}, is {excerpt(now)}"
    )
