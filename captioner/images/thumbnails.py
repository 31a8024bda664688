"""Small JPEGs of images, in base64, for pages of one file."""

from __future__ import annotations

import base64
import io

from PIL import Image

from captioner.errors import ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import read_image

THUMBNAIL = 256  # pixels of the longer side
QUALITY = 70  # JPEG quality; a photograph of that size takes about 10 KB


def thumbnail(image: ImageFile) -> str:
    """Return an image as a small JPEG in base64; "" if it cannot be read."""
    try:
        return jpeg(read_image(image), THUMBNAIL, QUALITY)
    except ImageError:
        return ""


def jpeg(picture: Image.Image, longest: int, quality: int) -> str:
    """Return an RGB picture as a JPEG in base64, with at most `longest` pixels a side."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()
