"""Atomic writes (write to a temporary folder, flush, rename) and safe reads of files."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captioner.errors import ConfigError
from captioner.system.disk import writing
from captioner.system.ownership import MARKER, check, is_empty, mark, owns, writes
from captioner.system.text_encodings import decode, decode_head

PART = re.compile(r"(\..+)\.captioner-([0-9]{1,10})-[a-z0-9_]+\.part", re.DOTALL)
OLD = "old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
MAX_JSON = 2**26  # bytes; a vocabulary of a million words takes a third
# First bytes of files that somebody took for another file, and what to do.
PAGES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<!doctype", "a web page, not the file itself; download the file behind the link"),
    (b"<html", "a web page, not the file itself; download the file behind the link"),
    (b"<head", "a web page, not the file itself; download the file behind the link"),
    (b"<?xml", "a text in XML (a drawing, or the error message of a server)"),
    (b"<error", "a text in XML, the error message of a server; download the file again"),
)
MISTAKEN = (*PAGES, (b'{"', "a text in JSON (perhaps the error message of a server)"))
_SAVE = "save its table as CSV in UTF-8"
_NOT_UTF8 = "not a text in UTF-8: it holds"
_UTF16 = "if it is UTF-16, save it as UTF-8 (of a data set, data.encoding=utf-16-le reads it)"
# Every second byte of UTF-16 in Greek, Cyrillic, Hebrew, Arabic and others.
_CONTROLS = frozenset(map(chr, (*range(1, 9), *range(14, 27), *range(28, 32))))
BINARY = (
    (
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|....ftyp",
        "an image or a video, not a text",
    ),
    (rb"\x1f\x8b|BZh[1-9]1AY|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a compressed file; unpack it"),
    (rb"PK\x03\x04", f"a ZIP archive or an Excel workbook; unpack it, or {_SAVE}"),
    (rb"\xd0\xcf\x11\xe0", f"an old Excel or Word file; {_SAVE}"),
    (rb"%PDF-", f"a PDF; {_SAVE}"),
    (rb"PAR1", "a Parquet file; give it the ending .parquet"),
    (
        rb".*\0",
        f"{_NOT_UTF8} zero bytes; {_UTF16}",
    ),
)
_writing: set[str] = set()  # names of the temporary folders of this process

MOVED = "not written: its folder was moved or removed while it was written"


def cache_folder() -> Path:
    """Return captioner's cache: `$CAPTIONER_CACHE`, or else `~/.cache/captioner`.

    Raises:
        ConfigError: if the user has no home folder, as in some containers.
    """
    folder = os.environ.get("CAPTIONER_CACHE")
    folder = folder or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/captioner"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{folder}: no home folder is known; set CAPTIONER_CACHE") from error


def read_head(path: Path, size: int = 512) -> bytes:
    """Return the first bytes of a regular file, enough to recognise it.

    Raises:
        OSError: if the file cannot be read, or is a pipe or a device.
    """
    with open(path, "rb", opener=no_stream) as file:
        return file.read(size)


def mistaken_for(head: bytes) -> str | None:
    """Return what a file is that people take for a model or an image, from its first bytes."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "empty file; download it again"
    if b"\0" in head[:64]:  # safetensors begins with the length of its header, which may look so
        return None
    return next((what for magic, what in MISTAKEN if start.startswith(magic)), None)


def not_text(head: bytes) -> str | None:
    """Return what a file is that is no text, from its first bytes; None for a text."""
    text = decode_head(head)
    start = text.lstrip().lower()
    found = [what for magic, what in PAGES if start.startswith(magic.decode())]
    if "\t" in start.partition("\n")[0]:  # an image of such a name, tab, caption
        found = []
    controls = sum(map(_CONTROLS.__contains__, text)) * 4 > len(text)
    if controls or "\0" in text or "\ufffd" in text:
        found += [what for magic, what in BINARY if re.match(magic, head, re.DOTALL)]
    if controls:
        found.append(f"{_NOT_UTF8} control characters; {_UTF16}")
    return next(iter(found), None)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder; if the block fails, remove the folders created here that are empty.

    Raises:
        NotADirectoryError: if a file is in its place.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, FileExistsError | NotADirectoryError) and not folder.is_dir():
            reason = "not a folder; choose another path"
            raise NotADirectoryError(errno.ENOTDIR, reason, str(folder)) from error
        raise


@contextmanager
def whole_file(path: Path, kind: str) -> Iterator[Path]:
    """Write a file atomically: give a temporary path, and move it into place on success.

    The temporary path is in a hidden folder next to the file, together with any file that a killed
    library leaves behind. A link is kept and its target replaced. A device or a pipe, such as
    /dev/null, is written directly. A replaced file keeps its mode; a new file follows the umask.

    Raises:
        ConfigError: if a foreign file exists at `path`, before or after the block.
    """
    path = _resolved(path)
    check(path, kind)
    if path.exists() and not path.is_file():
        with writing(path):
            yield path
        return
    if kind != "sidecar":  # sweeping a folder of a million images is slow
        sweep(path)
    with new_folder(path.parent), _aside(path) as folder:
        aside = folder / path.name
        yield aside
        if not aside.exists():
            raise FileNotFoundError(errno.ENOENT, MOVED, str(path))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "not written: it became a folder", str(path))
        aside.chmod(_mode(path if path.exists() else folder / MARKER))
        _to_disk(aside)
        check(path, kind)
        aside.replace(path)
        _to_disk(path.parent)


def write_text(path: Path, text: str, kind: str) -> None:
    """Write a UTF-8 text file atomically; see `whole_file`."""
    with whole_file(path, kind) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: Path, **options: Any) -> Any:
    """Read an untrusted JSON file of at most `MAX_JSON` bytes; the options are of `json.loads`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a regular file, too large, not JSON, or nested too deeply.
    """
    check_regular(path)
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes")
    try:
        with open(path, "rb", opener=no_stream) as file:
            return json.loads(decode(file.read(), errors="strict"), **options)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_regular(path: Path) -> None:
    """Raise `ValueError` for a pipe or a device, as reading it may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


def no_stream(path: str, flags: int) -> int:
    """Open a file that the user did not type; use as `open(path, opener=no_stream)`.

    Opening a pipe without a writer blocks for ever, even if a file was at the path a moment ago.

    Raises:
        OSError: if it cannot be opened, or is a pipe, a socket or a device.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` itself refuses folders
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


@contextmanager
def whole_folder(path: Path, kind: str) -> Iterator[Path]:
    """Write a folder atomically: give a temporary folder, and move it into place on success.

    On Linux, the old and the new folder are swapped in one step. Elsewhere, a kill between two
    renames removes the old folder until `sweep` restores it.

    Raises:
        ConfigError: if a foreign file or folder exists at `path`, before or after the block.
    """
    path = _resolved(path)
    check(path, kind)
    sweep(path)
    with new_folder(path.parent), _aside(path) as folder:
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
    """Delete what killed processes left of a file or a folder; restore a half replaced folder."""
    for leftover, name in _leftovers(path.parent):
        if name == _hidden(path.name):
            if not os.path.lexists(path) and (leftover / OLD).is_dir():
                (leftover / OLD).replace(path)
            shutil.rmtree(leftover, ignore_errors=True)


def sweep_marked(folder: Path, kind: str) -> None:
    """Delete the temporary folders that killed processes left directly in a marked folder."""
    if owns(folder, kind):
        for leftover, name in _leftovers(folder):
            if writes(kind, name.removeprefix(".")):
                shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the temporary folders of killed processes in a folder, each with its hidden name."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = PART.fullmatch(path.name)
        if not match or path.is_symlink() or not path.is_dir() or _is_written(path, int(match[2])):
            continue
        if owns(path, "part") or is_empty(path):
            yield path, match[1]


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a temporary folder next to a path, with a marker and a unique name."""
    prefix = f"{_hidden(path.name)}.captioner-{os.getpid()}-"
    with writing(path):
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
        _writing.add(folder.name)
        try:
            mark(folder, "part")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _writing.discard(folder.name)


def _hidden(name: str) -> str:
    """Return the prefix of temporary folders for a file name; long names are hashed."""
    if len(os.fsencode(name)) > 180:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return f".{name}"


def _is_written(folder: Path, process: int) -> bool:
    """Whether the process that writes a temporary folder may still be alive."""
    if process == os.getpid():  # in containers, killed processes often had the same id
        return folder.name in _writing
    import psutil  # slow to import, rarely needed

    try:
        return bool(psutil.pid_exists(process))
    except (OSError, OverflowError):
        return True


def _swap(new: Path, path: Path) -> None:
    """Replace a folder by a new one; the old one moves to the new one's path, or to `OLD`."""
    with suppress(AttributeError, OSError, TypeError):  # not Linux
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
        if exchange(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
            return
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
        return  # Windows cannot open folders, and needs no flush after a rename
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
