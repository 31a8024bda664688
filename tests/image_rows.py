"""Rows of pictures and captions, as tables with images hold them."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from captioner.data.dataset import Dataset
from captioner.images.decode import read_file

Rows = list[dict[str, Any]]

CAPTIONS: dict[str, dict[str, object]] = {
    "one": {"caption": "a dog"},
    "numbered": {"caption_0": "a dog", "caption_1": "a cat", "caption_2": None},
    "list": {"captions": ["a dog", "a cat"]},
    "structs": {"sentences": [{"raw": "a dog", "sentid": 1}, {"raw": "a cat", "sentid": 2}]},
    "captions in structs": {"captions": [{"caption": "a dog", "id": 1}, {"caption": "a cat"}]},
    "struct of lists": {"sentences": {"raw": ["a dog", "a cat"], "sentid": [1, 2]}},
    "text": {"text": "a dog"},
}


@functools.cache
def png(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def struct(seed: int, name: str | None = None) -> dict[str, object]:
    return {"bytes": png(seed), "path": name or f"{seed}.png"}


def rows(*seeds: int) -> Rows:
    return [{"image": struct(seed), "caption": f"picture {seed}"} for seed in seeds]


def content(dataset: Dataset) -> list[tuple[str, str, tuple[str, ...], bytes]]:
    return [(e.image_id, e.split, e.captions, read_file(e.image)) for e in dataset.examples]
