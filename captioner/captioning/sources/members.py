"""What tar and ZIP archives share: which members are images, and which are refused."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from captioner.errors import ImageError
from captioner.images.decode import SUFFIXES

# Twice what the largest picture that `read_image` decodes takes as RGB, so no image is refused
# that could be captioned; anything above is a mistake or a bomb, and would fill the memory.
MAX_MEMBER = 512 * 2**20
# Pictures of one colour aside, what unfolds to so many times its bytes is a bomb; and small
# ones are let be.
UNFOLDED, TIMES = 2**24, 200
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def is_image(member: str) -> bool:
    """Whether a member is named like an image.

    As in WebDataset, the key ends at the first dot of the base name and is not empty:
    `0001.left.jpg` is an image of `0001`; `._0001.jpg`, which macOS adds, belongs to nothing.
    """
    path = PurePosixPath(member.replace("\\", "/"))
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def refusal(member: str, size: int, stored: int | None = None) -> ImageError | None:
    """Why a member is not read, if there is a reason.

    Args:
        member: its name in the archive.
        size: declared, in bytes.
        stored: bytes that it takes in the archive; None: not known yet.
    """
    # Nothing is ever unpacked, so such a name is harmless here. But it is also the name of the
    # record, which others may take for a path.
    parts = member.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or _DRIVE.match(member):
        return ImageError("member points outside the archive")
    if "\0" in member:
        return ImageError("member has a zero byte in its name")
    if size > MAX_MEMBER:
        message = f"{size:,} bytes, more than the limit of {MAX_MEMBER:,}"
        return ImageError(message, kind="too_large")
    return None if stored is None else bomb(size, stored)


def bomb(size: int, stored: int) -> ImageError | None:
    """Refuse what unfolds to far more bytes than any picture does.

    Args:
        size: unfolded, in bytes.
        stored: in the archive, in bytes.
    """
    if size <= max(UNFOLDED, TIMES * stored):
        return None
    message = f"{size:,} bytes out of {stored:,}: more than {TIMES} times as many are refused"
    return ImageError(message, kind="too_large")


def name_in(archive: str, member: str) -> str:
    """The name of a member's item; `tar c .` puts `./` before every name."""
    return f"{archive}/{member.removeprefix('./')}"
