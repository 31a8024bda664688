"""One image file or byte string -> RGB, upright, safe.

Pillow decodes. This module decides what the odd kinds mean: EXIF rotation is applied,
transparency is laid on white, 16-bit and float pixels are scaled to 8 bits, the first frame
stands for an animation, and anything that cannot be decoded whole is an `ImageError`.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captioner.errors import ImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit for decompression bombs: 1/4 GiB of RGB
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif"}
    | {".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".ico", ".tga", ".avif"}
)
# Pillow warns of what is refused below, and of metadata that nobody here reads.
warnings.filterwarnings("ignore", module="PIL")


def read_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image.

    Args:
        source: a file, or the bytes of one.
        max_pixels: larger images (width x height) are refused before they are decoded.

    Returns:
        RGB image, 8 bits per channel, upright.

    Raises:
        ImageError: if it cannot be read, is not an image, is damaged or is too large. The
            message does not repeat the path.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a zero byte in it
        raise ImageError(f"cannot be read: {error}") from error
    if not data:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if not image.width * image.height:
                raise ImageError(f"{image.width} x {image.height} pixels: nothing to see")
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"{image.width} x {image.height} pixels, more than the limit of {max_pixels:,}"
                )
            image.load()
            return to_rgb(_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or of a kind Pillow does not know") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"more pixels than the limit of {max_pixels:,}") from error
    except MemoryError as error:
        raise ImageError("too large for the memory") from error
    # Decoders raise nearly anything on damaged input (OSError, SyntaxError, struct.error,
    # IndexError, ...); whatever it is, it is this one picture's problem.
    except Exception as error:
        raise ImageError(f"damaged image: {' '.join(str(error).split())}") from error


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
    values = np.nan_to_num(pixels.astype(np.float64))
    top = float(values.max(initial=0))
    if pixels.dtype.kind == "f" and top <= 1:
        values = values * 255
    elif top > 255 or pixels.dtype.kind == "u":
        values = values / 257
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
