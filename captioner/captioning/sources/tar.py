"""Tar archives and streams of them -> their images, in one pass, never unpacked to disk.

WebDataset shards are such archives. Of a file without compression only the headers are read here:
the images are left to whoever captions them, so that several processes, each with its share of a
job, read each image once. tarfile reads the headers; what it would pass over in silence, an
archive that is cut off or damaged in the middle, is an error here.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, Self, cast

from captioner.captioning.sources.item import Item, Slice, failure
from captioner.captioning.sources.members import bomb, is_image, name_in, refusal
from captioner.errors import ImageError
from captioner.system.files import no_stream
from captioner.system.foreign import plain
from captioner.system.memory import Held, Memory

COMMAND = "pipe:"  # WebDataset's mark of a command that writes a tar stream
_CHUNK = 2**18  # bytes that are read at a time
MAX_HEADER = 2**20  # bytes of a long name or of pax records, which tarfile reads at once
_READ_AT_ONCE = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def tar_images(name: str, *, stream: bool = False, memory: Memory | None = None) -> Iterator[Item]:
    """List the images of a tar file or of a named pipe that carries one.

    Args:
        name: of the file or the pipe; its compression is known by its first bytes.
        stream: whether it is a pipe, which only the user may name.
        memory: is asked for room before a member's bytes are read.

    Yields:
        Images in the order of the archive, with their bytes or where they lie; then, if it is
        damaged, cut off or without any image, one failure.
    """
    try:
        with open(name, "rb", opener=None if stream else no_stream) as file:
            yield from _members(name, file, memory)
    except OSError as error:
        yield failure(name, f"cannot be read: {error.strerror or plain(error)}", "unreadable")
    except ImageError as error:
        yield Item(name, error)


def command_images(source: str, *, memory: Memory | None = None) -> Iterator[Item]:
    """List the images of a tar stream that a shell command writes.

    Args:
        source: `pipe:` and the command, from the hands of the user and of nobody else.
        memory: see `tar_images`.

    Yields:
        As `tar_images`; a command that ends with another status than 0 is one failure.
    """
    try:
        process = subprocess.Popen(
            source.removeprefix(COMMAND),
            shell=True,
            stdin=subprocess.DEVNULL,  # ours may hold paths
            stdout=subprocess.PIPE,
        )
    except (OSError, ValueError) as error:
        yield failure(source, f"the command cannot be started: {plain(error)}", "unreadable")
        return
    assert process.stdout is not None
    problem: ImageError | None = None
    try:
        with os.fdopen(process.stdout.fileno(), "rb", closefd=False) as stream:
            try:
                yield from _members(source, stream, memory)
            except ImageError as error:
                problem = error
            if problem is None:  # a command that could not write everything would fail
                while stream.read(tarfile.RECORDSIZE):
                    pass
            # Whether the command failed is told by its status only if it was let to its end.
            if not stream.read(1) and (status := process.wait()):
                more = f"; {problem}" if problem else ""
                problem = ImageError(f"the command ended with status {status}{more}")
    finally:
        process.stdout.close()
        process.kill()
        process.wait()
    if problem:
        yield Item(source, problem)


def _members(name: str, file: BufferedReader, memory: Memory | None) -> Iterator[Item]:
    """List the images of one stream.

    Raises:
        ImageError: at the end, if it is damaged or without any image.
    """
    found = False
    try:
        packed = _Counting(file)
        with _unpacked(file, packed) as stream:
            lies_open = stream is file and file.seekable()
            stored = None if stream is file else lambda: packed.count
            length = os.fstat(file.fileno()).st_size if lies_open else None
            with tarfile.open(
                fileobj=file if lies_open else _Ending(stream),
                mode="r:" if lies_open else "r|",
                tarinfo=_Header,
                ignore_zeros=True,  # also reads what `cat a.tar b.tar` writes
                encoding="utf-8",
                errors="surrogateescape",
            ) as archive:
                for member in _headers(archive, length):
                    item = None  # what was yielded before need not be kept
                    if is_image(member.name):
                        item = _item(name, archive, member, length, stored, memory)
                    if item:
                        found = True
                        yield item
    # tarfile and the decompressors raise nearly anything on damaged input (TarError, OSError,
    # EOFError, zlib.error, ValueError, RecursionError, ...).
    except Exception as error:
        raise ImageError(f"damaged archive: {plain(error)}") from error
    if not found:
        raise ImageError("no image in this archive", kind="missing")


def _headers(archive: tarfile.TarFile, length: int | None) -> Iterator[tarfile.TarInfo]:
    """Yield the members, and see to it that the archive has an end.

    Args:
        archive: just opened.
        length: of the file, in bytes; None: of a stream.

    Raises:
        tarfile.ReadError: if it ends without the zero blocks that mark an end.
    """
    end = 0
    while True:
        try:
            member = archive.next()
        except tarfile.TarError:
            if archive.offset - end >= 2 * tarfile.BLOCKSIZE:
                return  # what follows the mark is not part of the archive
            raise
        if member is None:
            break
        if member.size < 0:  # out of a pax record; reading on would go backwards
            raise tarfile.ReadError("a member of negative size")
        archive.members.clear()  # type: ignore[attr-defined]  # it would remember them all
        end = archive.offset
        yield member
        if length is not None and end > length:
            raise tarfile.ReadError("it is cut off")
    if archive.offset == end:
        raise tarfile.ReadError("it is cut off: there is no end mark")


def _item(
    name: str,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    length: int | None,
    stored: Callable[[], int] | None,
    memory: Memory | None,
) -> Item | None:
    full = name_in(name, member.name)
    if member.issym() or member.islnk():
        return failure(full, "a link to another file, which is not followed", "unreadable")
    if not member.isreg():
        return None
    sparse = member.issparse()
    parts = sum(size for _, size in cast(Any, member).sparse) if sparse else None
    if refused := refusal(member.name, member.size, parts):
        return Item(full, refused)
    if length is not None and not sparse:
        if member.offset_data + member.size > length:
            raise tarfile.ReadError("it is cut off")
        return Item(full, Slice(Path(name), member.offset_data, member.size))
    if memory:
        memory.claim(member.size)
    try:
        content = _content(archive, member, stored)
    except BaseException:
        if memory:
            memory.give_back(member.size)
        raise
    if isinstance(content, ImageError):
        if memory:
            memory.give_back(member.size)
        return Item(full, content)
    return Item(full, Held(content, memory, member.size) if memory else content)


def _content(
    archive: tarfile.TarFile, member: tarfile.TarInfo, stored: Callable[[], int] | None
) -> bytes | ImageError:
    file = archive.extractfile(member)
    assert file is not None
    content, before = BytesIO(), stored() if stored else 0
    while part := file.read(_CHUNK):
        content.write(part)
        if stored and (refused := bomb(content.tell(), stored() - before + _CHUNK)):
            return refused
    return content.getvalue()


def _unpacked(file: BufferedReader, packed: _Counting) -> AbstractContextManager[BufferedIOBase]:
    """Open the stream without its compression, if it has any; the file itself stays open."""
    # tarfile's own detection, `r|*`, reads only the first of several joined gzip or xz streams
    # (pigz, bgzip and cat write such) and checks no checksums.
    start = file.peek(10)
    if start.startswith(b"\x1f\x8b\x08"):
        return gzip.GzipFile(fileobj=packed)
    if start.startswith(b"BZh") and start[4:10] == b"1AY&SY":
        return bz2.BZ2File(packed)
    if start.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(cast(IO[bytes], packed))
    return nullcontext(file)


class _Counting(BufferedIOBase):
    """A compressed stream that knows how many bytes were read of it."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self.stream = stream
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        return data


class _Ending(BufferedIOBase):
    """A stream that is not read on and on behind its end.

    tarfile skips a member block by block, even where nothing is left, and a header may declare
    more bytes than could be skipped in a lifetime.
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self.stream = stream
        self.patience = 8  # reads of nothing; tarfile needs two to see that an archive is over

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.stream.read(size)
        self.patience -= not data
        if self.patience < 0:
            raise EOFError("it is cut off")
        return data


class _Header(tarfile.TarInfo):
    """A header; one that makes no sense is an error, where tarfile would look for the next."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if not buf.strip(b"\0"):
            return super().frombuf(
                buf, encoding, errors
            )  # raises: this is an end, or a part of one
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0 or (header.type in _READ_AT_ONCE and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header
