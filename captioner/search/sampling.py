"""Sampling with temperature, top-k and top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.config import DecodingConfig
from captioner.search.common import Hypotheses, SpecialIds, Step, roll_out
from captioner.search.top_tokens import ids_of, top_tokens


@torch.inference_mode()
def sample(
    step: Step,
    hidden: Tensor,
    ids: SpecialIds,
    options: DecodingConfig,
    n_best: int = 1,
    generator: torch.Generator | None = None,
    choices: int = 0,
) -> Hypotheses:
    """Draw sentences token by token: temperature, then top-k, then top-p.

    Sources: top-k: Fan et al. (2018), "Hierarchical Neural Story Generation"; top-p (nucleus):
    Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration".

    Args:
        step: the decoder's step.
        hidden: initial decoder state of the images, (L, B, H).
        ids: the special tokens, and the first tokens of every sentence.
        options: min_length, max_length, temperature, top_k and top_p.
        n_best: sentences per image, at least 1.
        generator: source of randomness on the device of hidden; None: the global generator.
        choices: number C of the most probable tokens to keep for each place, 0 to V.

    Returns:
        n_best independent sentences per image, in the order drawn. log_probs and scores are
        both the log-probability under the model's distribution, before suppression, temperature,
        top-k and top-p. The tensors are inference tensors: clone() the token ids before training
        on them.
    """
    written, log_probs = roll_out(
        step,
        hidden.repeat_interleave(n_best, dim=1),
        ids,
        options.max_length,
        lambda log_probs: _draw(log_probs, options, generator),
        copies=n_best,
        choices=choices,
        min_length=options.min_length,
    )
    written = written.view(hidden.shape[1], n_best, *written.shape[1:])
    log_probs = log_probs.view(-1, n_best)
    # If one sentence of an image is NaN, the image's other sentences are wrong too.
    broken = log_probs.isnan().any(dim=1, keepdim=True)
    log_probs = log_probs.masked_fill(broken, torch.nan)
    ends = ids_of(written[..., 0]) == ids.eos_id
    return Hypotheses(written, (~ends).sum(dim=2), log_probs, log_probs, ends.any(dim=2))


def _draw(log_probs: Tensor, options: DecodingConfig, generator: torch.Generator | None) -> Tensor:
    """Draw one token per row, (N, V) to (N,)."""
    if not options.top_k and options.top_p == 1:
        probs = _sharpened(log_probs, options.temperature)
        return probs.multinomial(1, generator=generator).squeeze(1)
    vocab_size = log_probs.shape[1]
    values, token_ids = top_tokens(log_probs, min(options.top_k or vocab_size, vocab_size))
    probs = _sharpened(values, options.temperature)
    # The sum excludes the token itself, so the token that crosses top_p is kept.
    outside = probs.cumsum(dim=1) - probs >= options.top_p
    outside[:, 0] = False
    probs = probs.masked_fill(outside, 0)
    drawn = probs.multinomial(1, generator=generator)
    return token_ids.gather(1, drawn).squeeze(1)


def _sharpened(log_probs: Tensor, temperature: float) -> Tensor:
    """Compute softmax(log_probs / temperature); a low temperature overflows to -inf only."""
    highest = log_probs.amax(dim=1, keepdim=True)
    return ((log_probs - highest) / temperature).softmax(dim=1)
