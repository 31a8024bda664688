"""Files appear whole or not at all: write aside, flush to disk, rename; and are read with care."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON = 2**26  # bytes; a vocabulary of a million words needs a third of it

MOVED = "not written: its folder was moved or removed meanwhile"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside the wanted one to write to; put it in place when the block succeeds.

    Args:
        path: final file; its folder is made when absent. A link keeps pointing where it does; a
            device or a pipe, such as /dev/null, is written to as it is.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        if not aside.exists():
            raise FileNotFoundError(errno.ENOENT, MOVED, str(path))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "not written: a folder took its place", str(path))
        _to_disk(aside)
        aside.replace(path)
        _to_disk(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole."""
    with whole_file(path) as aside:
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
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside the wanted one to fill; put it in place when the block succeeds.

    Args:
        path: final folder; one that exists is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.iterdir():
            _to_disk(file)
        if path.exists():
            path.replace(old)
        aside.replace(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process was still writing into a folder or its folders."""
    for left in list(folder.rglob(".*")):
        if left.suffix in (".part", ".old"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)


def _to_disk(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders, and needs no flush for a rename
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
