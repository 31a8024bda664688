"""N-grams of many sentences at once, as 64-bit keys that can be compared and looked up."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ORDER = 4  # as in BLEU and CIDEr
MULTIPLIER = 6_364_136_223_846_793_005  # of Knuth's MMIX generator; products wrap around


def ngram_keys(token_ids: Tensor, lengths: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Hash n-grams.

    Args:
        token_ids: int64 (..., T), T at least `order`.
        lengths: tokens that count, int64 (...).
        order: n, from 1.

    Returns:
        Keys, int64 (..., T-n+1), of different orders different; and which of them are real.
    """
    grams = token_ids.unfold(-1, order, 1)
    keys = torch.full_like(grams[..., 0], order)
    for place in range(order):
        keys = keys * MULTIPLIER + grams[..., place]
    places = torch.arange(keys.shape[-1], device=keys.device)
    return keys, places < (lengths - order + 1)[..., None]
