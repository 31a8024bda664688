"""Files at URIs, such as `s3://bucket/a.jpg`, read through pyarrow by the workers of a cluster."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from captioner.errors import ImageError
from captioner.images.decode import check_bytes, read_file

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class UriFile:
    """A file at a URI, read when it is captioned."""

    size = 2**24  # an estimate: the size is unknown before the file is opened

    def __init__(self, uri: str):
        self.uri = uri

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        parts = urlsplit(self.uri)
        if parts.scheme == "file":  # may be a pipe on this machine
            return read_file(Path(unquote(parts.path)))
        folder, _, name = parts.path.rpartition("/")
        try:
            files, base = _file_system(parts._replace(path=folder or "/").geturl())
            with files.open_input_file(f"{base.rstrip('/')}/{unquote(name)}") as file:
                check_bytes(file.size())
                return bytes(file.read())
        except ImageError:
            raise
        # OSError, ArrowInvalid for an unknown scheme, ImportError, ...
        except Exception as error:
            message = f"cannot be read: {last_line(error)}"
            raise ImageError(message, kind="unreadable") from error


@lru_cache(maxsize=64)
def _file_system(folder: str) -> tuple[Any, str]:
    """Connect to the file system of a folder; cached, because connecting is slow."""
    from pyarrow.fs import FileSystem

    return cast("tuple[Any, str]", FileSystem.from_uri(folder))


def last_line(error: BaseException) -> str:
    """Return the last line of an error message; long ones begin with tracebacks."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
