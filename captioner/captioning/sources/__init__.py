"""What the user points at -> images, one by one, in a fixed order, each with its name.

Nothing is opened before its turn, and nothing is unpacked to disk. An image is known by its
name, which is its path, never by a running number.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from captioner.captioning.sources.braces import expand
from captioner.captioning.sources.folders import folder_images, matches
from captioner.captioning.sources.item import (
    TARS,
    ZIPS,
    Item,
    Slice,
    failure,
    file_item,
    kind_of,
    unreachable,
)
from captioner.captioning.sources.tables import SUFFIXES as TABLES
from captioner.captioning.sources.tables import table_images
from captioner.captioning.sources.tar import COMMAND, command_images, tar_images
from captioner.captioning.sources.zip import Packed, zip_images
from captioner.errors import ImageError
from captioner.system.memory import Memory

__all__ = ["Item", "Packed", "Slice", "files_only", "list_images", "typed"]

# How JPEG, PNG, gzip and ZIP files begin, read as names.
NO_NAMES = ("\udcff\udcd8\udcff", "\udc89PNG", "\x1f\udc8b", "PK\x03\x04")
LONGEST = 4096  # characters of a path; a longer pattern matches nothing, and takes long to read


def list_images(
    sources: str | Path | Sequence[str | Path],
    *,
    recursive: bool = False,
    stdin: Iterable[str] = (),
    image_column: str | None = None,
    memory: Memory | None = None,
) -> Iterator[Item]:
    """Find the images meant by files, folders, globs, archives, tables, commands and `-`.

    Args:
        sources: what the user typed, one or several; `-` stands for the lines of stdin. Only here
            may a name have braces, begin with `pipe:` or be a named pipe.
        recursive: also look into folders of folders.
        stdin: paths, one a line; or, if the first line has a zero byte in it, between zero bytes.
        image_column: of tables; None: guessed among the usual names.
        memory: is asked for room before a member of a stream is read, where who takes the items
            has them captioned one after the other. None: nobody is asked.

    Yields:
        Each image; or, for what leads to none, its name and what is wrong with it. A folder's
        files come in the order of their names, and only those named like images, as in archives;
        members of an archive and rows of a table come in their own order.
    """
    for source in map(str, [sources] if isinstance(sources, str | Path) else sources):
        if source == "-":
            try:
                for name in _names(stdin):
                    if name not in ("", "-"):
                        yield from _named(name, recursive, image_column, memory)
            except ImageError as error:
                yield Item(source, error)
            continue
        for name in typed(source):
            if name.startswith(COMMAND) and not os.path.lexists(name):
                yield from command_images(name, memory=memory)
            elif kind_of(name) == "pipe":
                yield from tar_images(name, stream=True, memory=memory)
            else:
                yield from _named(name, recursive, image_column, memory)


def typed(source: str) -> Iterable[str]:
    """Return the names that the user typed with a source: several where it has braces.

    What exists is never a pattern or a command: a shell may have put it here for a `*`, and
    anybody can call a file `pipe:rm x`.
    """
    return [source] if os.path.lexists(source) else expand(source)


def files_only(items: Iterable[Item]) -> Iterator[Item]:
    """Turn members of archives into failures, for writers that put a file beside each image."""
    for item in items:
        if not isinstance(item.source, Path | ImageError):
            yield failure(
                item.name, "no file can stand beside it; choose a format of one file", "place_taken"
            )
        else:
            yield item


def _names(stdin: Iterable[str]) -> Iterator[str]:
    zeros, rest = None, ""
    for line in stdin:
        if zeros is None and line.startswith(NO_NAMES):
            raise ImageError(
                "a file itself, not names of images; save it and name it", kind="missing"
            )
        zeros = "\0" in line if zeros is None else zeros
        if zeros:
            *whole, rest = (rest + line).split("\0")
            yield from whole
        else:
            yield line.removesuffix("\n").removesuffix("\r")
    yield rest


def _named(
    name: str, recursive: bool, image_column: str | None, memory: Memory | None
) -> Iterator[Item]:
    kind, ending = kind_of(name), name.lower()
    if kind == "folder":
        yield from folder_images(Path(name), recursive)
    elif kind == "file" and ending.endswith(TARS):
        yield from tar_images(name, memory=memory)
    elif kind == "file" and ending.endswith(ZIPS):
        yield from zip_images(name)
    elif kind == "file" and ending.endswith(TABLES):
        yield from table_images(name, image_column)
    elif os.path.lexists(name):
        yield file_item(name)
    elif len(name) <= LONGEST and glob.has_magic(name):
        found = False
        for match in matches(name):
            found = True
            yield from _named(match, recursive, image_column, memory)
        if not found:
            yield failure(name, "no file matches this pattern", "missing")
    elif "://" in name:
        yield unreachable(name)
    else:
        yield failure(name, "no such file", "missing")
