"""Images that are no files of their own, such as members of archives: read when needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from captioner.errors import ImageError
from captioner.system.files import no_stream
from captioner.system.foreign import plain

# Content that unpacks to more than MAX_RATIO times its size is a decompression bomb, unless it is
# smaller than ALWAYS_ALLOWED bytes.
ALWAYS_ALLOWED, MAX_RATIO = 2**24, 200


@runtime_checkable
class Content(Protocol):
    """The bytes of an image, read when they are needed.

    `str()` gives the image's name, such as `archive/member`. Equal contents have equal hashes.
    """

    @property
    def size(self) -> int:
        """Bytes of the content; an estimate if unknown before reading."""

    def read_bytes(self) -> bytes:
        """Return the whole content, or raise `ImageError`; safe to call from several threads."""


ImageFile: TypeAlias = Path | Content


@dataclass(frozen=True, slots=True)
class Slice:
    """An uncompressed member of an archive; offset and size in bytes."""

    path: Path
    start: int
    size: int
    member: str = ""  # its name in the archive

    def __str__(self) -> str:
        return name_in(str(self.path), self.member)

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        try:
            with open(self.path, "rb", opener=no_stream) as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            message = f"cannot be read: {error.strerror or plain(error)}"
            raise ImageError(message, kind="unreadable") from error
        if len(content) < self.size:
            raise ImageError("the archive was truncated while it was read", kind="damaged")
        return content


def name_in(archive: str, member: str) -> str:
    """Return the name of a member; `tar c .` puts `./` before every name."""
    return f"{archive}/{member.removeprefix('./')}"


def bomb(size: int, stored: int) -> ImageError | None:
    """Return an error for a decompression bomb, from unpacked and stored bytes."""
    if size <= max(ALWAYS_ALLOWED, MAX_RATIO * stored):
        return None
    message = f"decompression bomb: {stored:,} bytes unpack to {size:,}, over {MAX_RATIO} times"
    return ImageError(message, kind="too_large")
