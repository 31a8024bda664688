"""What the user points at -> image files, in a fixed order, each named."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from captioner.errors import ImageError
from captioner.images import SUFFIXES


def list_images(
    sources: Sequence[str], *, recursive: bool = False, stdin: Iterable[str] = ()
) -> Iterator[Path | tuple[str, ImageError]]:
    """Find the images meant by files, folders, globs and `-`.

    Args:
        sources: what the user typed; `-` stands for the lines of stdin.
        recursive: also look into folders of folders.
        stdin: paths, one a line.

    Yields:
        Each file; or, for what leads to none, its name and what is wrong with it. A folder's
        files come in the order of their names, and only those named like images.
    """
    for source in sources:
        if source == "-":
            names = (line.rstrip("\n") for line in stdin)
            yield from list_images([n for n in names if n and n != "-"], recursive=recursive)
            continue
        # os.path answers "no" where pathlib raises: names too long, folders not to be entered.
        if os.path.isdir(source):  # noqa: PTH112
            yield from _folder(Path(source), recursive)
        elif os.path.lexists(source):
            yield Path(source)
        elif glob.has_magic(source):
            found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 absolute ones too
            if not found:
                yield source, ImageError("no file matches this pattern", kind="missing")
            yield from list_images(found, recursive=recursive)
        else:
            yield source, ImageError("no such file", kind="missing")


def _folder(folder: Path, recursive: bool) -> Iterator[Path | tuple[str, ImageError]]:
    found = False
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES:
                found = True
                yield Path(parent, name)
        if not recursive:
            break
    for error in errors:
        message = f"cannot be listed: {error.strerror}"
        yield str(Path(error.filename)), ImageError(message, kind="unreadable")
    if not found and not errors:
        hint = "" if recursive else " (--recursive looks into its folders)"
        yield str(folder), ImageError(f"no image in this folder{hint}", kind="missing")
