"""ZIP archives -> their images, in the order of their list of members, which is held in memory."""

from __future__ import annotations

import stat
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from captioner.captioning.sources.item import Item, failure
from captioner.captioning.sources.members import is_image, name_in, refusal
from captioner.errors import ImageError
from captioner.system.files import no_stream

_ENCRYPTED = 0x1  # the bit of a member's flags
_HEADER = 30  # bytes before a member's name, which come before its content
# Bytes asked for at a time. zipfile unpacks at once whatever so many packed bytes hold, up to
# 20,000 times as much in bzip2.
_CHUNK = 2**14


class _Archive:
    """An open archive, which its members share until the last of them is gone."""

    def __init__(self, name: str):
        file = open(name, "rb", opener=no_stream)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self.members = zipfile.ZipFile(file)


@dataclass(frozen=True, slots=True)
class Packed:
    """A member of an archive: whoever captions it unpacks it.

    Attributes:
        archive: that it is in.
        member: which.
    """

    archive: _Archive
    member: zipfile.ZipInfo

    @property
    def size(self) -> int:
        """Declared, in bytes; it never yields more."""
        return self.member.file_size

    def read_bytes(self) -> bytes:
        """Return the content; any number of threads may ask for some at a time.

        Raises:
            ImageError: if it is damaged.
        """
        content = BytesIO()
        try:
            with self.archive.members.open(self.member) as file:
                while part := file.read(_CHUNK):
                    content.write(part)
        # BadZipFile for a wrong checksum, zlib.error, EOFError, NotImplementedError, OSError, ...
        except Exception as error:
            reason = " ".join(str(error).split()) or "cut off"
            raise ImageError(f"damaged member: {reason}") from error
        return content.getvalue()


def zip_images(name: str) -> Iterator[Item]:
    """List the images of a ZIP archive; none is read here.

    Args:
        name: of the file.

    Yields:
        Images with what reads them; a failure for each that is refused, and for an archive that
        is damaged or without any image.
    """
    try:
        archive = _Archive(name)
    # Damaged lists of members raise BadZipFile, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        yield failure(name, f"cannot be read as a ZIP archive: {reason}")
        return
    found = False
    overlapping = _overlapping(archive.members)
    for member in archive.members.infolist():
        if is_image(member.filename) and not member.is_dir():
            found = True
            yield _item(name, archive, member, overlapping)
    if not found:
        yield failure(name, "no image in this archive", "missing")


def _item(
    name: str, archive: _Archive, member: zipfile.ZipInfo, overlapping: frozenset[int]
) -> Item:
    full = name_in(name, member.filename)
    if refused := refusal(member.filename, member.file_size, member.compress_size):
        return Item(full, refused)
    if member.flag_bits & _ENCRYPTED:
        return failure(full, "encrypted", "unreadable")
    if stat.S_ISLNK(member.external_attr >> 16):
        return failure(full, "a link to another file, which is not followed", "unreadable")
    if member.header_offset in overlapping:
        return failure(full, "its bytes are also another member's: a bomb", "too_large")
    return Item(full, Packed(archive, member))


def _overlapping(archive: zipfile.ZipFile) -> frozenset[int]:
    """Find members that share bytes with others, by where they begin."""
    spans = sorted(
        (member.header_offset, member.header_offset + _HEADER + member.compress_size)
        for member in archive.infolist()
    )
    shared, last, end = set(), 0, 0
    for start, stop in spans:
        if start < end:
            shared |= {last, start}
        if stop > end:
            last, end = start, stop
    return frozenset(shared)
