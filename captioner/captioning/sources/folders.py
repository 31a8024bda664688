"""Folders and patterns -> the images in them, in a fixed order; links to folders are not followed.

The names of one folder are held in memory, to be sorted, and those that a pattern without `**`
matches; everything else is found as it is asked for.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from captioner.captioning.sources.item import TARS, ZIPS, Item, failure, file_item, kind_of
from captioner.images.decode import SUFFIXES


def folder_images(folder: Path, recursive: bool) -> Iterator[Item]:
    """List the files of a folder that are named like images, in the order of their names.

    Args:
        folder: exists.
        recursive: also look into its folders.

    Yields:
        Each file; a failure for each folder that cannot be listed, and for one without images.
    """
    found = False
    archives: dict[str, None] = {}
    errors: list[OSError] = []

    def unlisted() -> Iterator[Item]:
        while errors:
            error = errors.pop(0)
            yield failure(
                str(Path(error.filename)), f"cannot be listed: {error.strerror}", "unreadable"
            )

    for parent, folders, files in os.walk(folder, onerror=errors.append):
        found = found or bool(errors)
        yield from unlisted()  # those met on the way here
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                found = True
                yield file_item(str(Path(parent, name)))
            elif ending := next((e for e in (*TARS, *ZIPS) if name.lower().endswith(e)), None):
                archives[str(Path(parent, f"*{ending}"))] = None
        if not recursive:
            break
    found = found or bool(errors)
    yield from unlisted()
    if not found:
        hint = "" if recursive else " (--recursive looks into its folders)"
        if archives:
            hint = f" (archives are named themselves: {' '.join(map(repr, archives))})"
        yield failure(str(folder), f"no image in this folder{hint}", "missing")


def matches(pattern: str) -> Iterator[str]:
    """Find what a pattern matches; `**` stands for any number of folders.

    Args:
        pattern: relative or absolute.

    Yields:
        Files and folders in the order of their names; below `**`, folder by folder.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from sorted(glob.iglob(pattern))  # noqa: PTH207 absolute ones too
        return
    cut = parts.index("**")
    tail = [part for part in parts[cut + 1 :] if part != "**"] or ["*"]
    head = str(Path(*parts[:cut]))
    # glob itself would follow links here, and never come back from two that lead to their parent.
    for top in matches(head) if glob.has_magic(head) else [head]:
        for parent, folders, _ in os.walk(top):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for found in matches(str(Path(glob.escape(parent), *tail))):
                # `**/*` meets the content of each folder anyway.
                if tail != ["*"] or kind_of(found) != "folder":
                    yield found
