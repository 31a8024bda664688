"""Tar archives and tar streams -> their images, in one pass, never unpacked to disk.

WebDataset shards are such archives. In an uncompressed file only the headers are read here, so
several processes of a job read each image once.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from io import BufferedIOBase, BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, cast

from captioner.captioning.sources.item import Item, failure
from captioner.errors import ImageError
from captioner.images.content import Content, Slice, bomb, name_in
from captioner.images.members import is_image, refusal
from captioner.images.remote_content import RemoteSlice
from captioner.images.tars import compression, headers, open_tar
from captioner.system.addresses import COMMAND, shown
from captioner.system.files import no_stream
from captioner.system.foreign import plain
from captioner.system.memory import Held, Memory
from captioner.system.object_store import PIECE, Entry, UnreachableError, opened, read

HEADERS = 2**14  # bytes that a request for a header in object storage fetches
_CHUNK = 2**18  # bytes per read


def tar_images(
    name: str, unread: Counter[str], *, stream: bool = False, memory: Memory | None = None
) -> Iterator[Item]:
    """List the images of a tar file or a named pipe, in the order of the archive.

    Its first bytes tell the compression. A `stream` is a pipe, allowed only if the user typed its
    name. `memory` is claimed before a member's bytes are read. If the archive is damaged, truncated
    or has no images, a failure follows.
    """
    try:
        with open(name, "rb", opener=None if stream else no_stream) as file:
            length = os.fstat(file.fileno()).st_size if file.seekable() else None
            yield from _members(name, unread, file, memory, length, partial(Slice, Path(name)))
    except OSError as error:
        yield failure(name, f"cannot be read: {error.strerror or plain(error)}", "unreadable")
    except ImageError as error:
        yield Item(name, error)


def remote_tar_images(
    entry: Entry, unread: Counter[str], *, memory: Memory | None = None
) -> Iterator[Item]:
    """List the images of a tar file at an address; see `tar_images`.

    Of an uncompressed file, the headers are read here; of a compressed one, everything, once.
    """
    name, slice_of = shown(entry.address), partial(RemoteSlice, entry.address)
    try:
        head = read(entry.address, 0, min(HEADERS, entry.size or 0)) if entry.has_ranges else b""
        is_stream = not entry.has_ranges or compression(head) is not None
        ahead, length = (PIECE, None) if is_stream else (HEADERS, entry.size)
        with opened(entry, is_stream=is_stream, ahead=ahead, known=head) as file:
            yield from _members(name, unread, file, memory, length, slice_of)
    except UnreachableError as error:
        yield failure(name, f"cannot be read: {error}", "unreadable")
    except ImageError as error:
        yield Item(name, error)


def command_images(
    source: str, unread: Counter[str], *, memory: Memory | None = None
) -> Iterator[Item]:
    """List the images of a tar stream that a shell command writes; see `tar_images`.

    The user typed the source, `pipe:` and the command. An exit status other than 0 is a failure.
    """
    try:
        process = subprocess.Popen(
            source.removeprefix(COMMAND),
            shell=True,
            stdin=subprocess.DEVNULL,  # the stdin of captioner may hold paths
            stdout=subprocess.PIPE,
        )
    except (OSError, ValueError) as error:
        yield failure(source, f"the command cannot be started: {plain(error)}", "unreadable")
        return
    problem: ImageError | None = None
    with process:
        stream = cast(BufferedReader, process.stdout)
        try:
            try:
                yield from _members(source, unread, stream, memory)
                while stream.read(tarfile.RECORDSIZE):
                    pass  # so that the command does not fail to write
            except ImageError as error:
                problem = error
            # The exit status counts only if the command wrote everything.
            if not stream.read(1) and (status := process.wait()):
                more = f"; {problem}" if problem else ""
                problem = ImageError(f"the command failed with exit status {status}{more}")
        finally:
            process.kill()
    if problem:
        yield Item(source, problem)


def _members(
    name: str,
    unread: Counter[str],
    file: BufferedReader,
    memory: Memory | None,
    length: int | None = None,
    slice_of: Callable[[int, int, str], Content] | None = None,
) -> Iterator[Item]:
    """List the images of one stream; raise `ImageError` at its end if it has none or is damaged.

    `length` is the size of the file in bytes, None of a stream; `slice_of` makes a member that is
    read later from its offset, size and name.
    """
    has_images = False
    try:
        packed = _Stream(file)
        with _unpacked(file, packed) as stream:
            seekable = stream is file and length is not None
            stored = None if stream is file else lambda: packed.count
            length = length if seekable else None
            with open_tar(
                file if seekable else _Stream(stream, patience=8),  # it needs two
                "r:" if seekable else "r|",
            ) as archive:
                images = (each for each in headers(archive, length) if is_image(each.name, unread))
                for member in images:
                    item = None  # free the previous item
                    if item := _item(name, archive, member, length, stored, memory, slice_of):
                        has_images = True
                        yield item
    except UnreachableError:
        raise
    # tarfile and the decompressors raise nearly anything on damaged input (TarError, OSError,
    # EOFError, zlib.error, ValueError, RecursionError, ...).
    except Exception as error:
        raise ImageError(f"damaged archive: {plain(error)}") from error
    if not has_images:
        raise ImageError("no image in this archive", kind="missing")


def _item(
    name: str,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    length: int | None,
    stored: Callable[[], int] | None,
    memory: Memory | None,
    slice_of: Callable[[int, int, str], Content] | None,
) -> Item | None:
    full = name_in(name, member.name)
    if member.issym() or member.islnk():
        return failure(full, "a link to another file; links are not followed", "unreadable")
    if not member.isreg():
        return None
    sparse = member.issparse()
    stored_size = sum(size for _, size in cast(Any, member).sparse) if sparse else None
    if refused := refusal(member.name, member.size, stored_size):
        return Item(full, refused)
    if length is not None and slice_of and not sparse:
        if member.offset_data + member.size > length:
            raise tarfile.ReadError("truncated")
        return Item(full, slice_of(member.offset_data, member.size, member.name))
    if memory:
        memory.claim(member.size)
    content = None
    try:
        content = _content(archive, member, stored)
    finally:
        if memory and not isinstance(content, bytes):
            memory.give_back(member.size)
    if isinstance(content, ImageError):
        return Item(full, content)
    return Item(full, Held(content, memory, member.size) if memory else content)


def _content(
    archive: tarfile.TarFile, member: tarfile.TarInfo, stored: Callable[[], int] | None
) -> bytes | ImageError:
    file = archive.extractfile(member)
    assert file is not None
    content, before = BytesIO(), stored() if stored else 0
    while chunk := file.read(_CHUNK):
        content.write(chunk)
        if stored and (refused := bomb(content.tell(), stored() - before + _CHUNK)):
            return refused
    return content.getvalue()


def _unpacked(file: BufferedReader, packed: _Stream) -> AbstractContextManager[BufferedIOBase]:
    """Open the decompressed stream; closing it leaves the file open."""
    # tarfile's own detection, `r|*`, reads only the first of several concatenated gzip or xz
    # streams (as from pigz, bgzip or cat) and verifies no checksums.
    match compression(file.peek(10)):
        case "gzip":
            return gzip.GzipFile(fileobj=packed)
        case "bzip2":
            return bz2.BZ2File(packed)
        case "xz":
            return lzma.LZMAFile(cast(IO[bytes], packed))
    return nullcontext(file)


class _Stream(BufferedIOBase):
    """A stream that counts the bytes read, and raises an error after `patience` empty reads.

    tarfile skips a member block by block even at the end, and a header may declare petabytes.
    """

    def __init__(self, stream: BufferedIOBase, patience: float = math.inf) -> None:
        self.stream = stream
        self.count = 0
        self.patience = patience

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        self.patience -= not data
        if self.patience < 0:
            raise EOFError("truncated")
        return data
