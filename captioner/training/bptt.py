"""Teacher forcing and back-propagation through time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from captioner.data.caption_table import Batch
from captioner.decoder.decoder import Decoder
from captioner.text import Vocabulary
from captioner.training.loss import cross_entropy


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
    to piece, but its gradient does not (truncated back-propagation through time, Williams & Peng
    1990). The window bounds the memory. A window as long as the caption gives the full gradient.

    Label smoothing is the probability spread evenly over the vocabulary, in [0, 1); 0 with weights.
    The scaler multiplies the loss before the gradients are taken, for fp16.

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
        targets = batch.targets[:, piece]
        real = _real(targets)
        logits, hidden = _logits(decoder, batch.features, batch.inputs[:, piece], hidden, real)
        weights = None
        if batch.weights is not None:  # the search sampled without these tokens
            weights = batch.weights[real // targets.shape[1]]
            never = torch.tensor(Vocabulary.unwritable, device=logits.device)
            logits = logits.index_fill(-1, never, -torch.inf)
        loss = cross_entropy(logits, targets.flatten()[real], label_smoothing, weights)
        loss = loss / batch.tokens
        with decoder.blamed():
            (scaler.scale(loss) if scaler else loss).backward()
        total += loss.detach()
        hidden = hidden.detach()
    return total


@torch.no_grad()
def total_loss(decoder: Decoder, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss of `backward`, summed over the tokens and without gradients, a scalar."""
    hidden, real = decoder.init_hidden(batch.features), _real(batch.targets)
    logits, _ = _logits(decoder, batch.features, batch.inputs, hidden, real)
    targets = batch.targets.flatten()[real]
    return functional.cross_entropy(
        logits.float(), targets, label_smoothing=label_smoothing, reduction="sum"
    )


def _logits(
    decoder: Decoder, features: Tensor, inputs: Tensor, hidden: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the decoder over tokens; return the logits at the places `real`, and the last state.

    The keys of the places belong to this call: `backward` frees what they were computed from.
    """
    outputs, hidden = decoder.run_cell(inputs, hidden)
    outputs = decoder.look(outputs, decoder.keys(features))
    return decoder.to_logits(outputs.flatten(0, 1).index_select(0, real)), hidden


def _real(targets: Tensor) -> Tensor:
    """Return the places of all tokens but padding, which skips the output layer, the widest."""
    return (targets != Vocabulary.pad_id).flatten().nonzero().squeeze(1)
