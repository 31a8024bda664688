"""A decoder unrolled over captions, so that autograd can differentiate by every hidden state."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoder.decoder import Decoder


class Unrolled(NamedTuple):
    """B captions that a decoder has read step by step; S is L, or 2L for an LSTM."""

    states: list[Tensor]  # T + 1 states, [0] the initial one, [t] after t tokens, float64 (S, B, H)
    logits: Tensor  # of the last token of each caption, float64 (B, V)


def unroll(decoder: Decoder, features: Tensor, inputs: Tensor, lengths: Tensor) -> Unrolled:
    """Read captions step by step in float64 on the CPU, without dropout.

    Does not change the decoder. Gradients flow to every state, but not to features or weights.

    Args:
        decoder: of any device.
        features: of the image of each caption, (B, F).
        inputs: captions from the start token on, int64 (B, T).
        lengths: tokens to predict of each caption, 1 to T, int64 (B,).
    """
    twin = copy.deepcopy(decoder).cpu().eval().requires_grad_(False)
    hidden = twin.init_hidden(features.cpu()).double().requires_grad_()
    twin.double()
    keys = twin.keys(features.cpu().double())
    states = [hidden]
    for token_ids in inputs.cpu().split(1, dim=1):
        _, hidden = twin.run_cell(token_ids, hidden)
        states.append(hidden)
    # The output layer reads h of the last layer.
    outputs = torch.stack([state[twin.num_layers - 1] for state in states])  # (T + 1, B, H)
    last = outputs[lengths.cpu(), torch.arange(len(inputs))]
    return Unrolled(states, twin.to_logits(twin.look(last[:, None], keys)[:, 0]))
