"""The loss of the next word, with its gradient computed in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that computes its gradient in the forward pass.

    The logits are the largest tensor of a training step; autograd would read them several times.
    Their gradient, softmax minus target, needs the log-probabilities of the loss. The forward pass
    therefore computes both, in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        label_smoothing: float,
        weights: Tensor | None,
    ) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        index = targets.unsqueeze(-1)
        spread = label_smoothing / log_probs.shape[-1]
        peak = 1 - label_smoothing
        losses = -peak * log_probs.gather(-1, index).squeeze(-1)
        if label_smoothing:  # 0 times a log-probability of -inf is NaN
            losses -= spread * log_probs.sum(-1)
        gradient = log_probs.exp_().sub_(spread)
        gradient.scatter_add_(-1, index, gradient.new_full(index.shape, -peak))
        if weights is not None:
            losses *= weights
            gradient *= weights.unsqueeze(-1)
        ctx.save_for_backward(gradient.to(logits.dtype))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the summed cross-entropy of the next words.

    Equals `torch.nn.functional.cross_entropy(..., reduction="sum")` on float32 logits, with fewer
    passes over the logits. Label smoothing after Szegedy et al. (2016), "Rethinking the Inception
    Architecture for Computer Vision".

    Logits are (N, V), of any floating type; targets are int64 (N,), in 0..V-1. Label smoothing is
    the probability spread evenly over the vocabulary, in [0, 1). Weights, float32 (N,), multiply
    each word's loss and may be negative. The loss is in nats, a float32 scalar.
    """
    loss: Tensor = _CrossEntropy.apply(logits, targets, label_smoothing, weights)
    return loss
