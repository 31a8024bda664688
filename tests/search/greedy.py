"""Greedy search, always the most probable next token: beam search and sampling are held to it."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.search.common import SpecialIds, roll_out
from captioner.search.top_tokens import ids_of

from search_toys import BOS, EOS, PlainStep, of_any_image


@torch.inference_mode()
def greedy_search(
    step: PlainStep, hidden: Tensor, *, max_length: int, suppress_ids: tuple[int, ...] = ()
) -> Tensor:
    """Pick the most probable token at each step, the lowest id among equals.

    Args:
        step: maps (token_ids (N,), hidden (L, N, H)) to (logits (N, V), hidden (L, N, H)).
        hidden: initial decoder state made from the images, (L, B, H).
        max_length: most tokens to emit, end token included; at least 1.
        suppress_ids: tokens never to emit (padding, start, unknown); not the end token.

    Returns:
        Token ids without the start token, int64 (B, T), T <= max_length. After its end token a
        row repeats it.
    """
    ids = SpecialIds(BOS, EOS, suppress_ids)
    written, _ = roll_out(
        of_any_image(step), hidden, ids, max_length, lambda log_probs: log_probs.argmax(dim=1)
    )
    return ids_of(written[..., 0])
