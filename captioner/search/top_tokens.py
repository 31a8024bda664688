"""The k most probable tokens of each row, in an order that equal values cannot change.

`torch.topk` leaves open which of several equal values it picks, and log-probabilities from bf16
logits are often equal. Here each log-probability and its token id are packed into one 64-bit
number, the key: keys of one row are all different, so `torch.topk` has no choice.

A worked example, one row of four tokens, of which the two best are wanted. Without their sign,
log-probabilities from 0 down are floats from 0 up, and the bits of such floats, read as integers,
are ordered as the floats are: the smallest is the most probable.

>>> import torch
>>> log_probs = torch.tensor([[-2.0, -0.5, -1.0, -0.5]])
>>> bits = log_probs.abs().view(torch.int32)
>>> [f"{each:08x}" for each in bits[0].tolist()]
['40000000', '3f000000', '3f800000', '3f000000']

The bits fill the upper half of the key, the id the lower. Tokens 1 and 3 are equally probable; by
their ids, the key of token 1 is smaller.

>>> keys = bits.long() << 32 | torch.arange(4)
>>> [f"{each:016x}" for each in keys[0].tolist()]
['4000000000000000', '3f00000000000001', '3f80000000000002', '3f00000000000003']
>>> best = keys.topk(2, largest=False).values
>>> best & 0xFFFFFFFF
tensor([[1, 3]])
>>> top_tokens(log_probs, 2)
(tensor([[-0.5000, -0.5000]]), tensor([[1, 3]]))
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32  # tokens; near the square root of V / k, where a narrowed top-k is cheapest
_LOW = 2**32 - 1  # the lower half of 64 bits


def top_tokens(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k most probable tokens of each row, best first, lowest id first among equals.

    Args:
        log_probs: float32 (N, V), none above 0, V < 2**31.
        k: 1 to V.

    Returns:
        Their log-probabilities, float32 (N, k), and their ids, int64 (N, k).
    """
    ids = torch.arange(log_probs.shape[1], device=log_probs.device)
    if k == len(ids):
        return log_probs.sort(dim=1, descending=True, stable=True)
    if len(ids) > 2 * k * _BLOCK:
        ids = _promising(log_probs, ids, k)
        log_probs = log_probs.gather(1, ids)
    keys = log_probs.abs().view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(ids)
    best = keys.topk(k, dim=1, largest=False)
    return log_probs.gather(1, best.indices), best.values.bitwise_and_(_LOW)


def _promising(log_probs: Tensor, ids: Tensor, k: int) -> Tensor:
    """Narrow a wide vocabulary to tokens that hold each row's top k, (N, C).

    Reading blocks of tokens once for their largest value is much cheaper than a top-k over them
    all. A block that is not among the k best has k tokens before it, one in each of those.
    """
    whole = len(ids) // _BLOCK * _BLOCK
    largest = log_probs[:, :whole].unflatten(1, (-1, _BLOCK)).amax(dim=2)
    _, best = top_tokens(largest, k)
    inside = best[:, :, None] * _BLOCK + ids[:_BLOCK]
    return torch.cat((inside.flatten(1), ids[whole:].expand(len(inside), -1)), dim=1)
