"""ZIP archives -> their images, in the order of the archive's directory."""

from __future__ import annotations

import stat
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO

from captioner.captioning.sources.item import Item, failure
from captioner.errors import ImageError
from captioner.images.content import Content, name_in
from captioner.images.members import is_image, refusal
from captioner.images.remote_content import RemotePacked
from captioner.system.addresses import shown
from captioner.system.files import no_stream
from captioner.system.foreign import plain
from captioner.system.object_store import Entry, UnreachableError, opened, read

_ENCRYPTED = 0x1  # bit of a member's flags
DIRECTORY = 2**16  # bytes that a request for the directory in object storage fetches
_HEADER = 30  # bytes of a member's header before its name and content
# Bytes per read. zipfile unpacks each chunk completely: in bzip2, up to 20,000 times its size.
_CHUNK = 2**14


class _Archive:
    """An open archive; it is closed when its last member is freed."""

    def __init__(self, name: str):
        file = open(name, "rb", opener=no_stream)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self.members = zipfile.ZipFile(file)


@dataclass(frozen=True, slots=True)
class Packed:
    """A member of an archive, unpacked when it is captioned."""

    archive: _Archive
    member: zipfile.ZipInfo

    @property
    def size(self) -> int:
        """Declared size, in bytes; zipfile never unpacks more."""
        return self.member.file_size

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`; safe to call from several threads."""
        content = BytesIO()
        try:
            with self.archive.members.open(self.member) as file:
                while chunk := file.read(_CHUNK):
                    content.write(chunk)
        # BadZipFile for a wrong checksum, zlib.error, EOFError, NotImplementedError, OSError, ...
        except Exception as error:
            reason = " ".join(str(error).split()) or "truncated"
            raise ImageError(f"damaged member: {reason}") from error
        return content.getvalue()


def zip_images(name: str, unread: Counter[str]) -> Iterator[Item]:
    """List the images of a ZIP archive, not yet read, and a failure for each refused member."""
    try:
        archive = _Archive(name)
        found = archive.members
    # Damaged lists of members raise BadZipFile, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        yield failure(name, f"cannot be read as a ZIP archive: {reason}")
        return
    yield from _members(name, found, partial(Packed, archive), unread)


def remote_zip_images(entry: Entry, unread: Counter[str]) -> Iterator[Item]:
    """List the images of a ZIP archive at an address; see `zip_images`.

    Only the archive's directory is read here.
    """
    name = shown(entry.address)
    if not entry.has_ranges:
        reason = "a ZIP archive needs a server that gives parts of a file; download it first"
        yield failure(name, reason, "unreadable")
        return
    try:
        size = entry.size or 0
        start = max(0, size - DIRECTORY)
        end = read(entry.address, start, size)
        with opened(entry, is_stream=False, ahead=DIRECTORY, known=end, known_at=start) as file:
            found = zipfile.ZipFile(file)
    except UnreachableError as error:
        yield failure(name, f"cannot be read: {error}", "unreadable")
    except Exception as error:  # as in `zip_images`
        yield failure(name, f"cannot be read as a ZIP archive: {plain(error)}")
    else:
        yield from _members(name, found, partial(RemotePacked, entry.address), unread)


def _members(
    name: str,
    archive: zipfile.ZipFile,
    content: Callable[[zipfile.ZipInfo], Content],
    unread: Counter[str],
) -> Iterator[Item]:
    has_images = False
    overlapping = _overlapping(archive)
    for member in archive.infolist():
        if member.filename[-1:] not in ("", "/") and is_image(member.filename, unread):
            has_images = True
            yield _item(name, content, member, overlapping)
    if not has_images:
        yield failure(name, "no image in this archive", "missing")


def _item(
    name: str,
    content: Callable[[zipfile.ZipInfo], Content],
    member: zipfile.ZipInfo,
    overlapping: frozenset[int],
) -> Item:
    full = name_in(name, member.filename)
    if refused := refusal(member.filename, member.file_size, member.compress_size):
        return Item(full, refused)
    if member.flag_bits & _ENCRYPTED:
        return failure(full, "encrypted", "unreadable")
    if stat.S_ISLNK(member.external_attr >> 16):
        return failure(full, "a link to another file; links are not followed", "unreadable")
    if member.header_offset in overlapping:
        return failure(full, "decompression bomb: it overlaps another member", "too_large")
    return Item(full, content(member))


def _overlapping(archive: zipfile.ZipFile) -> frozenset[int]:
    """Return the header offsets of members that overlap others."""
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
