"""RGB picture -> the pixels a CNN was trained on; one transform for training and captioning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as transforms
from torchvision.transforms.functional import InterpolationMode

from captioner.config import first_mistake
from captioner.errors import ModelError
from captioner.images.decode import MAX_PIXELS
from captioner.system.files import read_json
from captioner.system.foreign import plain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZING = 2  # counts the ways in which `pixels` has resized; features and captions differ by it
MOST_PIXELS = 2048  # of a side that a CNN sees
MOST_SHIFT = 1000  # of mean and std, whose quotients float32 bears
LEAST_STD = 1e-6
COPIED = 2**24  # pixels; larger pictures are resized without a copy, for memory's sake
FILE_NAME = "preprocessor_config.json"
T = TypeVar("T")
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS, strict=True)]
Shift = Annotated[float, Field(ge=-MOST_SHIFT, le=MOST_SHIFT, strict=True)]
Deviation = Annotated[float, Field(ge=LEAST_STD, le=MOST_SHIFT, strict=True)]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What a torchvision weights entry's `transforms()` does, as numbers that can be stored.

    Attributes:
        resize_size: pixels of the shorter side after resizing.
        crop_size: pixels of the centre crop's sides.
        interpolation: torchvision's name, such as "bilinear".
        mean: per channel, of values in 0..1.
        std: per channel.
    """

    resize_size: int = 256
    crop_size: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def of_weights(cls, transform: Any) -> Self:
        """Read a torchvision `ImageClassification` preset."""
        return cls(
            resize_size=transform.resize_size[0],
            crop_size=transform.crop_size[0],
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )

    @property
    def enough(self) -> int:
        """Pixels of a picture's shorter side that are as good as more, for `read_image`."""
        return 2 * self.resize_size

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop.

        Args:
            image: RGB picture.

        Returns:
            uint8 (3, crop_size, crop_size), 0..255.

        """
        if self.resize_size**2 * max(image.size) > MAX_PIXELS * min(image.size):
            image = _middle(image)
        small = image.width * image.height <= COPIED
        if small and self.interpolation in ("bilinear", "bicubic"):
            # Pillow's filters on bytes, several times as fast. Fewer than one value in 200
            # differs, by 1 of 255, rarely 2.
            resized = transforms.pil_to_tensor(image)
            short = min(image.size)
            size = [self.resize_size * side // short for side in resized.shape[1:]]
            if size != [*resized.shape[1:]]:
                resized = functional.interpolate(
                    resized[None], size, mode=self.interpolation, antialias=True
                )[0]
        else:
            mode = InterpolationMode(self.interpolation)
            smaller = transforms.resize(image, [self.resize_size], interpolation=mode)
            resized = transforms.pil_to_tensor(smaller)
        pixels: Tensor = transforms.center_crop(resized, [self.crop_size])
        return pixels.contiguous()

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale to what the CNN expects; on the device, where it is cheap.

        Args:
            pixels: uint8 (B, 3, S, S).

        Returns:
            float32 (B, 3, S, S), channels last in memory.
        """
        images = pixels.float()
        shape = (1, 3, 1, 1)
        mean = images.new_tensor(self.mean).view(shape) * 255
        std = images.new_tensor(self.std).view(shape) * 255
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


class PreprocessConfig(BaseModel):
    """What `preprocessor_config.json` holds of one CNN; keys of later versions are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)

    resize_size: Side
    crop_size: Side
    interpolation: InterpolationMode
    mean: tuple[Shift, Shift, Shift]
    std: tuple[Deviation, Deviation, Deviation]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop_size > self.resize_size:
            raise ValueError("crop_size must not exceed resize_size")
        return self


_CONFIGS = TypeAdapter(Annotated[list[PreprocessConfig], FailFast()])


def save_preprocess(folder: Path, each: Sequence[Preprocess]) -> None:
    """Write `preprocessor_config.json` into a folder.

    Args:
        folder: to write into.
        each: of every CNN, in order.
    """
    text = json.dumps(one_or_list([asdict(preprocess) for preprocess in each]), indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load_preprocess(folder: Path) -> list[Preprocess]:
    """Read `preprocessor_config.json` from a folder.

    Returns:
        That of every CNN, in order; one at least.

    Raises:
        ModelError: if it is missing or does not hold these values.
    """
    path = folder / FILE_NAME
    try:
        values = read_json(path)
        several = isinstance(values, list)
        each = _CONFIGS.validate_python(values if several else [values])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or plain(error)}") from error
    except ValidationError as error:
        mistake = first_mistake(error, *(() if several else (0,)))
        raise ModelError(f"{path}: not a preprocessor config: {mistake}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a preprocessor config: {plain(error)}") from error
    if not each:
        raise ModelError(f"{path}: not a preprocessor config: it is an empty list")
    return [
        Preprocess(**dict(config) | {"interpolation": config.interpolation.value})
        for config in each
    ]


def one_or_list(values: list[T]) -> T | list[T]:
    """Return what files hold about each CNN: of one alone as it is, of several as a list."""
    return values[0] if len(values) == 1 else values


def _middle(image: Image.Image) -> Image.Image:
    """Cut a thread of a picture, whose resized whole would fill the memory, down to its middle.

    The centre crop is all within a square in the middle; two more on either side keep the
    interpolation at its edges what it was.
    """
    short = min(image.size)
    trim = [max(0, side - 5 * short) // 2 for side in image.size]
    return image.crop((trim[0], trim[1], image.width - trim[0], image.height - trim[1]))
