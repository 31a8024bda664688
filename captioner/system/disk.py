"""Errors of writing that name their file, and what to do about them."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = ("No space left", "quota", "File too large", "is full")
TEMPORARY = re.compile(r"\.captioner(-[0-9]+-\w+\.part|\.lock)\b")
LEAST_FREE = 2**16  # bytes
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
STDOUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # that no file is named for


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in any write error of the block.

    Python names no file when a disk is full. A temporary file gets the name of its final place.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # of stdout
    except OSError as error:
        named = error.filename
        if named is None or TEMPORARY.search(str(named)):
            error.filename, error.filename2 = str(path), None
        raise


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether the disk of a folder is full; errors of SQLite do not always say so."""
    if any(words in str(error) for words in FULL):
        return True
    with suppress(OSError):
        return shutil.disk_usage(folder).free < LEAST_FREE
    return False


def advice(error: BaseException) -> str:
    """Return advice if the disk is full or a permission is missing; else an empty string."""
    if any(words in str(error) for words in FULL):
        return "; free some space"
    return "; check its permissions" if getattr(error, "errno", None) in DENIED else ""
