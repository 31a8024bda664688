"""Maps of the words of a split's captions, for the report."""

from __future__ import annotations

import base64
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.captioner import Captioner
from captioner.data.prepare import SplitTable
from captioner.errors import ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import read_image
from captioner.text import Caption

STEPS = 127  # of the largest number, as a map is stored


class WordMaps(NamedTuple):
    """The maps of the words of one caption."""

    maps: Tensor  # nats, float32 (T, h, w), see `Explanation`
    seen: tuple[float, float, float, float]  # part of the image, see `Preprocess.seen`

    def packed(self) -> tuple[float, int, int, str]:
        """Return nats of a step, h, w, and the steps of all places as signed bytes in base64."""
        step = max(self.maps.abs().max().item() / STEPS, 1e-9)
        steps = (self.maps / step).round().to(torch.int8)
        return step, *steps.shape[1:], base64.b64encode(steps.numpy().tobytes()).decode()


def maps_of_split(
    captioner: Captioner, table: SplitTable, captions: list[list[Caption]]
) -> list[WordMaps | None]:
    """Compute the maps of each image's best caption; None for an image that can't be read now."""
    rows = zip(table.examples, captions, strict=True)
    total = len(table.examples)
    return [
        _maps(captioner, example.image, best)
        for example, (best, *_) in tqdm(
            rows, desc="explaining", total=total, unit="image", disable=None
        )
    ]


def _maps(captioner: Captioner, image: ImageFile, caption: Caption) -> WordMaps | None:
    try:
        picture = read_image(image)
        found = captioner.explain(picture, caption)
    except ImageError:
        return None
    if len(found.maps) != len(caption.words):
        return None
    return WordMaps(found.maps, captioner.encoder.preprocess.seen(*picture.size))
