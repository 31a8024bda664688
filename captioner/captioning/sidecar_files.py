"""How captions lie in the files beside images: as the text of a file, or as properties in XMP."""

from __future__ import annotations

import os
import re
from pathlib import Path

from captioner.captioning import xmp
from captioner.captioning.sidecar_journal import Texts
from captioner.system.escapes import NOT_UTF8
from captioner.system.files import no_stream, whole_file
from captioner.system.foreign import plain

FORMS = ("txt", "caption", "xmp")  # names of formats, and endings of their files
MOST_BYTES = 2**26
_BOM = "\ufeff"


class UnusableError(ValueError):
    """A file beside an image cannot be read or changed; the message says why."""


def place_of(image: Path, form: str) -> Path:
    """Return the file beside an image: `a.txt`; in XMP `a.jpg.xmp`, as darktable, if it exists."""
    own = image.with_name(f"{image.name}.{form}")
    return own if form == "xmp" and os.path.lexists(own) else image.with_suffix(f".{form}")


def read_texts(place: Path, form: str) -> Texts | None:
    """Return the texts of a file; None if there is no file.

    Raises:
        UnusableError: if it is no regular file, or not of its form.
    """
    content = _content(place)
    if content is None:
        return None
    if form == "xmp":
        try:
            return xmp.texts_of(content or xmp.EMPTY)
        except xmp.XmpError as error:
            raise UnusableError(str(error)) from error
    if b"\0" in content:
        raise UnusableError("not a text in UTF-8")
    return (content.decode("utf-8", "surrogateescape"),)


def write_texts(place: Path, form: str, texts: Texts) -> None:
    """Write the texts of a file atomically; other properties of an XMP file stay.

    Raises:
        UnusableError: if the XMP file became another one meanwhile.
    """
    if form == "xmp":
        description, alt = texts
        try:
            content = xmp.with_texts(_content(place) or xmp.EMPTY, (description, alt))
        except xmp.XmpError as error:
            raise UnusableError(str(error)) from error
    else:
        content = texts[0].encode("utf-8", "surrogateescape")
    with whole_file(place, "sidecar") as aside:
        aside.write_bytes(content)


def own_texts(caption: str, form: str) -> Texts:
    """Return the texts of a file that holds only a caption."""
    return (caption, caption) if form == "xmp" else (f"{caption}\n",)


def joined(caption: str, user: Texts, existing: str, form: str) -> Texts:
    """Return the user's texts with the caption before or after each; nothing is added twice.

    Raises:
        UnusableError: if a text is not UTF-8.
    """
    if any(map(NOT_UTF8.search, user)):
        raise UnusableError("not UTF-8")
    end = "" if form == "xmp" else "\n"
    return tuple(_joined(caption, text, existing, end) for text in user)


def _joined(caption: str, text: str, existing: str, end: str) -> str:
    mark = _BOM if text.startswith(_BOM) else ""
    bare = text.removeprefix(_BOM)
    if _holds(bare, caption):
        return text
    parts = (bare, caption) if existing == "append" else (caption, bare)
    first, second = parts[0].rstrip(), parts[1].lstrip()
    comma = ", "
    if not first or not second or second[0] in ",.;:!?":
        comma = ""
    elif first[-1] in ",.;:!?…。":
        comma = " "
    return f"{mark}{f'{first}{comma}{second}'.rstrip()}{end}"


def _holds(text: str, caption: str) -> bool:
    """Return whether a text holds a caption, as whole words."""
    caption = caption.strip()
    before = r"(?<!\w)" if re.match(r"\w", caption) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", caption) else ""
    return re.search(f"{before}{re.escape(caption)}{after}", text) is not None


def _content(place: Path) -> bytes | None:
    try:
        with open(place, "rb", opener=no_stream) as file:
            content = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnusableError(error.strerror or plain(error)) from error
    if len(content) > MOST_BYTES:
        raise UnusableError(f"more than {MOST_BYTES:,} bytes")
    return content
