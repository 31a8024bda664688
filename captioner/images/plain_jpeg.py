"""Finds the JPEG files that a decoder in hardware reads as Pillow does.

Those are whole, baseline, upright, grey or YCbCr with 8 bits, and of usual size. Everything else
is left to `read_image`, which also says what is wrong with a file.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

MAX_PIXELS = 2**24  # of a picture, as many as `Preprocess.pixels` resizes by PyTorch
MAX_BYTES = 2**22  # of a file: files wait for their batch in memory
MAX_RATIO = 16  # of the sides
SAMPLINGS = (0x11, 0x21, 0x12, 0x22, 0x41)  # of the brightness: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1
FRAME, SCAN, TABLES, EXIF, ADOBE = 0xC0, 0xDA, 0xDB, 0xE1, 0xEE  # segments
# Huffman tables, restarts, comments, metadata; other frames are progressive, arithmetic, ...
PASSED = frozenset({0xC4, TABLES, 0xDD, 0xFE, *range(0xE0, 0xF0)})
ORIENTATION = 0x0112
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)[^1]')


class Jpeg(NamedTuple):
    """A JPEG that is not yet decoded."""

    data: bytes
    width: int  # pixels
    height: int


def plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> Jpeg | None:
    """Return a JPEG for a decoder in hardware; None: `read_image` is to decode the file.

    Args:
        data: the file.
        max_pixels: limit of width x height.
    """
    if not data.startswith(b"\xff\xd8") or len(data) > MAX_BYTES:
        return None
    try:
        size = _frame(data)
    except (struct.error, IndexError):
        return None
    if size is None or not 0 < size[0] * size[1] <= min(max_pixels, MAX_PIXELS):
        return None
    return Jpeg(data, *size) if max(size) <= MAX_RATIO * min(size) else None


def _frame(data: bytes) -> tuple[int, int] | None:
    """Return the width and the height that the segments before the scan say; None: not plain."""
    place, seen, size, channels = 2, list[bytes](), None, 0
    while True:
        start, marker, length = struct.unpack_from(">BBH", data, place)
        body, place = data[place + 4 : place + 2 + length], place + 2 + length
        if start != 0xFF or len(body) != length - 2:
            return None
        if marker == FRAME and size is None:
            size, channels = _plain_size(body), body[5]
            if size is None:
                return None
        elif marker == SCAN:  # of all channels; it has an end
            whole = body[0] == channels and data.rfind(b"\xff\xd9") >= place
            return size if whole else None
        elif marker not in PASSED or not _plain(marker, body, seen):
            return None


def _plain(marker: int, body: bytes, seen: list[bytes]) -> bool:
    """Whether a segment leaves the pixels and the colours as they are; `seen` collects EXIF."""
    if marker == TABLES:  # of bytes
        return len(body) % 65 == 0 and max(body[::65], default=4) < 4
    if marker == ADOBE and body.startswith(b"Adobe"):
        return body[11] == 1  # YCbCr
    if marker == EXIF and body.startswith(b"Exif\0\0"):
        seen.append(body)
        return len(seen) == 1 and _upright(body[6:])
    return marker != EXIF or not XMP_ORIENTATION.search(body)


def _plain_size(frame: bytes) -> tuple[int, int] | None:
    """Return the width and the height of a frame; None if its colours are not plain."""
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    ids, samplings = tuple(frame[6::3]), tuple(frame[7::3])
    grey = channels == 1 and samplings == (0x11,)
    colours = ids == (1, 2, 3) and samplings[1:] == (0x11, 0x11) and samplings[0] in SAMPLINGS
    plain = bits == 8 and len(frame) == 6 + 3 * channels and (grey or (channels == 3 and colours))
    return (width, height) if plain else None


def _upright(tiff: bytes) -> bool:
    """Whether the first directory of EXIF has no orientation, or the usual one."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for place in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, numbers, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if tag == ORIENTATION:
            return (kind, numbers, value) == (3, 1, 1)
    return True
