"""Greedy search, always the most probable next token: beam search and sampling are held to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.search.common import Step, check_arguments, roll_out


@torch.inference_mode()
def greedy_search(
    step: Step,
    hidden: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    max_length: int,
    suppress_ids: Sequence[int] = (),
) -> Tensor:
    """Pick the most probable token at each step, the lowest id among equals.

    Args:
        step: maps (token_ids (N,), hidden (L, N, H)) to (logits (N, V), hidden (L, N, H)).
        hidden: initial decoder state made from the images, (L, B, H).
        bos_id: start token, fed first and not returned.
        eos_id: end token.
        max_length: most tokens to emit, end token included; at least 1.
        suppress_ids: tokens never to emit (padding, start, unknown); not the end token.

    Returns:
        Token ids without the start token, int64 (B, T), T <= max_length. After its end token a
        row repeats it.

    Raises:
        ValueError: if hidden is not (L, B, H), max_length < 1, or the end token is suppressed.
    """
    check_arguments(hidden, eos_id=eos_id, max_length=max_length, suppress_ids=suppress_ids)
    token_ids, _ = roll_out(
        step,
        hidden,
        lambda log_probs: log_probs.argmax(dim=1),
        bos_id=bos_id,
        eos_id=eos_id,
        max_length=max_length,
        suppress_ids=suppress_ids,
    )
    return token_ids
