"""Image files as no library would write them: made by hand, or made and then spoilt."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, BLACK, YELLOW = (255, 255, 255), (0, 0, 0), (255, 255, 0)
UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, YELLOW]], np.uint8)
BLOCK = 16  # pixels of a colour's side; JPEG needs whole blocks to keep colours apart
ORIENTATION = 0x0112
EXIF = b"Exif\0\0"
# What the EXIF standard calls row 0 and column 0, as the array a camera would have stored.
STORED: dict[int, Callable[[Any], Any]] = {
    1: lambda up: up,  # row 0 at the top, column 0 at the left
    2: lambda up: up[:, ::-1],  # top, right
    3: lambda up: up[::-1, ::-1],  # bottom, right
    4: lambda up: up[::-1],  # bottom, left
    5: lambda up: up.swapaxes(0, 1),  # left, top
    6: lambda up: up[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda up: up[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda up: up[::-1].swapaxes(0, 1),  # left, bottom
}
Pixels = NDArray[np.uint8]


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def blocks(layout: Pixels = UPRIGHT) -> Image.Image:
    """Draw a layout, each colour a block."""
    return Image.fromarray(np.ascontiguousarray(layout).repeat(BLOCK, 0).repeat(BLOCK, 1))


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (BLOCK, BLOCK)) -> Image.Image:
    """Draw one colour."""
    return Image.new(mode, size, colour)


def one(*colour: int) -> Pixels:
    """Return the layout of a single colour."""
    return np.array([[colour]], np.uint8)


def noise(side: int = 40) -> Image.Image:
    """Draw noise, whose files are as long as files get."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    """Return a JPEG as true to its colours as they come."""
    settings = {"quality": 100, "subsampling": 0} | options
    return encode(image or blocks(), "JPEG", **settings)


def turned(orientation: int, format: str = "JPEG") -> bytes:
    """Return `UPRIGHT` as a camera held in some way stores it, and says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = blocks(STORED.get(orientation, STORED[1])(UPRIGHT))
    if format == "JPEG":
        return jpeg(image, exif=exif)
    return encode(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


def ycck() -> bytes:
    """Return `UPRIGHT` as Photoshop's YCCK JPEG, which nothing at hand can write.

    It is YCbCr of the inks, then black, all inverted; Pillow inverts what it is given as CMYK.
    """
    inks = Image.fromarray(255 - np.asarray(blocks())).convert("YCbCr")
    channels = [255 - np.asarray(inks), np.zeros((inks.height, inks.width, 1), np.uint8)]
    data = bytearray(jpeg(Image.fromarray(np.concatenate(channels, 2), "CMYK")))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def without_adobe(data: bytes) -> bytes:
    """Cut the Adobe segment out of a JPEG."""
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]


def segment(marker: int, body: bytes, data: bytes | None = None) -> bytes:
    """Put a segment at the start of a JPEG."""
    data = data or jpeg()
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def frame(width: int, height: int, *, marker: int = 0xC0, precision: int = 8) -> bytes:
    """Return a JPEG whose frame header says something else than is true."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker
    struct.pack_into(">BHH", data, at + 4, precision, height, width)
    return bytes(data)


def chunk(name: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, bits: int, colours: int, rows: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    """Return a PNG made by hand: `rows` begin with filter bytes; colours: 0 grey, 2 RGB, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def rows(pixel: bytes, side: int = BLOCK) -> bytes:
    """Return the rows of a PNG that holds one colour."""
    return (b"\0" + pixel * side) * side


def extended(name: bytes, body: bytes) -> bytes:
    """Return `UPRIGHT` as a PNG with a further chunk behind its header."""
    data = encode(blocks(), "PNG")
    return data[:33] + chunk(name, body) + data[33:]


def tiff(**tags: int) -> bytes:
    """Return a grey TIFF of 16 x 16 pixels by hand, some tags changed."""
    values = {
        "width": 16, "height": 16, "bits": 8, "compression": 1, "photometric": 1,
        "offset": 8 + 2 + 9 * 12 + 4, "samples": 1, "rows": 16, "bytes": 256, "next": 0,
    } | tags  # fmt: skip
    numbers = (256, 257, 258, 259, 262, 273, 277, 278, 279)
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in zip(numbers, values.values(), strict=False)
    )
    start = struct.pack("<2sHIH", b"II", 42, 8, len(numbers))
    return start + entries + struct.pack("<I", values["next"]) + bytes([200]) * 256


def icon(data: bytes, side: int) -> bytes:
    """Return an icon around a PNG that it says is so large."""
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(data), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + data


def gif(width: int, height: int) -> bytes:
    """Return a GIF whose screen and only frame are so large and whose pixels are few."""
    data = bytearray(encode(flat(1, "P"), "GIF"))
    struct.pack_into("<HH", data, 6, width, height)
    at = data.index(b"\x2c\0\0\0\0")
    struct.pack_into("<HH", data, at + 5, width, height)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP whose header announces so many pixels."""
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(64)
    inner = b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def formats() -> dict[str, bytes]:
    """Return noise in every format that Pillow can write here, without loss where it can."""
    names = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO"]
    names += ["JPEG2000"] if features.check("jpg_2000") else []
    if "AVIF" in features.modules and features.check("avif"):
        names.append("AVIF")
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "TGA": {"compression": None}}
    options["ICO"] = {"sizes": [(40, 40)]}
    return {name: encode(noise(), name, **options.get(name, {})) for name in names}
