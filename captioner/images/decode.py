"""One image file or byte string -> RGB, upright, safe.

Pillow decodes. This module decides what the odd kinds mean: EXIF rotation is applied,
transparency is laid on white, 16-bit and float pixels are scaled to 8 bits, the first frame
stands for an animation, and anything that cannot be decoded whole is an `ImageError`.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioner.errors import ImageError
from captioner.system.files import no_stream
from captioner.system.foreign import plain

MAX_PIXELS = 89_478_485  # Pillow's own limit for decompression bombs: 1/4 GiB of RGB
MAX_BYTES = 2**30  # of a file: more than any picture of so many pixels needs
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif"}
    | {".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".ico", ".tga", ".avif"}
)
# What is read, whatever the file's name says; the most common first. Pillow knows more, but some of
# that is no picture of anything, and EPS would start Ghostscript on a stranger's program.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "DIB", "JPEG2000", "ICO", "TGA"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)
# How files begin that are certainly meant to be images.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
# Pillow warns of what is refused below, and of metadata that nobody here reads.
warnings.filterwarnings("ignore", module="PIL")


def read_image(
    source: Path | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    claim: Callable[[int], None] = lambda size: None,  # noqa: ARG005
) -> Image.Image:
    """Decode one image.

    Args:
        source: a file, or the bytes of one.
        max_pixels: larger images (width x height) are refused before they are decoded. Above
            Pillow's own limit it raises that one too, for the whole process.
        at_least: pixels of the shorter side that are enough. A JPEG that has more is decoded at
            1/2, 1/4 or 1/8 of its size, if at least so many remain and the fraction is exact,
            which takes a fraction of the time. Of twice what the picture is then resized to,
            the resized pixels differ by 1 of 255 at most, on average, on photographs; of just
            what it is, by 3. None: at full size.
        claim: told before the picture is decoded how many bytes that takes at most; may wait.

    Returns:
        RGB image, 8 bits per channel, upright.

    Raises:
        ImageError: if it cannot be read, is not an image, is damaged or is too large. The
            message is one line and does not repeat the path; `kind` says which it is.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise ImageError("empty file", kind="empty")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    with _one_error(data, max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _decoded(image, max_pixels, at_least, claim)


def read_opened(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Bring an image that Pillow has opened, or somebody has drawn, into the form of `read_image`.

    Args:
        image: of any mode.
        max_pixels: see `read_image`.

    Raises:
        ImageError: see `read_image`.
    """
    with _one_error(b"", max_pixels):
        return _decoded(image, max_pixels, None)


def _decoded(
    image: Image.Image,
    max_pixels: int,
    at_least: int | None,
    claim: Callable[[int], None] = lambda size: None,  # noqa: ARG005
) -> Image.Image:
    _check_size(image, max_pixels)
    if at_least is not None:
        # Only JPEGs have drafts. No mode is asked for: it would become the picture's.
        image.draft(None, _enough(image.size, at_least))
    claim(image.width * image.height * _bytes_per_pixel(image))
    image.load()
    _check_size(image, max_pixels)  # the picture inside an icon may not be as announced
    return to_rgb(_upright(image))


@contextmanager
def _one_error(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            raise ImageError("damaged image: its header cannot be read") from error
        message = "not an image, or of a kind that is not read here"
        raise ImageError(message, kind="not_an_image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"more pixels than the limit of {max_pixels:,}"
        raise ImageError(message, kind="too_large") from error
    except MemoryError as error:
        raise ImageError("too large for the memory", kind="too_large") from error
    # Decoders raise nearly anything on damaged input (OSError, SyntaxError, struct.error,
    # IndexError, ...); whatever it is, it is this one picture's problem.
    except Exception as error:
        raise ImageError(f"damaged image: {_one_line(error)}", kind="damaged") from error


def read_file(path: Path) -> bytes:
    """Read the bytes of one image file.

    Args:
        path: of a regular file: a pipe or a device may never end.

    Raises:
        ImageError: if it is missing, cannot be read, or is larger than any picture.
    """
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError("cannot be read: not a regular file", kind="unreadable")
        check_bytes(status.st_size)
        with open(path, "rb", opener=no_stream) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"cannot be read: {error.strerror}", kind="missing") from error
    except OSError as error:
        message = f"cannot be read: {error.strerror or plain(error)}"
        raise ImageError(message, kind="unreadable") from error
    except ValueError as error:  # a path with a zero byte in it
        raise ImageError(f"cannot be read: {plain(error)}", kind="missing") from error


def check_bytes(size: int) -> None:
    """Refuse a file that is larger than any picture.

    Raises:
        ImageError: if it has so many bytes.
    """
    if size > MAX_BYTES:
        message = f"{size:,} bytes, more than the limit of {MAX_BYTES:,}"
        raise ImageError(message, kind="too_large")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width} x {image.height} pixels"
    if not image.width * image.height:
        raise ImageError(f"{size}: nothing to see", kind="no_pixels")
    if image.width * image.height > max_pixels:
        raise ImageError(f"{size}, more than the limit of {max_pixels:,}", kind="too_large")


def _bytes_per_pixel(image: Image.Image) -> int:
    """What decoding takes: Pillow's four bytes, once more for a decoder's own or a turned copy."""
    layers = 5 if image.has_transparency_data else 2
    # Of these the coefficients of all scans are kept.
    return 4 * layers + 6 * ("progressive" in image.info)


def _enough(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    """Return the smallest exact fraction of a size that libjpeg decodes and that is enough.

    Where sides are not divided evenly, the picture would be stretched: another shape, resized to
    another width and cropped half a pixel elsewhere, is 8 of 255 away instead of less than 1.
    """
    width, height = size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and min(size) // scale >= at_least:
            return width // scale, height // scale
    return size


def _one_line(error: Exception) -> str:
    return plain(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB.

    Args:
        image: decoded image of any mode.

    Returns:
        RGB image of the same size.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit and float grey values to 0..255 by the range they plainly use."""
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels)
    top = float(pixels.max(initial=0))
    factor = 1.0
    if pixels.dtype.kind == "f" and top <= 1:
        factor = 255
    elif top > 255 or pixels.dtype.kind == "u":
        factor = 1 / 257
    # Row by row: whole in floating point, a picture of many pixels would fill the memory.
    scaled = np.empty(pixels.shape, np.uint8)
    for row, values in zip(scaled, pixels, strict=True):
        row[:] = np.clip(np.rint(values * np.float64(factor)), 0, 255)
    return scaled
