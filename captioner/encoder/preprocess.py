"""Resizes, crops and normalises an RGB image as the CNN's training did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypeVar

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

from captioner.config import first_mistake
from captioner.encoder.without_compiler import import_torchvision
from captioner.errors import ModelError
from captioner.images.decode import MAX_PIXELS
from captioner.system.files import read_json
from captioner.system.foreign import plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZING = 2  # version of the resizing in `pixels`, on which features depend
MAX_SIDE = 2048  # pixels of a side of the CNN's input
MAX_SHIFT = 1000  # of mean and std; their quotients do not overflow float32
MIN_STD = 1e-6
MAX_COPIED = 2**24  # pixels; larger images are resized without a copy, to save memory
FILE_NAME = "preprocessor_config.json"
T = TypeVar("T")
Colour: TypeAlias = tuple[float, float, float]
# The values of torchvision's `InterpolationMode`, which is slow to import.
Interpolation = Literal[
    "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"
]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)]
Shift = Annotated[float, Field(ge=-MAX_SHIFT, le=MAX_SHIFT, strict=True)]
Deviation = Annotated[float, Field(ge=MIN_STD, le=MAX_SHIFT, strict=True)]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The parameters of the `transforms()` of torchvision weights, or of timm's data config."""

    resize_size: int = 256  # pixels of the shorter side after resizing; squashed: of both sides
    crop_size: int = 224  # pixels of the centre crop's sides
    interpolation: str = "bilinear"  # torchvision's name
    mean: Colour = IMAGENET_MEAN  # per channel, of values in 0..1
    std: Colour = IMAGENET_STD  # standard deviation, likewise
    squash: bool = False  # whether resizing makes a square of the whole image

    def as_dict(self) -> dict[str, object]:
        """Return the parameters; without `squash` if it is off: old fingerprints stay valid."""
        return {name: value for name, value in asdict(self).items() if value is not False}

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
        """Sufficient pixels of an image's shorter side, for `read_image`."""
        return 2 * self.resize_size

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop an RGB image to uint8 (3, crop_size, crop_size), 0..255."""
        from torch.nn import functional

        import_torchvision()
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        long = self.resize_size**2 * max(image.size) > MAX_PIXELS * min(image.size)
        if long and not self.squash:
            image = _middle(image)
        small = image.width * image.height <= MAX_COPIED
        if small and self.resizes_tensors:
            # Several times faster than Pillow's filters. Fewer than one value in 200 differs, by
            # 1 of 255, rarely 2.
            resized = transforms.pil_to_tensor(image)
            size = self._resized(resized)
            if size != [*resized.shape[1:]]:
                resized = functional.interpolate(
                    resized[None], size, mode=self.interpolation, antialias=True
                )[0]
        else:
            mode = InterpolationMode(self.interpolation)
            size = [self.resize_size] * (2 if self.squash else 1)
            smaller = transforms.resize(image, size, interpolation=mode)
            resized = transforms.pil_to_tensor(smaller)
        pixels: Tensor = transforms.center_crop(resized, [self.crop_size])
        return pixels.contiguous()

    @property
    def resizes_tensors(self) -> bool:
        """Whether PyTorch has the filter that the CNN wants."""
        return self.interpolation in ("bilinear", "bicubic")

    def _resized(self, picture: Tensor) -> list[int]:
        """Return the height and the width to which `pixels` resizes a picture, (3, H, W)."""
        if self.squash:
            return [self.resize_size] * 2
        short = min(picture.shape[1:])
        return [self.resize_size * side // short for side in picture.shape[1:]]

    def shrunk(self, picture: Tensor) -> Tensor:
        """Do as `pixels` with a decoded picture, uint8 (3, H, W), on its device.

        No kernel of a GPU resizes bytes, so the sums are float32: they differ by at most 1 of 255.
        Only for filters that PyTorch has.
        """
        from torch.nn import functional

        size = self._resized(picture)
        if size != [*picture.shape[1:]]:
            resized = functional.interpolate(
                picture[None].float(), size, mode=self.interpolation, antialias=True
            )[0]
            picture = resized.round_().clamp_(0, 255)
        top, left = (round((side - self.crop_size) / 2) for side in size)
        cropped = picture[:, top : top + self.crop_size, left : left + self.crop_size]
        return cropped.contiguous().byte()

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image that the crop leaves: left, top, right, bottom.

        Sizes are in pixels, results in parts of the width and the height. A crop that is larger
        than the image begins below 0 and ends above 1.
        """
        if self.squash:
            width = height = 1
        sides = (max(side / min(width, height) * self.resize_size, 1) for side in (width, height))
        across, down = (self.crop_size / side for side in sides)
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2

    def visible(self, width: int, height: int) -> float:
        """Return the share of an image's area that the crop leaves, 0 to 1; sizes in pixels."""
        left, top, right, bottom = self.seen(width, height)
        return min(1, right - left) * min(1, bottom - top)

    @staticmethod
    def is_blank(pixels: Tensor) -> bool:
        """Whether the CNN sees one colour: no channel differs by more than 1 between pixels."""
        low, high = pixels.flatten(1).aminmax(dim=1)
        return bool((high - low <= 1).all())

    @staticmethod
    def are_blank(pixels: Tensor) -> list[bool]:
        """Return `is_blank` of each image of a batch, (B, 3, S, S)."""
        low, high = pixels.flatten(2).aminmax(dim=2)
        answer: list[bool] = (high - low <= 1).all(dim=1).tolist()
        return answer

    def normalize(self, pixels: Tensor) -> Tensor:
        """Standardise uint8 pixels (B, 3, S, S) to float32, channels last in memory."""
        import torch

        images = pixels.float()
        mean, std = _scales(self.mean, self.std, images.device)
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@cache
def _scales(mean: Colour, std: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a mean and a deviation of values in 0..255, each (1, 3, 1, 1), once on each device.

    A copy from the processor cannot be recorded in a CUDA graph.
    """
    import torch

    with torch.inference_mode(False):  # gradients of pixels need them, too
        first, second = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (mean, std))
        return first.to(device), second.to(device)


class PreprocessConfig(BaseModel):
    """One CNN in `preprocessor_config.json`; keys of later versions are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)

    resize_size: Side
    crop_size: Side
    interpolation: Interpolation
    mean: tuple[Shift, Shift, Shift]
    std: tuple[Deviation, Deviation, Deviation]
    squash: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop_size > self.resize_size:
            raise ValueError("crop_size must not exceed resize_size")
        return self


_CONFIGS = TypeAdapter(Annotated[list[PreprocessConfig], FailFast()])


def save_preprocess(folder: Path, transforms: Sequence[Preprocess]) -> None:
    """Write `preprocessor_config.json`, with one transform for each CNN, into a folder."""
    text = json.dumps(one_or_list([preprocess.as_dict() for preprocess in transforms]), indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def load_preprocess(folder: Path) -> list[Preprocess]:
    """Read `preprocessor_config.json` from a folder; a `ModelError` if it is missing or invalid."""
    path = folder / FILE_NAME
    try:
        values = read_json(path)
        several = isinstance(values, list)
        configs = _CONFIGS.validate_python(values if several else [values])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or plain(error)}") from error
    except ValidationError as error:
        mistake = first_mistake(error, *(() if several else (0,)))
        raise ModelError(f"{path}: not a preprocessor config: {mistake}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a preprocessor config: {plain(error)}") from error
    return [Preprocess(**dict(config)) for config in configs]


def one_or_list(values: list[T]) -> T | list[T]:
    """Return the value of a single CNN as it is, the values of several as a list."""
    return values[0] if len(values) == 1 else values


def _middle(image: Image.Image) -> Image.Image:
    """Crop the middle of a very long or very wide image, which would fill the memory if resized.

    The centre crop needs only the middle square. Two more squares on either side keep the
    interpolation at its edges unchanged.
    """
    short = min(image.size)
    trim = [max(0, side - 5 * short) // 2 for side in image.size]
    return image.crop((trim[0], trim[1], image.width - trim[0], image.height - trim[1]))
