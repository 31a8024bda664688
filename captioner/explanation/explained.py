"""A caption of an image with the map of each word, for `Captioner.explain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from captioner.decoder.captions import attend, to_captions
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.errors import ConfigError
from captioner.explanation.gradient import gradient_maps
from captioner.explanation.occlusion import occlusion_maps
from captioner.explanation.teacher_forcing import given_caption
from captioner.system.foreign import excerpt
from captioner.text import Caption, Vocabulary

MAX_WORDS = 200  # of a caption; the time grows with their square
Method = Literal["gradient", "occlusion"]
METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": gradient_maps,
    "occlusion": occlusion_maps,
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A caption of an image, and where each of its words came from.

    Attributes:
        caption: with `words` and their alternatives, and their attention if the model has it.
        maps: one map for each of `caption.words`, float32 (T, h, w), in nats. Positive: this place
            made the word more probable; negative: less probable. h rows from top to bottom, w
            places from left to right, of what the CNN sees.
        method: "gradient" or "occlusion", see `Captioner.explain`.
        pixels: what the CNN sees, uint8 (3, S, S).
        visible: share of the image's area in `pixels`, 0 to 1; the crop hides the rest.
    """

    caption: Caption
    maps: Tensor = field(compare=False, repr=False)
    method: Method
    pixels: Tensor = field(compare=False, repr=False)
    visible: float = field(default=1.0, compare=False)


def token_ids_of(caption: Caption, vocabulary: Vocabulary) -> Tensor:
    """Return the token ids of a caption, without start token, int64 (T,).

    Raises:
        ConfigError: if there are too many words or none.
    """
    ids = vocabulary.encode_text(caption.text) + [vocabulary.eos_id] * caption.finished
    if not 1 <= len(ids) <= MAX_WORDS + 1:
        raise ConfigError(
            f"caption: must have 1 to {MAX_WORDS} words, given {excerpt(caption.text, 60)}"
        )
    return torch.tensor(ids)


def spelled(
    decoder: Decoder | Ensemble,
    features: Tensor,
    token_ids: Tensor,
    vocabulary: Vocabulary,
    alternatives: int,
    *,
    looks: bool,
) -> Caption:
    """Return a given caption of an image with the words that a search would have returned.

    Args:
        decoder: in evaluation mode.
        features: of one image, (1, F).
        token_ids: of the caption, without start token, int64 (T,).
        vocabulary: the text of each token id.
        alternatives: for each word.
        looks: whether the model has attention.
    """
    choices = min(alternatives + 1, len(vocabulary)) if alternatives else 0
    found = given_caption(decoder, features, token_ids, SPECIAL_IDS, choices)
    [[caption]] = to_captions(
        found,
        vocabulary,
        words=True,
        alternatives=alternatives,
        weights=attend(decoder, features, found.token_ids) if looks else None,
    )
    return caption
