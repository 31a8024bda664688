"""Files in folders and archives: which are images, and which members are refused."""

from __future__ import annotations

import posixpath
import re
from collections import Counter

from captioner.errors import ImageError
from captioner.images.content import bomb
from captioner.images.decode import SUFFIXES

# Twice the RGB size of the largest picture that `read_image` decodes, so no valid image is refused.
# A larger member is a mistake or a decompression bomb, and would fill the memory.
MAX_MEMBER = 512 * 2**20
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


# Pictures and videos that captioner does not read, unless `SUFFIXES` has them.
_UNREAD = (
    "heic heif hif jxl psd psb svg svgz eps ai xcf kra exr hdr dds dcm jxr wdp hdp bpg flif j2k "
    "jpx jpf qoi pcx sgi xbm xpm icns wmf emf cr2 cr3 crw nef nrw arw sr2 srf dng orf rw2 raf pef "
    "raw rwl 3fr x3f iiq mp4 m4v mov avi mkv webm mpg mpeg wmv 3gp insp insv"
)
UNREAD = frozenset(f".{ending}" for ending in _UNREAD.split()) - SUFFIXES


def is_image(member: str, unread: Counter[str]) -> bool:
    """Whether a file has an image extension; count extensions that captioner does not read.

    As in WebDataset, the key is the base name up to its first dot and must not be empty:
    `0001.left.jpg` has the key `0001`; `._0001.jpg`, a macOS file, has no key.
    """
    name = member.replace("\\", "/").rpartition("/")[2]
    ending = posixpath.splitext(name)[1].lower()
    if name.startswith("."):
        return False
    unread.update([ending] if ending in UNREAD else [])
    return ending in SUFFIXES


def unread_kinds(unread: Counter[str]) -> str:
    """Return what was counted, such as "2 .heic, 1 .jxl"."""
    return ", ".join(f"{count:,} {ending}" for ending, count in unread.most_common())


def refusal(member: str, size: int, stored: int | None = None) -> ImageError | None:
    """Return why a member is refused, from its declared and its stored size in bytes, if known."""
    # Nothing is unpacked, so such a name is harmless here. But the record has the same name, and
    # other programs may use it as a path.
    folders = member.replace("\\", "/").split("/")
    if not folders[0] or ".." in folders or _DRIVE.match(member):
        return ImageError("member name points outside the archive")
    if "\0" in member:
        return ImageError("member name contains a zero byte")
    if size > MAX_MEMBER:
        message = f"{size:,} bytes, more than the limit of {MAX_MEMBER:,}"
        return ImageError(message, kind="too_large")
    return None if stored is None else bomb(size, stored)
