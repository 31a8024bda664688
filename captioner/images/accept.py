"""Paths, bytes, opened files, Pillow images, arrays and tensors -> RGB pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

import numpy as np
from PIL import Image
from torch import Tensor

from captioner.errors import ImageError
from captioner.images.content import Content
from captioner.images.decode import read_image, read_opened, to_rgb
from captioner.system.foreign import plain

ImageLike: TypeAlias = (
    "str | Path | Content | bytes | bytearray | memoryview | io.IOBase | Image.Image "
    "| np.ndarray[Any, Any] | Tensor"
)
BYTES = (bytes, bytearray, memoryview)
ONE_IMAGE = (str, Path, Content, *BYTES, Image.Image, np.ndarray, Tensor)


def is_one(image: object) -> TypeGuard[ImageLike]:
    """Whether an object is one image (or an opened file), not an iterable of images."""
    return isinstance(image, ONE_IMAGE) or hasattr(image, "read")


def iterate(images: Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Return an iterator over images; at once an `ImageError` if they are not iterable."""
    try:
        return iter(images)
    except TypeError:
        return iter([to_picture(cast(Any, images))])  # raises the error


def snapshot(image: ImageLike) -> str | Path | Content | bytes | Image.Image | ImageError:
    """Take a snapshot of an image that a thread decodes later.

    The caller may close the file or reuse the array meanwhile, so only paths, contents and bytes
    can wait.
    """
    try:
        if isinstance(image, str | Path | Content):
            return image
        content = _content(image)
        return content if isinstance(content, bytes) else to_picture(content)
    except ImageError as error:
        return error


def to_picture(image: ImageLike) -> Image.Image:
    """Return an image as an RGB picture.

    Args:
        image: a path, a `Content`, encoded bytes, an opened binary file, a Pillow image, or an
            array or tensor of pixels (H, W), (H, W, 3) or (3, H, W), uint8 0..255 or float 0..1.

    Raises:
        ImageError: if it cannot be read.
    """
    if isinstance(image, str | Path | Content):
        try:
            return read_image(Path(image) if isinstance(image, str) else image)
        except ImageError as error:
            hint = "; URLs are not supported, download the image" if "://" in str(image) else ""
            name = plain(image) or "an empty path"
            raise ImageError(f"{name}: {error}{hint}", kind=error.kind) from error
    image = _content(image)
    if isinstance(image, bytes):
        return read_image(image)
    if isinstance(image, Image.Image):
        return read_opened(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise ImageError(f"not an image: {type(image).__name__}; give a path, bytes or pixels")
    if isinstance(image, Tensor):
        real = image.is_floating_point()  # NumPy has no bfloat16
        array = (image.float() if real else image).numpy(force=True)
    else:
        array = np.asarray(image)
    array = _channels_last(array)
    is_real = array.dtype.kind in "fb"
    top = 1 if is_real else 255
    if array.dtype.kind not in "fiub" or not ((array >= 0) & (array <= top)).all():
        raise ImageError(f"{array.dtype} pixels must be numbers from 0 to {top}")
    array = np.rint(array * np.float64(255) if is_real else array).astype(np.uint8)
    return to_rgb(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array))


def _content(image: Any) -> Any:
    """Return the bytes of a file or buffer; anything else unchanged."""
    if isinstance(image, io.TextIOBase):
        raise ImageError("the file is opened as text; open it with mode 'rb'")
    if hasattr(image, "read"):
        try:
            image = image.read()
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            raise ImageError(f"cannot be read: {plain(error)}", kind="unreadable") from error
    return bytes(image) if isinstance(image, BYTES) else image


def _channels_last(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the pixels of one image as (H, W, C): grey, RGB or RGBA."""
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        shape = " x ".join(map(str, array.shape)) or "a single number"
        raise ImageError(f"pixels must be (H, W), (H, W, 3) or (3, H, W), not {shape}")
    if not array.size:
        size = f"{array.shape[1]} x {array.shape[0]} pixels"
        raise ImageError(f"{size}: the image is empty", kind="no_pixels")
    return array
