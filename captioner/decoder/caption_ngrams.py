"""64-bit hash keys of the n-grams of many sentences at once."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ORDER = 4  # as in BLEU and CIDEr
MULTIPLIER = 6_364_136_223_846_793_005  # of Knuth's MMIX generator; products wrap around


def ngram_keys(token_ids: Tensor, lengths: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Hash n-grams.

    Args:
        token_ids: int64 (..., T), T at least `order`.
        lengths: tokens of each sentence without padding, int64 (...).
        order: n, at least 1.

    Returns:
        keys: int64 (..., T-n+1); n-grams of different orders have different keys.
        real: bool, the shape of keys; False if the n-gram holds padding.
    """
    grams = token_ids.unfold(-1, order, 1)
    keys = torch.full_like(grams[..., 0], order)
    for place in range(order):
        keys = keys * MULTIPLIER + grams[..., place]
    places = torch.arange(keys.shape[-1], device=keys.device)
    return keys, places < (lengths - order + 1)[..., None]
