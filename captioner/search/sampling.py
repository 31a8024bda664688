"""Sampling with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.search.common import (
    Hypotheses,
    Step,
    check_arguments,
    roll_out,
)
from captioner.search.top_tokens import top_tokens


@torch.inference_mode()
def sample(
    step: Step,
    hidden: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    max_length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    n_samples: int = 1,
    generator: torch.Generator | None = None,
    suppress_ids: Sequence[int] = (),
) -> Hypotheses:
    """Draw sentences token by token: temperature, then top-k, then top-p.

    Sources: top-k: Fan et al. (2018), "Hierarchical Neural Story Generation"; top-p (nucleus):
    Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration".

    Args:
        step: maps (token_ids (N,), hidden (L, N, H)) to (logits (N, V), hidden (L, N, H)).
        hidden: initial decoder state of the images, (L, B, H).
        bos_id: start token, the first input; not returned.
        eos_id: end token.
        max_length: maximum number of tokens, end token included; at least 1.
        temperature: above 0; below 1 favours probable tokens.
        top_k: draw from the k most probable tokens; 0: all tokens.
        top_p: draw from the fewest tokens whose probabilities sum to at least top_p, in (0, 1].
        n_samples: sentences per image, at least 1.
        generator: source of randomness on the device of hidden; None: the global generator.
        suppress_ids: tokens never to write (padding, start, unknown); not the end token.

    Returns:
        n_samples independent sentences per image, in the order drawn. log_probs and scores are
        both the log-probability under the model's distribution, before suppression, temperature,
        top-k and top-p. The tensors are inference tensors: clone() the token ids before training
        on them.

    Raises:
        ValueError: if an argument is outside the range given above.
    """
    check_arguments(hidden, eos_id=eos_id, max_length=max_length, suppress_ids=suppress_ids)
    if not 0 < temperature < torch.inf:
        raise ValueError(f"temperature must be above 0 and finite, not {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")

    token_ids, log_probs = roll_out(
        step,
        hidden.repeat_interleave(n_samples, dim=1),
        lambda log_probs: _draw(log_probs, temperature, top_k, top_p, generator),
        bos_id=bos_id,
        eos_id=eos_id,
        max_length=max_length,
        suppress_ids=suppress_ids,
    )
    token_ids = token_ids.view(hidden.shape[1], n_samples, token_ids.shape[1])
    log_probs = log_probs.view(-1, n_samples)
    # If one sentence of an image is NaN, the image's other sentences are wrong too.
    broken = log_probs.isnan().any(dim=1, keepdim=True)
    log_probs = log_probs.masked_fill(broken, torch.nan)
    ends = token_ids == eos_id
    return Hypotheses(
        token_ids=token_ids,
        lengths=(~ends).sum(dim=2),
        log_probs=log_probs,
        scores=log_probs,
        finished=ends.any(dim=2),
    )


def _draw(
    log_probs: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw one token per row, (N, V) to (N,)."""
    if not top_k and top_p == 1:
        probs = _sharpened(log_probs, temperature)
        return probs.multinomial(1, generator=generator).squeeze(1)
    vocab_size = log_probs.shape[1]
    values, token_ids = top_tokens(log_probs, min(top_k or vocab_size, vocab_size))
    probs = _sharpened(values, temperature)
    # The sum excludes the token itself, so the token that crosses top_p is kept.
    outside = probs.cumsum(dim=1) - probs >= top_p
    outside[:, 0] = False
    probs = probs.masked_fill(outside, 0)
    drawn = probs.multinomial(1, generator=generator)
    return token_ids.gather(1, drawn).squeeze(1)


def _sharpened(log_probs: Tensor, temperature: float) -> Tensor:
    """Compute softmax(log_probs / temperature); a low temperature overflows to -inf only."""
    highest = log_probs.amax(dim=1, keepdim=True)
    return ((log_probs - highest) / temperature).softmax(dim=1)
