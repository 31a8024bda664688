"""One image file or byte string -> an upright RGB picture.

Pillow decodes. EXIF rotation is applied, transparent pixels are drawn on white, the range that
16-bit, signed and float pixels use is scaled to 8 bits, and the first frame of an animation is
used.
Anything that cannot be decoded completely is an `ImageError`.
"""

from __future__ import annotations

import io
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioner.errors import ImageError
from captioner.images.content import ImageFile
from captioner.system.files import mistaken_for, no_stream
from captioner.system.foreign import plain

MAX_PIXELS = 89_478_485  # Pillow's own limit for decompression bombs: 1/4 GiB of RGB
MAX_BYTES = 2**30  # of a file; a picture of MAX_PIXELS needs less


def _reads_heif() -> bool:
    """Whether pillow-heif is there; registers it with Pillow."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


READS_HEIF = _reads_heif()
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif"}
    | {".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".ico", ".tga", ".avif"}
    | ({".heic", ".heif", ".hif"} if READS_HEIF else set())
)
# Formats that are read, most common first; the file name does not matter. Pillow supports others,
# but some are not photographs, and EPS would run untrusted code in Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "DIB", "JPEG2000", "ICO", "TGA"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
    *(("HEIF",) if READS_HEIF else ()),
)
HEIF_STARTS = tuple(
    b"ftyp" + brand
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)
# First bytes of files that are images, even if their header is damaged.
PNG = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (b"\xff\xd8\xff", PNG, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
NOT_AN_IMAGE = "not an image, or an unsupported image format"
# Ends of Pillow's names of 16-bit layouts, each with the one whose high byte is its low byte.
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
# The usual most of pixels: 8, 10, 12, 14 and 16 bits.
WHITES = (255, 1023, 4095, 16383, 65535)
DEEP = re.compile(f";16|, {WHITES[-1]}[)]")  # of a tile's layout, or the maximum of a PPM
OVERSHOOT = 1.5  # of float pixels above white, as from resampling
# A value of this part of the pixels that is negative or this many times all others marks missing
# pixels.
MARK, FAR = 0.01, 1000
MAX_SAMPLE = 2**20  # float or signed pixels that decide the range
# Pillow warns about images that are refused below, and about metadata that is not used.
warnings.filterwarnings("ignore", module="PIL")


def read_image(
    source: ImageFile | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    claim: Callable[[int], None] = lambda size: None,  # noqa: ARG005
) -> Image.Image:
    """Decode one image file, or its bytes, to an upright RGB image with 8 bits per channel.

    Args:
        source: a file, a content such as a member of an archive, or the bytes.
        max_pixels: limit of width x height, checked before decoding. A value above Pillow's own
            limit also raises that limit for the whole process.
        at_least: sufficient pixels of the shorter side; None: decode at full size. A larger JPEG is
            decoded faster at 1/2, 1/4 or 1/8 of its size, if the division is exact. At twice the
            size the picture is then resized to, the resized pixels of photographs differ by at most
            1 of 255 on average; at exactly that size, by 3.
        claim: called before decoding with the most bytes that decoding takes; may block.

    Raises:
        ImageError: if the image cannot be read, is not an image, is damaged or is too large; see
            `kind`. The message is one line without the path.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise ImageError("empty file", kind="empty")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    with _one_error(data, max_pixels):
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _decoded(image, max_pixels, at_least, claim, data)
        except ValueError as error:  # Pillow refuses PNG texts and profiles above 1 MiB
            if "MAX_TEXT" not in str(error) or not data.startswith(PNG):
                raise
            data = _without_texts(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _decoded(image, max_pixels, at_least, claim, data)


class Header(NamedTuple):
    """What the first bytes of an image file say."""

    format: str  # of `FORMATS`
    mode: str  # of Pillow, such as "RGB", "L" and "CMYK"
    width: int  # pixels, before EXIF rotation
    height: int


def read_header(file: BinaryIO) -> Header:
    """Read the header of an opened image file without decoding it.

    Raises:
        ImageError: if it is not an image, or too large; a damaged picture may have a good header.
    """
    start = file.read(512)
    file.seek(0)
    if not start:
        raise ImageError("empty file", kind="empty")
    with _one_error(start, MAX_PIXELS), Image.open(file, formats=FORMATS) as image:
        _check_size(image, MAX_PIXELS)
        return Header(image.format or "", image.mode, *image.size)


def _without_texts(png: bytes) -> bytes:
    """Return a PNG without its text and profile chunks, which say nothing about the pixels."""
    kept, start = [PNG], len(PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        if png[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def read_opened(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to the form that `read_image` returns; see there."""
    with _one_error(b"", MAX_PIXELS):
        return _decoded(image, MAX_PIXELS, None, lambda _: None)


def _decoded(
    image: Image.Image,
    max_pixels: int,
    at_least: int | None,
    claim: Callable[[int], None],
    data: bytes = b"",
) -> Image.Image:
    _check_size(image, max_pixels)
    if at_least is not None:
        # Only JPEGs support drafts. A mode argument would change the picture's mode.
        image.draft(None, _draft_size(image.size, at_least))
    claim(image.width * image.height * _bytes_per_pixel(image))
    has_low_bytes = (
        data and image.mode in ("RGB", "RGBA") and DEEP.search(str(getattr(image, "tile", "")))
    )
    image.load()
    if has_low_bytes and _most(image) <= (WHITES[-2] >> 8) + 1:  # Pillow rounds to the high bytes
        claim(image.width * image.height * 8)
        with suppress(OSError, ValueError, TypeError):  # Pillow lacks the layout
            image.paste(_of_fewer_bits(image, data))
    _check_size(image, max_pixels)  # the picture in an icon may differ from the declared size
    with suppress(Exception):  # a broken EXIF block says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    return to_rgb(image)


@contextmanager
def _one_error(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn any exception of a decoder into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            kind = ", or a kind of TIFF that is not read" if data[:1] in b"IM" else ""
            raise ImageError(f"damaged image: its header cannot be read{kind}") from error
        mistaken = mistaken_for(data[:512])
        if data[4:12] in HEIF_STARTS and not READS_HEIF:
            mistaken = "HEIC needs pillow-heif; pip install 'captioner[heif]'"
        message = f"not an image: {mistaken}" if mistaken and data else NOT_AN_IMAGE
        raise ImageError(message, kind="not_an_image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"more pixels than the limit of {max_pixels:,}"
        raise ImageError(message, kind="too_large") from error
    except MemoryError as error:
        raise ImageError("not enough memory to decode the image", kind="too_large") from error
    # Decoders raise nearly anything on damaged input (OSError, SyntaxError, struct.error,
    # IndexError, ...).
    except Exception as error:
        raise ImageError(f"damaged image: {plain(error) or type(error).__name__}") from error


def read_file(file: ImageFile) -> bytes:
    """Read the bytes of one image file; pipes and devices are refused, as they may never end.

    Raises:
        ImageError: if the file is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    with opened(file) as (stream, _):
        return stream.read()


@contextmanager
def opened(file: ImageFile) -> Iterator[tuple[BinaryIO, int]]:
    """Open an image file or content, and give it with its size in bytes.

    Raises:
        ImageError: as `read_file`.
    """
    if not isinstance(file, Path):
        check_bytes(file.size)
        content = file.read_bytes()
        yield io.BytesIO(content), len(content)
        return
    try:
        status = file.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError("cannot be read: not a regular file", kind="unreadable")
        check_bytes(status.st_size)
        with open(file, "rb", opener=no_stream) as stream:
            yield stream, status.st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"cannot be read: {error.strerror}", kind="missing") from error
    except OSError as error:
        message = f"cannot be read: {error.strerror or plain(error)}"
        raise ImageError(message, kind="unreadable") from error
    except ValueError as error:  # a path with a zero byte in it
        raise ImageError(f"cannot be read: {plain(error)}", kind="missing") from error


def check_bytes(size: int) -> None:
    """Raise an `ImageError` for a file that is larger than `MAX_BYTES`."""
    if size > MAX_BYTES:
        message = f"{size:,} bytes, more than the limit of {MAX_BYTES:,}"
        raise ImageError(message, kind="too_large")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width} x {image.height} pixels"
    if not image.width * image.height:
        raise ImageError(f"{size}: the image is empty", kind="no_pixels")
    if image.width * image.height > max_pixels:
        raise ImageError(f"{size}, more than the limit of {max_pixels:,}", kind="too_large")


def _bytes_per_pixel(image: Image.Image) -> int:
    """Return the bytes per pixel that decoding takes at most."""
    # Pillow's 4 bytes for the picture, and 4 for a decoder's buffer or a rotated copy.
    copies = 5 if image.has_transparency_data else 2
    # Progressive JPEGs: the decoder keeps the coefficients of all scans.
    return 4 * copies + 6 * ("progressive" in image.info)


def _draft_size(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    """Return the smallest exact fraction of a size that libjpeg decodes and that is sufficient.

    An inexact fraction stretches the picture: pixels would differ by 8 of 255 instead of less than
    1, because the resized width and the crop change.
    """
    width, height = size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and min(size) // scale >= at_least:
            return width // scale, height // scale
    return size


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image of any Pillow mode to 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        return _opaque(image.convert("RGBA"))
    return image.convert("RGB")


def _most(image: Image.Image) -> int:
    """Return the highest value of the colours of an RGB or RGBA picture."""
    return max(high for _, high in cast(tuple[tuple[int, int], ...], image.getextrema())[:3])


def _of_fewer_bits(image: Image.Image, data: bytes) -> Image.Image:
    """Scale a colour picture whose 16 bits per channel hold 8 to 14, from its high bytes."""

    def other_byte(layout: Any) -> Any:
        if not isinstance(layout, str):
            return (other_byte(layout[0]), *layout[1:])
        return re.sub("16[BLN]", lambda match: OTHER_BYTE[match[0]], layout)

    with cast(Any, Image.open(io.BytesIO(data), formats=FORMATS)) as low:
        codec, _, offset, layout = low.tile[0]
        if codec == "ppm":
            values = np.frombuffer(data, ">u2", low.width * low.height * 3, offset).astype("u2")
        elif codec == "ppm_plain":
            text = re.sub(rb"#[^\r\n]*", b"", data[offset:])
            values = np.fromstring(text, "u2", low.width * low.height * 3, sep=" ")
        elif layout == "LA;16B":  # each pixel has 4 bytes, as in RGBA
            low.tile = [(*place, "RGBA") for *place, _ in low.tile]
            values = np.asarray(low).view(">u2")[..., [0, 0, 0, 1]].astype("u2")
        else:
            low.tile = [(*place, other_byte(layout)) for *place, layout in low.tile]
            values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
    values = values.reshape(image.height, image.width, -1)
    white = np.full(values.shape[2], _range_of(values[..., :3])[1])
    white[3:] = white[0] if values[..., 3:].max(initial=0) <= white[0] else WHITES[-1]  # of alpha
    for row in values:
        row[:] = np.rint(row * (255 / white))
    return Image.fromarray(values.astype(np.uint8))


def is_one_colour(image: Image.Image) -> bool:
    """Whether no channel of an RGB picture differs by more than 1 between its pixels."""
    extrema = cast(tuple[tuple[int, int], ...], image.getextrema())
    return all(high - low <= 1 for low, high in extrema)


def _opaque(rgba: Image.Image) -> Image.Image:
    """Draw a picture on white.

    If nothing shows there, as with a white logo, draw it on black; if nothing shows there either,
    its alpha is padding.
    """
    on_white = _on(rgba, "white")
    if not is_one_colour(on_white):
        return on_white
    others = (_on(rgba, "black"), rgba.convert("RGB"))
    return next((other for other in others if not is_one_colour(other)), on_white)


def _on(rgba: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba).convert("RGB")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit and float grey values to 0..255."""
    black, white = _range_of(pixels)
    factor = np.float64(255 / (white - black))
    # Row by row: a large picture in floating point would fill the memory.
    scaled = np.empty(pixels.shape, np.uint8)
    for row, values in zip(scaled, pixels, strict=True):
        row[:] = np.rint(np.nan_to_num((values - black) * factor).clip(0, 255))
    return scaled


def _range_of(pixels: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white.

    Black is 0, unless negative values take much of the range. White is the least usual value that
    covers the pixels. Of float and signed pixels, 1 of 100 may be outside the range: highlights,
    hot pixels, or marks for missing values.
    """
    if pixels.dtype.kind != "f" and pixels.min(initial=0) >= 0:
        top = float(pixels.max(initial=0))
        return 0.0, next((white for white in WHITES if top <= white), top)
    sample = pixels.ravel()[:: pixels.size // MAX_SAMPLE + 1]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    for end in (sample.min(initial=0), sample.max(initial=0)):
        others = sample[sample != end]
        is_far = end < 0 or end > FAR * others.max(initial=0)
        if others.size and is_far and sample.size - others.size > MARK * sample.size:
            sample = others
    low, top = map(float, np.quantile(sample, (0.01, 0.99))) if sample.size else (0.0, 0.0)
    if low < -abs(top) / 8 and low < top:
        return low, top
    if top <= 0:
        return 0.0, 1.0
    if WHITES[0] / 8 > top > OVERSHOOT or top < 1 / 8:
        return 0.0, top  # on the usual scale the picture would be nearly black
    return 0.0, next((white for white in (1, *WHITES) if top <= OVERSHOOT * white), top)
