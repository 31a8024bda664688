"""One training step: teacher forcing, back-propagation through time, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from captioner.data.caption_table import Batch
from captioner.decoder.decoder import Decoder
from captioner.text import Vocabulary
from captioner.training.loss import cross_entropy


def word_loss(
    decoder: Decoder,
    outputs: Tensor,
    targets: Tensor,
    label_smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the loss of the output layer from the outputs of the recurrent cell.

    Args:
        decoder: gives the output layer.
        outputs: of the last recurrent layer, (N, H).
        targets: int64 (N,), the next tokens.
        label_smoothing: see `cross_entropy`; 0 with weights.
        weights: float32 (N,), the weight of each word of sampled captions, which hold no padding,
            start or unknown tokens; None: reference captions, weight 1.

    Returns:
        Sum of the losses in nats, a float32 scalar.
    """
    logits = decoder.to_logits(outputs)
    if weights is not None:  # the search sampled from this distribution
        never = torch.tensor(Vocabulary.unwritable, device=logits.device)
        logits = logits.index_fill(-1, never, -torch.inf)
    return cross_entropy(logits, targets, label_smoothing, weights)


def backward(
    decoder: Decoder,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    window: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Add the gradients of a batch's loss to the decoder's parameters.

    The loss is the cross-entropy of the next token, averaged over the batch's tokens without
    padding. If the batch has weights, each caption's loss is multiplied by its weight: with
    advantages as weights, the gradient is the policy gradient (Williams 1992, "REINFORCE").

    A window splits the caption into pieces of that many tokens. The hidden state passes from piece
    to piece, its gradient does not (truncated back-propagation through time, Williams & Peng 1990).
    The window bounds the memory. A window as long as the caption gives the full gradient.

    Args:
        decoder: in training mode.
        batch: captions and their images.
        label_smoothing: probability spread evenly over the vocabulary, in [0, 1); 0 with weights.
        window: tokens per piece, at least 1; None: the whole caption.
        scaler: multiplies the loss before the gradients are taken, for fp16.

    Returns:
        The loss in nats per token, a scalar without gradient.
    """
    total = batch.inputs.new_zeros((), dtype=torch.float32)
    if not len(batch.inputs):  # a batch can have fewer captions than there are processes
        return total
    hidden = decoder.init_hidden(batch.features)
    width = window or batch.inputs.shape[1]
    for start in range(0, batch.inputs.shape[1], width):
        piece = slice(start, start + width)
        outputs, hidden = decoder.run_cell(batch.inputs[:, piece], hidden)
        targets = batch.targets[:, piece]
        # The output layer is the widest, so padding skips it.
        real = (targets != Vocabulary.pad_id).flatten().nonzero().squeeze(1)
        weights = batch.weights
        loss = (
            word_loss(
                decoder,
                outputs.flatten(0, 1).index_select(0, real),
                targets.flatten()[real],
                label_smoothing,
                None if weights is None else weights[real // targets.shape[1]],
            )
            / batch.tokens
        )
        (scaler.scale(loss) if scaler else loss).backward()
        total += loss.detach()
        hidden = hidden.detach()
    return total


def clip(parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
    """Scale all gradients to a global norm of at most `clip_norm`.

    Source: Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
    networks".

    Returns:
        The norm before clipping, a scalar.
    """
    return nn.utils.clip_grad_norm_(parameters, clip_norm)


def schedule(step: int, *, total_steps: int, warmup_steps: int, kind: str) -> float:
    """Return the learning rate at a step, as a fraction of the peak.

    Args:
        step: from 0, less than `total_steps`.
        total_steps: steps of the whole run.
        warmup_steps: steps of linear growth at the start; at most a tenth of the run.
        kind: "cosine", "linear" or "constant", the shape after the warm-up.

    Returns:
        A factor in [0, 1].
    """
    warmup = min(warmup_steps, total_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (total_steps - warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if kind == "linear" else 1.0
