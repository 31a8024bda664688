"""The folder of a job in parts: on this machine, or at an address in object storage.

Each file in it is whole or absent: it is written aside and moved, or put as one object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from captioner.captioning.failures import ERRORS
from captioner.captioning.journal import lock_of
from captioner.captioning.remote_output import check_address, named, place_on_disk
from captioner.errors import ConfigError, DataError
from captioner.system.addresses import is_address, shown
from captioner.system.files import sweep_marked, whole_file
from captioner.system.foreign import plain
from captioner.system.object_store import UnreachableError, delete, listing, put, read
from captioner.system.ownership import MARKER, begin, mark, owns, remove, writes

KIND = "parts"  # of the marker
END = "parts.json"  # what `captioner status` and `merge` read first
TOGETHER = 8  # requests at once
EVERY = 10.0  # seconds between two notes of how far a job is


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine; as a text, how messages name it."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def given(self) -> Path:
        """The path."""
        return self.path

    @property
    def lock(self) -> Path:
        """The path on this machine whose lock a job holds."""
        return self.path / KIND

    def at(self, name: str) -> str:
        """Return how messages name a file."""
        return str(self.path / name)

    def beside(self, ending: str) -> Path:
        """Return the file next to the folder with its name and an ending."""
        named = self.path.resolve() if self.path.name in ("", "..") else self.path
        return named.with_name(f"{named.name}.{ending}")

    def owned(self) -> bool:
        """Whether captioner marked the folder."""
        return owns(self.path, KIND)

    def begin(self) -> None:
        """Mark a missing or empty folder; refuse a foreign one."""
        begin(self.path, KIND)

    def clear(self) -> None:
        """Delete the files of a job."""
        remove(self.path, KIND, keep_marked=True)

    def sweep(self) -> None:
        """Delete what killed processes left half written."""
        sweep_marked(self.path, KIND)

    def names(self) -> set[str]:
        """Return the names in the folder."""
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def read(self, name: str) -> bytes:
        """Read a file; `FileNotFoundError` if there is none."""
        return (self.path / name).read_bytes()

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Give a path on this machine; what is written there becomes the file."""
        return whole_file(self.path / name, f"in {KIND}")

    @contextmanager
    def failures(self) -> Iterator[Path]:
        """Give the path of an output whose list of failures is that of the folder."""
        yield self.path / END

    def last_sign(self, noted: float) -> float | None:  # noqa: ARG002
        """Return when a job that noted itself last gave a sign of life; None: it ended."""
        with suppress(OSError):
            return lock_of(self.lock).stat().st_mtime
        return None


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in object storage, with the methods of `LocalFolder`."""

    address: str  # ends with a slash

    def __str__(self) -> str:
        return plain(shown(self.address))

    @property
    def given(self) -> str:
        """The address, without secrets."""
        return shown(self.address)

    @property
    def lock(self) -> Path:
        """The path on this machine whose lock a job holds."""
        return place_on_disk(self.address) / KIND

    def at(self, name: str) -> str:
        """Return how messages name a file."""
        return plain(shown(self.address + name))

    def beside(self, ending: str) -> str:
        """Return the file next to the folder with its name and an ending."""
        return f"{self.address.rstrip('/')}.{ending}"

    def owned(self) -> bool:
        """Whether captioner marked the folder."""
        with suppress(FileNotFoundError, ValueError, AttributeError):  # none, or no object of JSON
            return bool(json.loads(self.read(MARKER)).get("kind") == KIND)
        return False

    def begin(self) -> None:
        """Mark a missing or empty folder; refuse a foreign one."""
        if self.owned():
            return
        if self.names():
            raise ConfigError(
                f"{self}: not marked as captioner's {KIND} folder by the object {MARKER}; nothing "
                f"was changed; choose another address, or move the existing objects away"
            )
        with self.writing(MARKER) as aside:
            mark(aside.parent, KIND)

    def clear(self) -> None:
        """Delete the files of a job."""
        addresses = [self.address + name for name in self.names() if writes(KIND, name)]
        with named(self.address), ThreadPoolExecutor(TOGETHER) as pool:
            for _ in pool.map(delete, addresses):
                pass

    def sweep(self) -> None:
        """Nothing is left half written."""

    def names(self) -> set[str]:
        """Return the names in the folder."""
        with named(self.address):
            try:
                entries = listing(self.address.rstrip("/"))
            except UnreachableError as error:
                if error.is_missing:
                    return set()
                raise
        return {entry.address.rpartition("/")[2] for entry in entries}

    def read(self, name: str) -> bytes:
        """Read a file; `FileNotFoundError` if there is none."""
        try:
            return read(self.address + name)
        except UnreachableError as error:
            if error.is_missing:
                raise FileNotFoundError(self.at(name)) from error
            raise DataError(f"{self.at(name)}: {error}; run the same command again") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path on this machine; what is written there becomes the file."""
        with TemporaryDirectory() as top:
            yield Path(top, name)
            try:
                put(Path(top, name), self.address + name)
            except UnreachableError as error:
                raise DataError(
                    f"{self.at(name)}: not put: {error}; parts so far are kept; run the same "
                    f"command again"
                ) from error

    @contextmanager
    def failures(self) -> Iterator[Path]:
        """Give the path of an output whose list of failures is that of the folder."""
        with TemporaryDirectory() as top:
            errors, is_there = Path(top, ERRORS), False
            with suppress(FileNotFoundError):
                errors.write_bytes(self.read(ERRORS))
                is_there = True
            yield Path(top, END)
            with named(self.address + ERRORS):
                if errors.is_file():
                    put(errors, self.address + ERRORS)
                elif is_there:
                    delete(self.address + ERRORS)

    def last_sign(self, noted: float) -> float | None:
        """Return when a job that noted itself last gave a sign of life; None: it ended."""
        return noted


Folder: TypeAlias = LocalFolder | RemoteFolder


def folder_at(place: Path | str) -> Folder:
    """Return the folder at a path or an address.

    Raises:
        ConfigError: if the store cannot put an object in one step, or its package is missing.
    """
    if isinstance(place, Path) or not is_address(place):
        return LocalFolder(Path(place))
    check_address(place, is_folder=True)
    return RemoteFolder(f"{place.rstrip('/')}/")
