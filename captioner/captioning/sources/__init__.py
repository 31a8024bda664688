"""Files, folders, globs, archives, tables and commands -> named images, in a fixed order.

A name such as `s3://bucket/folder/` is read through `remote`.

Sources are opened lazily and never unpacked to disk. An image is identified by its name, a path.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType

from captioner.captioning.sources.features import ENDINGS as FEATURES
from captioner.captioning.sources.features import feature_items
from captioner.captioning.sources.folders import folder_images, matches
from captioner.captioning.sources.item import (
    ZIPS,
    Item,
    failure,
    file_item,
    kind_of,
    unreachable,
)
from captioner.captioning.sources.remote import remote_images
from captioner.captioning.sources.tables import SUFFIXES as TABLES
from captioner.captioning.sources.tables import table_images
from captioner.captioning.sources.tar import command_images, tar_images
from captioner.captioning.sources.zip import Packed, zip_images
from captioner.errors import DataError, ImageError, checked_names, must_be
from captioner.images.tars import TARS
from captioner.system.addresses import COMMAND, is_address
from captioner.system.foreign import plain
from captioner.system.memory import Memory

__all__ = ["Item", "Packed", "list_images"]

# First bytes of JPEG, PNG, gzip and ZIP files, decoded as text.
BINARY_STARTS = ("\udcff\udcd8\udcff", "\udc89PNG", "\x1f\udc8b", "PK\x03\x04")
LONGEST = 4096  # characters of a path; longer patterns match nothing and are slow to parse


@checked_names
def list_images(
    sources: str | Path | Sequence[str | Path],
    *,
    recursive: bool = False,
    stdin: Iterable[str] = (),
    image_column: str | None = None,
    memory: Memory | None = None,
    unread: Counter[str] | None = None,
) -> Iterator[Item]:
    """Find images in files, folders, globs, archives, tables, commands and stdin.

    Args:
        sources: one or several sources that the user typed; `-` reads paths from stdin. Only these
            names may begin with `pipe:` or be a named pipe.
        recursive: also search subfolders.
        stdin: paths, one per line, or separated by zero bytes if the first line contains one.
        image_column: column of paths in tables; None: guessed from common names.
        memory: limit for the members of tar streams; pass it only if images are captioned in order.
            None: no limit.
        unread: counts pictures and videos that captioner does not read, by extension.

    Yields:
        Each image, or a failure for each name without an image. Folders and archives yield only
        files with an image extension. A folder's files are sorted by name. Members of archives and
        rows of tables keep their order.

    Raises:
        ConfigError: if the sources are no paths.
        DataError: if stdin cannot be read to its end.
    """
    must_be("sources", sources, str, Path, Iterable)
    must_be("unread", unread, Counter, NoneType)
    unread = Counter() if unread is None else unread
    for source in map(str, [sources] if isinstance(sources, str | Path) else sources):
        if source == "-":
            try:
                for name in _names(stdin):
                    if name not in ("", "-"):
                        yield from _named(name, recursive, image_column, memory, unread)
            except ImageError as error:
                yield Item(source, error)
        # A shell's `*` may give the name of a file called `pipe:rm x`.
        elif source.startswith(COMMAND) and not os.path.lexists(source):
            yield from command_images(source, unread, memory=memory)
        elif kind_of(source) == "pipe":
            yield from tar_images(source, unread, stream=True, memory=memory)
        else:
            yield from _named(source, recursive, image_column, memory, unread)


def _names(stdin: Iterable[str]) -> Iterator[str]:
    zeros, rest = None, ""
    for line in _lines(stdin):
        if zeros is None and line.startswith(BINARY_STARTS):
            raise ImageError(
                "stdin holds a file instead of paths; pass the path of the file", kind="missing"
            )
        zeros = "\0" in line if zeros is None else zeros
        if zeros:
            *whole, rest = (rest + line).split("\0")
            yield from whole
        else:
            yield line.removesuffix("\n").removesuffix("\r")
    yield rest


def _lines(stdin: Iterable[str]) -> Iterator[str]:
    try:
        yield from stdin
    except (OSError, ValueError) as error:
        raise DataError(
            f"stdin: breaks off: {getattr(error, 'strerror', None) or plain(error)}; the paths "
            f"before are captioned, give the others again"
        ) from error


def _named(
    name: str,
    recursive: bool,
    image_column: str | None,
    memory: Memory | None,
    unread: Counter[str],
) -> Iterator[Item]:
    kind, ending = kind_of(name), name.lower()
    if kind == "nothing" and is_address(name):
        yield from remote_images(name, recursive, image_column, memory, unread)
    elif kind == "folder":
        yield from folder_images(Path(name), recursive, unread)
    elif kind == "file" and ending.endswith(TARS):
        yield from tar_images(name, unread, memory=memory)
    elif kind == "file" and ending.endswith(ZIPS):
        yield from zip_images(name, unread)
    elif kind == "file" and ending.endswith(TABLES):
        yield from table_images(name, image_column)
    elif kind == "file" and ending.endswith(FEATURES):
        yield from feature_items(name)
    elif os.path.lexists(name):
        yield file_item(name)
    elif len(name) <= LONGEST and glob.has_magic(name):
        match = None
        for match in matches(name):
            yield from _named(match, recursive, image_column, memory, unread)
        if match is None:
            yield failure(name, "no file matches this pattern", "missing")
    elif "://" in name:
        yield unreachable(name)
    else:
        yield failure(name, "no such file", "missing")
