"""Images in object storage: whole objects, and members of archives, read by ranges."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from captioner.errors import ImageError
from captioner.images.content import name_in
from captioner.images.decode import MAX_BYTES, check_bytes
from captioner.system.addresses import scheme_of, shown
from captioner.system.object_store import WEB, Entry, UnreachableError, look, opened, read

USUAL = 2**24  # bytes; an estimate where the size is unknown before reading
_START = b"PK\x03\x04"  # of a ZIP member
_HEADER = 30  # bytes of a ZIP member's header before its name
_EXTRA = 2**6  # bytes of a ZIP member's extra fields that are read with it
_CHUNK = 2**14  # bytes per read of a ZIP member, see `sources.zip`


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A picture at an address; `known_size` in bytes, if a listing told it."""

    address: str
    known_size: int | None = None

    def __str__(self) -> str:
        return shown(self.address)

    @property
    def size(self) -> int:
        """Bytes of the content, or an estimate."""
        return USUAL if self.known_size is None else min(self.known_size, MAX_BYTES)

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        try:
            if self.known_size is not None:
                return _whole(self.address, self.known_size)
            entry = look(self.address)
            if entry.is_folder:
                raise ImageError("a folder, not a file", kind="missing")
            if entry.size is not None:
                return _whole(self.address, entry.size)
            with opened(entry, is_stream=True) as stream:
                content = stream.read(MAX_BYTES + 1)
            check_bytes(len(content))
            return content
        except UnreachableError as error:
            raise error_of(error) from error


@dataclass(frozen=True, slots=True)
class RemoteSlice:
    """An uncompressed member of an archive at an address; offset and size in bytes."""

    address: str
    start: int
    size: int
    member: str = ""  # its name in the archive

    def __str__(self) -> str:
        return name_in(shown(self.address), self.member)

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        content = _part(self.address, self.start, self.start + self.size)
        if len(content) < self.size:
            raise ImageError("the archive was truncated while it was read", kind="damaged")
        return content


@dataclass(frozen=True, slots=True)
class RemotePacked:
    """A member of a ZIP archive at an address, unpacked when it is captioned."""

    address: str
    member: zipfile.ZipInfo

    def __str__(self) -> str:
        return name_in(shown(self.address), self.member.filename)

    @property
    def size(self) -> int:
        """Declared size, in bytes; zipfile never unpacks more."""
        return self.member.file_size

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        start, stored = self.member.header_offset, self.member.compress_size
        usual = _HEADER + len(self.member.filename.encode()) + _EXTRA + stored
        packed = _part(self.address, start, start + usual)
        try:
            if packed[:4] != _START:
                raise zipfile.BadZipFile("Bad magic number for file header")
            begin = _HEADER + sum(struct.unpack("<HH", packed[26:_HEADER]))
            if begin + stored > len(packed):  # long extra fields, or the archive ends here
                packed += _part(self.address, start + len(packed), start + begin + stored)
            content, body = io.BytesIO(), io.BytesIO(packed[begin : begin + stored])
            with zipfile.ZipExtFile(body, "r", self.member) as file:
                while chunk := file.read(_CHUNK):
                    content.write(chunk)
        except ImageError:
            raise
        except Exception as error:  # as in `sources.zip`
            reason = " ".join(str(error).split()) or "truncated"
            raise ImageError(f"damaged member: {reason}") from error
        return content.getvalue()


def error_of(error: UnreachableError) -> ImageError:
    """Return the error of an image that a store does not give."""
    if error.is_missing:
        return ImageError(str(error), kind="missing")
    return ImageError(f"cannot be read: {error}", kind="unreadable")


def _whole(address: str, size: int) -> bytes:
    check_bytes(size)
    is_web = scheme_of(address) in WEB  # it may give no ranges
    return read(address, 0, None if is_web else size)  # without one, s3fs asks for the size again


def _part(address: str, start: int, end: int) -> bytes:
    if start >= end:
        return b""
    try:
        return read(address, start, end)
    except UnreachableError as error:
        raise error_of(error) from error


def remote_file(entry: Entry) -> RemoteFile:
    """Return the picture of a listing."""
    is_exact = scheme_of(entry.address) not in WEB  # a page of links has no sizes
    return RemoteFile(entry.address, entry.size if is_exact else None)
