"""A job's output at an address: made in a folder of this machine, put when it is done.

The output, its list of failures and each journal are one object each, and a store shows an object
only when it was put completely. Copies of the journals are put while the job runs, so the job goes
on on another machine.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

from captioner.captioning.failures import ERRORS
from captioner.captioning.journal import journals_of
from captioner.errors import ConfigError, DataError
from captioner.system.addresses import ATOMIC, scheme_of, shown
from captioner.system.files import cache_folder
from captioner.system.foreign import plain
from captioner.system.object_store import (
    UnreachableError,
    check_installed,
    fetch,
    listing,
    look,
    put,
)
from captioner.system.ownership import JOURNAL_SUFFIX, check

EVERY = 300.0  # seconds between copies of the journals
SHARE = 20  # a copy takes at most this part of the time


def local_output(address: str) -> Path:
    """Return the file on this machine that becomes the object; the same for the same address.

    Raises:
        ConfigError: if the store cannot put an object in one step, or its package is missing.
    """
    check_address(address)
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        raise ConfigError(
            "--output: an address needs the processes of one machine; use --engine ray, or a file "
            "on a common disk"
        )
    return place_on_disk(address) / address.rpartition("/")[2]


def check_address(address: str, *, is_folder: bool = False) -> None:
    """Refuse an address at which nothing can be put.

    Raises:
        ConfigError: if the store cannot put an object in one step, its package is missing, or no
            file, or no folder in a bucket, is named.
    """
    scheme = scheme_of(address)
    if scheme not in ATOMIC:
        raise ConfigError(
            f"--output: {scheme} cannot put a whole object in one step; name a file, or an address "
            f"of {', '.join(ATOMIC)}"
        )
    path = address.partition("://")[2].partition("/")[2]
    name = path.rstrip("/") if is_folder else path.rpartition("/")[2]
    if not name or "?" in address:
        what = "folder in a bucket" if is_folder else "file"
        raise ConfigError(f"--output: {plain(shown(address))} names no {what}")
    check_installed(address)


def place_on_disk(address: str) -> Path:
    """Return the folder on this machine for the job of an address, in the cache."""
    digest = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    return cache_folder() / "outputs" / digest


@contextmanager
def made(output: Path | str) -> Iterator[Path]:
    """Give the file to write; if the output is an address, put it after the block.

    Raises:
        ConfigError: if something else is at the address.
        DataError: if the store does not answer.
    """
    if isinstance(output, Path):
        yield output
        return
    local = local_output(output)
    with kept(output, overwrite=True):
        yield local
    local.unlink(missing_ok=True)


@contextmanager
def kept(
    address: str,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Iterator[None]:
    """Fetch the journals of a job, put copies of them while the block runs, and its output after.

    The job in the block writes to `local_output`.

    Raises:
        ConfigError: if something else is at the address.
        DataError: if the store does not answer.
    """
    local = local_output(address)
    before = _version(local)  # the clock of a common disk may differ from this machine's
    local.parent.mkdir(parents=True, exist_ok=True)
    with named(address):
        _check_place(address, local, overwrite)
        known = overwrite or journals_of(local)
        if not known and (count := _fetch_journals(address, local)):
            say(f"{count:,} journal(s) fetched from {shown(address)}{JOURNAL_SUFFIX}")
    stop = Event()
    copying = Thread(target=_copy_journals, args=(address, local, stop), daemon=True)
    copying.start()
    try:
        yield
    except BaseException:
        _stop(stop, copying)
        with suppress(UnreachableError, sqlite3.Error, OSError):
            _put_journals(address, local)
        raise
    _stop(stop, copying)
    if _version(local) in (None, before):
        return  # it was not written
    try:
        _put_all(address, local)
    except UnreachableError as error:
        raise DataError(
            f"{plain(shown(address))}: not put: {error}; the output is in {local}; run the same "
            f"command again"
        ) from error
    say(f"{local} put at {shown(address)}")


def _put_all(address: str, local: Path) -> None:
    """Put the journals and the failures, and last the output: where it is, all is."""
    _put_journals(address, local)
    errors = local.with_name(ERRORS)
    if errors.is_file():
        put(errors, f"{address}.{ERRORS}")
    elif _is_there(f"{address}.{ERRORS}"):
        with TemporaryDirectory() as top:
            empty = Path(top, ERRORS)
            empty.touch()
            put(empty, f"{address}.{ERRORS}")
    put(local, address)


def _check_place(address: str, local: Path, overwrite: bool) -> None:
    """Refuse to replace an object that no job of this machine or of captioner wrote."""
    if journals_of(local) or not _is_there(address) or _is_there(address + JOURNAL_SUFFIX):
        return
    if not overwrite:
        raise ConfigError(
            f"{plain(shown(address))}: already exists; choose another --output, or --overwrite to "
            f"replace it"
        )
    with TemporaryDirectory(dir=local.parent) as top:
        there = Path(top, local.name)
        fetch(address, there)
        try:
            check(there, "captions")
        except ConfigError as error:
            text = str(error).replace(str(there), plain(shown(address)))
            raise ConfigError(text) from error


def _is_there(address: str) -> bool:
    try:
        return not look(address).is_folder
    except UnreachableError as error:
        if error.is_missing:
            return False
        raise


def _fetch_journals(address: str, local: Path) -> int:
    """Fetch the journals that another machine put; return their number."""
    if not _is_there(address + JOURNAL_SUFFIX):
        return 0
    start, name = f"{address}{JOURNAL_SUFFIX}", local.name + JOURNAL_SUFFIX
    count = 0
    for entry in listing(address.rpartition("/")[0]):
        rank = entry.address.removeprefix(start)
        if entry.address.startswith(start) and (not rank or rank.removeprefix(".").isdecimal()):
            aside = local.with_name(f".{name}{rank}.fetched")
            fetch(entry.address, aside)
            aside.replace(local.with_name(name + rank))
            count += 1
    return count


def _copy_journals(address: str, local: Path, stop: Event) -> None:
    """Put copies of the journals from time to time; a trouble waits for the next time."""
    pause = EVERY
    while not stop.wait(pause):
        started = time.monotonic()
        with suppress(UnreachableError, sqlite3.Error, OSError):
            _put_journals(address, local)
        pause = max(EVERY, SHARE * (time.monotonic() - started))


def _put_journals(address: str, local: Path) -> None:
    """Put a copy of each journal, as it is between two batches."""
    with TemporaryDirectory(dir=local.parent) as top:
        for journal in journals_of(local):
            copy = Path(top, journal.name)
            source = f"{journal.absolute().as_uri()}?mode=ro"
            with (
                closing(sqlite3.connect(source, uri=True, timeout=60)) as db,
                closing(sqlite3.connect(copy)) as target,
            ):
                db.backup(target)
            put(copy, address + journal.name.removeprefix(local.name))


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None if there is no file."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _stop(stop: Event, copying: Thread) -> None:
    stop.set()
    copying.join()


@contextmanager
def named(address: str) -> Iterator[None]:
    """Name the address in the error of a store."""
    try:
        yield
    except UnreachableError as error:
        raise DataError(f"{plain(shown(address))}: {error}") from error
