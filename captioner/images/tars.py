"""The headers of a tar archive, one after another.

tarfile reads them, and ignores truncation and damage in the middle; here both are errors.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BufferedIOBase
from typing import IO, Literal, Self, cast

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
MAX_HEADER = 2**20  # bytes of a long name or pax records, which tarfile reads into memory
_READ_AT_ONCE = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def open_tar(file: BufferedIOBase, mode: Literal["r:", "r|"]) -> tarfile.TarFile:
    """Open an uncompressed archive: `r:` from a file, `r|` from a stream."""
    return tarfile.open(
        fileobj=cast(IO[bytes], file),
        mode=mode,
        tarinfo=_Header,
        ignore_zeros=True,  # also reads the output of `cat a.tar b.tar`
        encoding="utf-8",
        errors="surrogateescape",
    )


def compression(start: bytes) -> Literal["gzip", "bzip2", "xz"] | None:
    """Return how a file is compressed, from its first 10 bytes."""
    if start.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        return "bzip2"
    return "xz" if start.startswith(b"\xfd7zXZ") else None


def headers(archive: tarfile.TarFile, length: int | None) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a file of `length` bytes, or a stream; check that it has an end mark."""
    end = 0
    while True:
        try:
            member = archive.next()
        except tarfile.TarError:
            if archive.offset - end >= 2 * tarfile.BLOCKSIZE:
                return  # data after the end mark is not part of the archive
            raise
        if member is None:
            break
        if member.size < 0:  # from a pax record; reading on would go backwards
            raise tarfile.ReadError("a member has a negative size")
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all headers
        end = archive.offset
        yield member
        if length is not None and end > length:
            raise tarfile.ReadError("truncated")
    if archive.offset == end:
        raise tarfile.ReadError("truncated: there is no end mark")


class _Header(tarfile.TarInfo):
    """A header; an invalid one is an error, while tarfile would search for the next."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # an end mark or part of one
                raise
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or (header.type in _READ_AT_ONCE and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header has {header.size:,} bytes")
        return header
