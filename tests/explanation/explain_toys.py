"""Captioners with large random weights, whose words depend on the image."""

from __future__ import annotations

from typing import Any

import torch
from conftest import draw
from torch import Tensor

from captioner.captioner import Captioner
from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import EncoderSpec
from captioner.text import Vocabulary

import toys

SIDE = 64
CAPTION = "a red square in the middle"


def pooled(seed: int = 0) -> FrozenEncoder:
    """A CNN with a last map of 3 x 3 places, pooled by their mean."""
    spec = EncoderSpec("squeezenet1_1", {}, Preprocess(SIDE, SIDE), "toy")
    return FrozenEncoder(spec, toys.encoder_state(seed), "fp32")


def restless(eyes: Encoder | None = None, **changes: Any) -> Captioner:
    """A captioner whose probabilities are far from uniform and differ between images."""
    captioner = toys.captioner(eyes or pooled(), **changes)
    with torch.no_grad():
        for weight in captioner.decoder.parameters():
            weight.add_(torch.randn_like(weight) / 2)
        captioner.decoder.output.bias[Vocabulary.eos_id] += 4  # captions end
    views = captioner.encode([draw(seed) for seed in range(8)])
    captioner.decoder.measure(views)
    return captioner


def pixels(captioner: Captioner, seed: int = 3) -> Tensor:
    return captioner.encoder.preprocess.pixels(draw(seed, (SIDE, SIDE)))[None]


def ids(captioner: Captioner, caption: str = CAPTION) -> Tensor:
    words = captioner.vocabulary.encode(caption.split())
    return torch.tensor([*words, captioner.vocabulary.eos_id])
