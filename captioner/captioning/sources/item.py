"""One image to caption, not yet read; and the check of which files may be opened."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from captioner.errors import ImageError, ImageErrorKind
from captioner.images.content import ImageFile
from captioner.system.addresses import PACKAGES, scheme_of, shown

ZIPS = (".zip",)
NO_FILE = "a pipe or a device, not a file"
Kind = Literal["file", "folder", "pipe", "device", "nothing"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image to caption, not yet decoded."""

    name: str  # the path that the user or a table gave, or `archive/member`
    source: ImageFile | bytes | ImageError  # the error if there is no image
    written: str = ""  # the name in a table, if the file has another spelling
    image_id: str = ""  # in a table; in quotation marks if it is a text of digits, see `text_id`


def failure(name: str, reason: str, kind: ImageErrorKind = "damaged") -> Item:
    """Return an item for a name without an image; the reason does not repeat the name."""
    return Item(name, ImageError(reason, kind=kind))


def unreachable(address: str) -> Item:
    """Return the item of a name with a scheme that no store has: `file://`, or a failure."""
    if scheme_of(address) == "file":
        return file_item(unquote(urlsplit(address).path))
    return failure(shown(address), f"no such file; read are {', '.join(PACKAGES)}", "missing")


def kind_of(path: str | Path) -> Kind:
    """Return what a path is, following links; a socket counts as a device."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 also takes names that are too long
    except (OSError, ValueError):  # ValueError: a zero byte, or a lone surrogate from JSON
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device"


def text_id(image_id: str) -> str | None:
    """Return the text of an id that looks like a number and is none, or None.

    TextCaps names images by hexadecimal numbers, a few of them without a letter; its server
    wants text.
    """
    match = re.fullmatch(r'"(\d+)"', image_id)
    return match[1] if match else None


def file_item(name: str) -> Item:
    """Return the item of a file that the user did not type.

    Pipes, devices and links to them are refused: reading `/dev/zero`, or a pipe without a writer,
    never ends.
    """
    if kind_of(name) in ("pipe", "device"):
        return failure(name, NO_FILE, "unreadable")
    return Item(name, Path(name))
