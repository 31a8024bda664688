"""The k most probable tokens of each row; of equal tokens, those with the lowest ids.

`torch.topk` does not define its choice between equal values, and log-probabilities from bf16
logits are often equal. Here a 64-bit key holds each log-probability and its token id. All keys of
a row differ, so the choice is defined. Searches keep the keys of what they write.

Log-probabilities are at most 0. The bits of their absolute values, read as integers, have the
order of the values: the smallest is the most probable. They are the upper half of the key, and
the id is the lower half. So an id is the key of a token of log-probability 0. Here tokens 1 and 3
are equally probable; token 1 has the smaller key:

>>> import torch
>>> top_tokens(torch.tensor([[-2.0, -0.5, -1.0, -0.5]]), 2)
(tensor([[-0.5000, -0.5000]]), tensor([[1, 3]]))
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32  # tokens; near the square root of V / k, the cheapest size
_LOW = 2**32 - 1  # the lower half of 64 bits


def to_keys(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """Join log-probabilities, float32 and at most 0, and token ids to keys, int64."""
    return log_probs.abs().view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(token_ids)


def ids_of(keys: Tensor) -> Tensor:
    """Return the token ids of keys, int64."""
    return keys.bitwise_and(_LOW)


def log_probs_of(keys: Tensor) -> Tensor:
    """Return the log-probabilities of keys, float32."""
    return 0 - keys.bitwise_right_shift(32).int().view(torch.float32)


def top_tokens(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k most probable tokens of each row, best first; of equals, the lowest id first.

    Args:
        log_probs: float32 (N, V), at most 0, V < 2**31.
        k: 1 to V.

    Returns:
        Log-probabilities, float32 (N, k), and token ids, int64 (N, k).
    """
    ids = torch.arange(log_probs.shape[1], device=log_probs.device)
    if k == len(ids):
        return log_probs.sort(dim=1, descending=True, stable=True)
    if len(ids) > 2 * k * _BLOCK:
        ids = _promising(log_probs, ids, k)
        log_probs = log_probs.gather(1, ids)
    best = to_keys(log_probs, ids).topk(k, dim=1, largest=False)
    return log_probs.gather(1, best.indices), ids_of(best.values)


def _promising(log_probs: Tensor, ids: Tensor, k: int) -> Tensor:
    """Return candidate token ids that include the top k of each row, (N, C).

    The top k are in the k blocks with the largest maxima: each of these k maxima ranks before
    every token of the other blocks. The maxima cost much less than a top-k over all tokens.
    """
    whole = len(ids) // _BLOCK * _BLOCK
    largest = log_probs[:, :whole].unflatten(1, (-1, _BLOCK)).amax(dim=2)
    _, best = top_tokens(largest, k)
    inside = best[:, :, None] * _BLOCK + ids[:_BLOCK]
    return torch.cat((inside.flatten(1), ids[whole:].expand(len(inside), -1)), dim=1)
