"""ZIP archives -> their images, in the order of their list of members, which is held in memory."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from captioner.files import no_stream
from captioner.inference.sources.item import Item, failure
from captioner.inference.sources.members import is_image, name_in, refusal

_ENCRYPTED = 0x1  # the bit of a member's flags
# Bytes asked for at a time. zipfile unpacks at once whatever so many packed bytes hold, up to
# 20,000 times as much in bzip2.
_CHUNK = 2**14


def zip_images(name: str) -> Iterator[Item]:
    """List the images of a ZIP archive.

    Args:
        name: of the file.

    Yields:
        Images with their bytes; a failure for each that cannot be read, and for an archive that
        is damaged or without any image.
    """
    try:
        file, archive = _opened(name)
    # Damaged lists of members raise BadZipFile, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        yield failure(name, f"cannot be read as a ZIP archive: {reason}")
        return
    found = False
    with file, archive:
        for member in archive.infolist():
            if is_image(member.filename) and not member.is_dir():
                found = True
                yield _item(name, archive, member)
    if not found:
        yield failure(name, "no image in this archive", "missing")


def _opened(name: str) -> tuple[BinaryIO, zipfile.ZipFile]:
    file = open(name, "rb", opener=no_stream)  # noqa: SIM115
    try:
        return file, zipfile.ZipFile(file)
    except BaseException:
        file.close()
        raise


def _item(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Item:
    full = name_in(name, member.filename)
    if reason := refusal(member.filename, member.file_size):
        return failure(full, reason)
    if member.flag_bits & _ENCRYPTED:
        return failure(full, "encrypted", "unreadable")
    if stat.S_ISLNK(member.external_attr >> 16):
        return failure(full, "a link to another file, which is not followed", "unreadable")
    content = bytearray()
    try:
        with archive.open(member) as file:
            # No member yields more bytes than declared, which is within the limit.
            while part := file.read(_CHUNK):
                content += part
    # BadZipFile for a wrong checksum, zlib.error, EOFError, NotImplementedError, OSError, ...
    except Exception as error:
        return failure(full, f"damaged member: {' '.join(str(error).split()) or 'cut off'}")
    return Item(full, bytes(content))
