"""Files, bytes, arrays and other images -> RGB pictures."""

from captioner.images.decode import read_image

__all__ = ["read_image"]
