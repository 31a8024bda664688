"""Files, folders, patterns and archives at addresses in object storage -> images.

The order is that of the same files on a disk. A table is copied to a temporary folder and read.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from captioner.captioning.sources.features import ENDINGS as FEATURES
from captioner.captioning.sources.folders import no_images
from captioner.captioning.sources.item import ZIPS, Item, failure
from captioner.captioning.sources.tables import SUFFIXES as TABLES
from captioner.captioning.sources.tables import remote_row, table_images
from captioner.captioning.sources.tar import remote_tar_images
from captioner.captioning.sources.zip import remote_zip_images
from captioner.images.decode import SUFFIXES
from captioner.images.members import is_image
from captioner.images.remote_content import RemoteFile, error_of, remote_file
from captioner.images.tars import TARS
from captioner.system.addresses import scheme_of, shown
from captioner.system.memory import Memory
from captioner.system.object_store import (
    Entry,
    UnreachableError,
    check_installed,
    fetch,
    listing,
    look,
    with_ranges,
)


def remote_images(
    address: str,
    recursive: bool,
    image_column: str | None,
    memory: Memory | None,
    unread: Counter[str],
) -> Iterator[Item]:
    """List the images at an address that the user typed or listed.

    A store that does not answer is one failure. The arguments are of `list_images`.

    Raises:
        ConfigError: if the package for the scheme is not installed.
    """
    check_installed(address)

    def of(entry: Entry) -> Iterator[Item]:
        ending = _path(entry.address).lower()
        if entry.is_folder or entry.address.endswith("/"):
            yield from _folder(entry.address, recursive, unread)
        elif ending.endswith(TARS):
            yield from remote_tar_images(with_ranges(entry), unread, memory=memory)
        elif ending.endswith(ZIPS):
            yield from remote_zip_images(with_ranges(entry), unread)
        elif ending.endswith(TABLES):
            yield from _table(entry, image_column)
        elif ending.endswith(FEATURES):
            reason = "features are read from a disk only; download the file first"
            yield failure(shown(entry.address), reason, "unreadable")
        else:
            yield Item(shown(entry.address), remote_file(entry))

    try:
        yield from _named(address, of)
    except UnreachableError as error:
        yield Item(shown(address), error_of(error))


def _named(address: str, of: Callable[[Entry], Iterator[Item]]) -> Iterator[Item]:
    path = _path(address)
    if address.endswith("/"):
        yield from of(Entry(address.rstrip("/") + "/", True, None, False))
    elif _is_pattern(address):
        match = None
        for match in _matches(path):
            yield from of(match)
        if match is None:
            yield failure(shown(address), "no file matches this pattern", "missing")
    elif Path(path).suffix.lower() in SUFFIXES:
        yield Item(shown(address), RemoteFile(address))  # asked for when it is read
    else:
        yield from of(look(address))


def _folder(address: str, recursive: bool, unread: Counter[str]) -> Iterator[Item]:
    """List the files of a folder that have an image extension, as `folder_images` does."""
    top, yielded = address.rstrip("/"), False
    folders, here = [top], Counter[str]()
    archives: dict[str, None] = {}
    while folders:
        try:
            entries = sorted(listing(folders.pop()), key=lambda entry: entry.address)
        except UnreachableError as error:
            yield Item(shown(top), error_of(error))
            return
        for entry in entries:
            name = _path(entry.address)
            if not entry.is_folder and is_image(name, here):
                yielded = True
                yield Item(shown(entry.address), remote_file(entry))
            elif ending := next((e for e in (*TARS, *ZIPS) if name.lower().endswith(e)), None):
                archives[f"{shown(entry.address.rpartition('/')[0])}/*{ending}"] = None
        if recursive:
            folders += [entry.address for entry in reversed(entries) if entry.is_folder]
    unread.update(here)
    if not yielded:
        yield no_images(shown(top) + "/", recursive, archives, here)


def _table(entry: Entry, image_column: str | None) -> Iterator[Item]:
    """List the images of a table; its relative paths begin at the table's folder."""
    folder, _, name = _path(entry.address).rpartition("/")
    with TemporaryDirectory(prefix="captioner-table-") as top:
        local = Path(top, name)
        fetch(entry.address, local)
        yield from table_images(
            str(local),
            image_column,
            shown_as=shown(entry.address),
            row=lambda where, value: remote_row(folder, where, value),
        )


def _path(address: str) -> str:
    """Return an address without its query."""
    return address.partition("?")[0] if _is_web(address) else address


def _is_web(address: str) -> bool:
    return scheme_of(address) in ("http", "https")


def _is_pattern(address: str) -> bool:
    # `?` begins the query of a web address.
    return "*" in _path(address) or (not _is_web(address) and glob.has_magic(address))


def _matches(pattern: str) -> Iterator[Entry]:
    """Find what matches a pattern, in the order of `folders.matches`, folder by folder."""
    scheme, _, path = pattern.partition("://")
    host, *parts = path.split("/")
    found = _below(f"{scheme}://{host}", parts)
    yield from found if "**" in parts else sorted(found, key=lambda entry: entry.address)


def _below(folder: str, parts: list[str]) -> Iterator[Entry]:
    part, *rest = parts
    if part == "**":
        yield from _anywhere(folder, [each for each in rest if each != "**"] or ["*"])
    elif glob.has_magic(part):
        for entry in _children(folder):
            name = entry.address.rpartition("/")[2]
            if not fnmatchcase(name, part) or (name.startswith(".") and not part.startswith(".")):
                continue
            if not rest:
                yield entry
            elif entry.is_folder:
                yield from _below(entry.address, rest)
    elif rest:
        yield from _below(f"{folder}/{part}", rest)
    else:
        with _nothing_missing():
            yield look(f"{folder}/{part}")


def _anywhere(folder: str, tail: list[str]) -> Iterator[Entry]:
    """Find what matches the end of a pattern, in a folder and in each folder below it."""
    for match in sorted(_below(folder, tail), key=lambda entry: entry.address):
        if tail != ["*"] or not match.is_folder:  # each folder is visited anyway
            yield match
    for entry in _children(folder):
        if entry.is_folder and not entry.address.rpartition("/")[2].startswith("."):
            yield from _anywhere(entry.address, tail)


def _children(folder: str) -> list[Entry]:
    with _nothing_missing():
        return sorted(listing(folder), key=lambda entry: entry.address)
    return []


@contextmanager
def _nothing_missing() -> Iterator[None]:
    """Leave the block if there is nothing at an address."""
    try:
        yield
    except UnreachableError as error:
        if not error.is_missing:
            raise
