"""One image to caption, before anybody looked at it; and what may be opened at all."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from captioner.errors import ImageError, ImageErrorKind
from captioner.system.files import no_stream
from captioner.system.foreign import plain

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
ZIPS = (".zip",)
NO_FILE = "a pipe or a device, not a file"
Kind = Literal["file", "folder", "pipe", "device", "nothing"]


class Remote(Protocol):
    """What lies elsewhere and is read when its turn comes."""

    @property
    def size(self) -> int:
        """Bytes that the content takes, as far as is known before it is read."""

    def read_bytes(self) -> bytes:
        """Return the whole content, or raise `ImageError`."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A member of an archive that lies there as it is: whoever captions it reads it.

    Attributes:
        path: of the archive.
        start: where it begins, in bytes.
        size: in bytes.
    """

    path: Path
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            ImageError: if the archive is not what it was.
        """
        try:
            with open(self.path, "rb", opener=no_stream) as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            message = f"cannot be read: {error.strerror or plain(error)}"
            raise ImageError(message, kind="unreadable") from error
        if len(content) < self.size:
            raise ImageError("the archive was cut off while it was read", kind="damaged")
        return content


@dataclass(frozen=True, slots=True)
class Item:
    """One image to caption: named, not yet decoded.

    Attributes:
        name: as the user or the listing named it; a member of an archive as `archive/member`.
        source: the file; or the bytes of a member that was streamed; or what brings them when
            their turn comes; or what is wrong where the name leads to nothing.
    """

    name: str
    source: Path | bytes | Remote | ImageError


def failure(name: str, reason: str, kind: ImageErrorKind = "damaged") -> Item:
    """Return the item of a name that leads to no image.

    Args:
        name: of the image, or of what should have held some.
        reason: what is wrong; does not repeat the name.
        kind: of the error.
    """
    return Item(name, ImageError(reason, kind=kind))


def unreachable(address: str) -> Item:
    """Return the item of a name with a scheme, such as `s3://`, which is not looked for here."""
    if address.lower().endswith(TARS + ZIPS):
        hint = f"archives elsewhere are not opened; stream it: 'pipe:aws s3 cp {address} -'"
        return failure(address, hint, "unreadable")
    return failure(address, "no such file; addresses are read with --engine ray only", "missing")


def kind_of(path: str | Path) -> Kind:
    """What a path leads to, links followed; a socket counts as a device."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 pathlib has no room for names too long
    except (OSError, ValueError):  # ValueError: a zero byte, or a lone surrogate out of JSON
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device"


def file_item(name: str) -> Item:
    """Return the item of a file that was found, not typed.

    A pipe or a device among the files, or a link to one, is refused: to read `/dev/zero` or a
    pipe that nobody writes to would never end.
    """
    if kind_of(name) in ("pipe", "device"):
        return failure(name, NO_FILE, "unreadable")
    return Item(name, Path(name))
