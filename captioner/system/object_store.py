"""Objects at addresses, read and put through fsspec: ranges, listings, and tries with pauses.

What fails is tried `TRIES` times. Pauses double from `PAUSE` seconds. Messages hold no secret.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from captioner.errors import ConfigError
from captioner.system.addresses import PACKAGES, scheme_of, shown, without_secrets
from captioner.system.foreign import last_line, plain

T = TypeVar("T")

TRIES = 5
PAUSE = 0.25  # seconds before the second try; then twice as long each time
ATTEMPTS = 3  # of botocore, in each try; a long listing is many requests
CONNECT, SILENCE = 10, 60  # seconds until a server answers; without a byte from it
PIECE = 2**22  # bytes of a stream that one request fetches
# Errors that another try does not mend.
FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(NotImplementedError, ImportError, ValueError, TypeError),
)
WEB = ("http", "https")
PARTIAL, GONE, REFUSED = 206, (404, 410), (401, 403)  # answers of web servers
PASSING = (408, 425, 429)  # answers of the 400s that another try may mend
# Of botocore: nothing was sent.
UNSENT = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
)


class UnreachableError(OSError):
    """An object cannot be read or put; the message is one line without the address."""

    def __init__(self, message: str, *, is_missing: bool = False):
        super().__init__(message)
        self.is_missing = is_missing


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store says about an address."""

    address: str
    is_folder: bool
    size: int | None  # bytes; None if the store does not say
    has_ranges: bool  # whether parts of it can be read; of a web server, see `with_ranges`


def check_installed(address: str) -> None:
    """Raise `ConfigError` if the package for a scheme is not installed."""
    if not (find_spec("fsspec") and find_spec(PACKAGES[scheme_of(address)])):
        raise ConfigError(f"{plain(shown(address))}: needs pip install 'captioner[remote]'")


def look(address: str) -> Entry:
    """Ask a store what is at an address.

    Raises:
        UnreachableError: if nothing is, or the store does not answer.
    """
    files, path = _at(address)
    return _entry(address, path, _tried(address, lambda: files.info(path)))


def with_ranges(entry: Entry) -> Entry:
    """Ask a web server whether it gives parts of a file; other stores do.

    Raises:
        UnreachableError: if it does not answer.
    """
    if scheme_of(entry.address) not in WEB or not entry.size:
        return entry
    from fsspec.asyn import sync

    files, path = _at(entry.address)

    async def asked() -> bool:
        session = await files.set_session()
        async with session.get(files.encode_url(path), headers={"Range": "bytes=0-0"}) as answer:
            answer.raise_for_status()
            return bool(answer.status == PARTIAL)  # else leave the body unread

    return replace(entry, has_ranges=_tried(entry.address, lambda: sync(files.loop, asked)))


def listing(address: str) -> list[Entry]:
    """Return the files and folders directly in a folder, in no order.

    Raises:
        UnreachableError: if there is no such folder, or the store does not answer.
    """
    files, path = _at(address)
    found = _tried(address, lambda: files.ls(path, detail=True))
    entries = (_entry(address, path, each) for each in found if each["name"].rstrip("/") != path)
    # Links of a web page may lead elsewhere.
    return [each for each in entries if each.address.startswith(f"{address.rstrip('/')}/")]


def read(address: str, start: int = 0, end: int | None = None) -> bytes:
    """Read an object, or its bytes from `start` to `end`, in one request.

    Raises:
        UnreachableError: if it cannot be read.
    """
    if end == start:
        return b""
    files, path = _at(address)
    limits = {} if end is None else {"start": start, "end": end}
    content = _tried(address, lambda: bytes(files.cat_file(path, **limits)))
    if end is not None and len(content) > end - start:
        raise UnreachableError("the server does not give parts of a file")
    return content


def put(local: Path, address: str) -> None:
    """Put a file as one object; the store shows it completely or not at all.

    Raises:
        UnreachableError: if it cannot be put.
    """
    files, path = _at(address)
    _tried(address, lambda: files.put_file(str(local), path))


def delete(address: str) -> None:
    """Delete an object, if it is there.

    Raises:
        UnreachableError: if it cannot be deleted.
    """
    files, path = _at(address)
    try:
        _tried(address, lambda: files.rm_file(path))
    except UnreachableError as error:
        if not error.is_missing:
            raise


def fetch(address: str, local: Path) -> None:
    """Copy an object into a file.

    Raises:
        UnreachableError: if it cannot be read.
    """
    files, path = _at(address)
    _tried(address, lambda: files.get_file(path, str(local)))


class _Ranges(io.RawIOBase):
    """An object as a file; each read is one request for a range.

    `io.BufferedReader` reads ahead. With `is_stream`, it can only be read forward.
    """

    def __init__(self, entry: Entry, *, is_stream: bool, known: bytes, known_at: int):
        self.address, self.size, self.is_stream = entry.address, entry.size or 0, is_stream
        self.known, self.known_at, self.place = known, known_at, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self.is_stream

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if self.is_stream:
            raise io.UnsupportedOperation("a stream")
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def readinto(self, buffer: Any, /) -> int:
        end = min(self.size, self.place + len(buffer))
        if self.place >= end:
            return 0
        start = self.place - self.known_at
        content = self.known[start : start + len(buffer)] if start >= 0 else b""
        if not content:
            content = read(self.address, self.place, end)
            if len(content) < end - self.place:
                raise UnreachableError("it became shorter while it was read")
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


class _Answer(io.RawIOBase):
    """The answer of a server that gives no ranges, read once; a cut connection ends it."""

    def __init__(self, address: str):
        self.address = address
        files, path = _at(address)
        self.file = _tried(address, lambda: files.open(path, "rb", block_size=0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            content = self.file.read(len(buffer))
        except Exception as error:
            raise _unreachable(error, self.address) from error
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def opened(
    entry: Entry, *, is_stream: bool, ahead: int = PIECE, known: bytes = b"", known_at: int = 0
) -> io.BufferedReader:
    """Open an object to read it forward, or, if it has ranges, at any place.

    Args:
        entry: of `look`.
        is_stream: whether it is read forward only.
        ahead: bytes that a request fetches at least.
        known: a part that was read before.
        known_at: its offset in bytes.
    """
    if entry.has_ranges:
        raw = _Ranges(entry, is_stream=is_stream, known=known, known_at=known_at)
        return io.BufferedReader(raw, ahead)
    return io.BufferedReader(_Answer(entry.address), 2**18)


def _at(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    check_installed(address)
    scheme = scheme_of(address)
    host = urlsplit(address).netloc if scheme == "hdfs" else ""
    files = _file_system(scheme, host, os.getpid())
    return files, files._strip_protocol(address)


@lru_cache(maxsize=16)
def _file_system(scheme: str, host: str, process: int) -> Any:  # noqa: ARG001 not after a fork
    """Connect to a store; all threads share a connection."""
    import_module(PACKAGES[scheme])
    import fsspec

    options: dict[str, object] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": CONNECT,
            "read_timeout": SILENCE,
            "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        }
    elif scheme in WEB:
        from aiohttp import ClientTimeout

        wait = ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": wait}
    elif scheme == "hdfs":
        options["host"] = host
    files = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        files.retries = 1
    return files


def _entry(typed: str, path: str, info: dict[str, Any]) -> Entry:
    """Read what fsspec says; `path` is the path in the store of the typed address."""
    before = typed.rstrip("/").removesuffix(path) if scheme_of(path) == "" else ""
    size = info.get("size")
    return Entry(
        address=before + info["name"].rstrip("/"),
        is_folder=info["type"] == "directory",
        size=size if isinstance(size, int) else None,
        has_ranges=isinstance(size, int) and scheme_of(typed) not in WEB,
    )


def _tried(address: str, request: Callable[[], T]) -> T:
    """Make a request again and again, until it is answered."""
    for pause in _pauses():
        try:
            return request()
        except Exception as error:
            reason = _reason(error)
            if pause is None or _is_final(reason):
                raise _unreachable(reason, address) from None  # libraries name the whole address
            time.sleep(pause)
    raise AssertionError("unreachable")


def _pauses() -> Iterator[float | None]:
    """Yield the seconds to wait after each try, None after the last."""
    for number in range(TRIES - 1):
        yield PAUSE * 2**number * random.uniform(0.5, 1)  # so that processes spread out
    yield None


def _reason(error: Exception) -> Exception:
    """Return what happened: fsspec says of every trouble with HTTP that there is no such file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        is_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
        return cause if is_http else error
    return error


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING
    return isinstance(error, FINAL) or type(error).__name__ in UNSENT


def _unreachable(error: Exception, address: str) -> UnreachableError:
    """Return the error of a library as one line without secrets."""
    if isinstance(error, UnreachableError):
        return error
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in GONE:
        return UnreachableError("no such file", is_missing=True)
    if isinstance(error, PermissionError) or status in REFUSED:
        return UnreachableError("the store refuses access: check the credentials")
    return UnreachableError(plain(without_secrets(last_line(error), address), 200))
