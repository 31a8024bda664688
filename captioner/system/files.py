"""Files appear whole or not at all: write aside, flush to disk, rename; and are read with care."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captioner.system.ownership import MARKER, check, is_empty, mark, owns, writes

PART = re.compile(r"(\..+)\.captioner-([0-9]{1,10})-[a-z0-9_]+\.part", re.DOTALL)
OLD = "old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
MAX_JSON = 2**26  # bytes; a vocabulary of a million words needs a third of it
_writing: set[str] = set()  # folders aside that this process is filling

MOVED = "not written: its folder was moved or removed meanwhile"


@contextmanager
def whole_file(path: Path, kind: str) -> Iterator[Path]:
    """Give a path to write to; put it in the wanted place when the block succeeds.

    The path is in a hidden folder of its own beside the place: what a library leaves beside what
    it writes, when it is killed, is in there too.

    Args:
        path: final file; its folder is made when absent. A link keeps pointing where it does; a
            device or a pipe, such as /dev/null, is written to as it is. One that is replaced keeps
            its mode, a new one has that of the umask.
        kind: of `ownership.FILES`; what is there and is not captioner's stays.

    Raises:
        ConfigError: if something of somebody else's stands there, before the block or after it.
    """
    path = _resolved(path)
    check(path, kind)
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind != "sidecar":  # whose folders may hold millions of pictures
        sweep(path)
    with _aside(path) as folder:
        aside = folder / path.name
        yield aside
        if not aside.exists():
            raise FileNotFoundError(errno.ENOENT, MOVED, str(path))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "not written: a folder took its place", str(path))
        aside.chmod(_mode(path if path.exists() else folder / MARKER))
        _to_disk(aside)
        check(path, kind)
        aside.replace(path)
        _to_disk(path.parent)


def write_text(path: Path, text: str, kind: str) -> None:
    """Write a UTF-8 text file, whole; see `whole_file`."""
    with whole_file(path, kind) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: Path, **options: Any) -> Any:
    """Read a JSON file that a stranger may have written.

    Args:
        path: of a regular file of at most `MAX_JSON` bytes.
        **options: of `json.loads`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file, or not JSON that fits into the stack.
    """
    check_regular(path)
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes")
    try:
        with open(path, encoding="utf-8", opener=no_stream) as file:
            return json.loads(file.read(), **options)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def room(error: Exception) -> str:
    """Return the advice that an error of writing calls for, if it is that there is no room."""
    full = ("No space left", "quota", "File too large", "is full")
    return "; free some space" if any(words in str(error) for words in full) else ""


def check_regular(path: Path) -> None:
    """Refuse what is there but is no file: a pipe or a device may never end.

    Raises:
        OSError: if nothing is there.
        ValueError: if it is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


def no_stream(path: str, flags: int) -> int:
    """Open what was found, not typed: `open(path, opener=no_stream)` waits for nobody.

    A pipe that nobody writes to would be waited for for ever, also one that took the place of a
    file after somebody looked at it.

    Args:
        path: of a file.
        flags: of `os.open`.

    Raises:
        OSError: also if it is a pipe, a socket or a device.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder `open` says it itself
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


@contextmanager
def whole_folder(path: Path, kind: str) -> Iterator[Path]:
    """Give a folder to fill with files; put it in the wanted place when the block succeeds.

    Args:
        path: final folder. One that is replaced is there until the new one is, where the system
            can swap two folders; else a kill in between leaves it to `sweep` to bring it back.
        kind: of `ownership.FOLDERS`; what is there and is not captioner's stays.

    Raises:
        ConfigError: if something of somebody else's stands there, before the block or after it.
    """
    path = _resolved(path)
    check(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    with _aside(path) as folder:
        new = folder / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            before = path / file.name
            file.chmod(_mode(before if before.exists() else folder / MARKER))
            _to_disk(file)
        check(path, kind)
        if not path.exists():
            new.replace(path)
        else:
            new.chmod(_mode(path))
            _swap(new, path)
        _to_disk(path.parent)


def sweep(path: Path) -> None:
    """Delete what killed processes were still writing to a place.

    Args:
        path: of a file or a folder; where a process was killed while it replaced a folder, the old
            one is put back.
    """
    for left, name in _left(path.parent):
        if name == _hidden(path.name):
            if not os.path.lexists(path) and (left / OLD).is_dir():
                (left / OLD).replace(path)
            shutil.rmtree(left, ignore_errors=True)


def sweep_marked(folder: Path, kind: str) -> None:
    """Delete what killed processes were still writing into a folder of captioner's, not below it.

    Args:
        folder: to look into.
        kind: of `ownership.FOLDERS`, with a marker.
    """
    if owns(folder, kind):
        for left, name in _left(folder):
            if writes(kind, name.removeprefix(".")):
                shutil.rmtree(left, ignore_errors=True)


def _left(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what killed processes left in a folder, and for which hidden name."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        found = PART.fullmatch(path.name)
        if not found or path.is_symlink() or not path.is_dir() or _is_written(path, int(found[2])):
            continue
        if owns(path, "part") or is_empty(path):
            yield path, found[1]


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a folder beside a place, with a marker and a name that nobody else's has."""
    prefix = f"{_hidden(path.name)}.captioner-{os.getpid()}-"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    except OSError as error:  # the place means more to the reader than the folder's name
        raise OSError(error.errno, error.strerror, str(path)) from error
    _writing.add(folder.name)
    try:
        mark(folder, "part")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _writing.discard(folder.name)


def _hidden(name: str) -> str:
    """Return how the names of a place's folders aside begin; long names leave no room for more."""
    if len(os.fsencode(name)) > 180:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return f".{name}"


def _is_written(folder: Path, process: int) -> bool:
    """Whether the process that writes a folder aside lives, as far as can be known."""
    if process == os.getpid():  # in a container all have one number
        return folder.name in _writing
    import psutil  # slow to import, and seldom needed

    try:
        return bool(psutil.pid_exists(process))
    except (OSError, OverflowError):
        return True


def _swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which is then where the first was, or in `OLD`."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
        if exchange(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
            return
    except (AttributeError, OSError, TypeError):  # not Linux
        pass
    old = new.with_name(OLD)
    path.replace(old)
    new.replace(path)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # a loop of links
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _to_disk(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders, and needs no flush for a rename
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
