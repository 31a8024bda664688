"""Folders and patterns -> their images, in a fixed order; links to folders are not followed."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from captioner.captioning.sources.item import ZIPS, Item, failure, file_item, kind_of
from captioner.images.members import is_image, unread_kinds
from captioner.images.tars import TARS


def folder_images(folder: Path, recursive: bool, unread: Counter[str]) -> Iterator[Item]:
    """List the files of a folder that have an image extension, sorted by name; see `is_image`."""
    yielded = False
    archives: dict[str, None] = {}
    errors: list[OSError] = []
    here: Counter[str] = Counter()

    def unlisted() -> Iterator[Item]:
        nonlocal yielded
        while errors:
            yielded = True
            error = errors.pop(0)
            message = f"cannot be listed: {error.strerror}"
            yield failure(str(Path(error.filename)), message, "unreadable")

    for parent, folders, files in os.walk(folder, onerror=errors.append):
        yield from unlisted()
        folders.sort()
        for name in sorted(files):
            if is_image(name, here):
                yielded = True
                yield file_item(str(Path(parent, name)))
            elif ending := next((e for e in (*TARS, *ZIPS) if name.lower().endswith(e)), None):
                archives[str(Path(parent, f"*{ending}"))] = None
        if not recursive:
            break
    yield from unlisted()
    unread.update(here)
    if not yielded:
        yield no_images(str(folder), recursive, archives, here)


def no_images(folder: str, recursive: bool, archives: Iterable[str], here: Counter[str]) -> Item:
    """Return the failure of a folder without images, with what may be wrong.

    Args:
        folder: as messages name it.
        recursive: whether its subfolders were searched.
        archives: patterns of archives in it.
        here: pictures and videos in it that captioner does not read, by extension.
    """
    hint = "" if recursive else " (--recursive searches subfolders)"
    if patterns := " ".join(map(repr, archives)):
        hint = f" (to read archives, pass {patterns})"
    if here:
        hint += f"; not read: {unread_kinds(here)}"
    return failure(folder, f"no image in this folder{hint}", "missing")


def matches(pattern: str) -> Iterator[str]:
    """Find what matches a pattern, sorted by name; below `**`, folder by folder."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from sorted(glob.iglob(pattern))  # noqa: PTH207 Path.glob refuses absolute patterns
        return
    cut = parts.index("**")
    tail = [part for part in parts[cut + 1 :] if part != "**"] or ["*"]
    head = str(Path(*parts[:cut]))
    # glob.glob would follow links here, and loop on two links to their parent folder.
    for top in matches(head) if glob.has_magic(head) else [head]:
        for parent, folders, _ in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for match in matches(str(Path(glob.escape(parent), *tail))):
                # `**/*` visits each folder anyway.
                if tail != ["*"] or kind_of(match) != "folder":
                    yield match
