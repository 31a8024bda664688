"""A fast step of one token for search: recurrent cell, attention and output layer.

On one token, `nn.LSTM` spends more time on set-up than on arithmetic, and multiplies the word
vector by the input weights in every step. Here a table holds these products for every word, and
the matrices may have a faster dtype. States and activations stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.decoder.attention import Attention
from captioner.search import Step


class Stepping(Protocol):
    """What starts a search: a decoder, its `Stepper`, or an ensemble's."""

    def start(self, features: Tensor) -> tuple[Tensor, Step]:
        """Return the initial hidden states of images, from features (A, F), and their step."""
        ...


class Stepper:
    """Advance a recurrent cell by one token and compute the next logits, without gradients.

    Build a new stepper after the weights change.
    """

    def __init__(
        self,
        begin: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        embedding: nn.Embedding,
        cell: nn.RNNBase,
        attention: Attention | None,
        to_embed: nn.Linear | None,
        output: nn.Linear,
        dtype: torch.dtype,
    ):
        """Prepare the weights of a decoder; `begin` is its method, `dtype` that of the matrices."""
        self._begin = begin
        self._kind, self._layers = cell.mode, cell.num_layers
        self._dtype = dtype
        self._input: list[tuple[Tensor, Tensor]] = []  # W and b from the layer below
        self._recurrent: list[tuple[Tensor, Tensor | None]] = []
        for layer in range(cell.num_layers):
            w_ih, w_hh, b_ih, b_hh = (
                self._doubled(cell.get_parameter(f"{name}_l{layer}").detach())
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if self._kind == "GRU":  # the reset gate multiplies b_hh, so the biases cannot be added
                self._recurrent.append((w_hh.to(dtype), b_hh.to(dtype)))
            else:
                b_ih = b_ih + b_hh
                self._recurrent.append((w_hh.to(dtype), None))
            if layer:
                self._input.append((w_ih.to(dtype), b_ih.to(dtype)))
            else:
                self._table = functional.linear(embedding.weight.detach(), w_ih, b_ih).to(dtype)
        self._attention = copy.deepcopy(attention)
        if self._attention:
            self._attention.eval().to(dtype)
        self._to_embed = None if to_embed is None else to_embed.weight.detach().to(dtype)
        self._output = output.weight.detach().to(dtype), output.bias.detach().to(dtype)

    def start(self, features: Tensor) -> tuple[Tensor, Step]:
        """Return the initial hidden states of images, from features (A, F), and their step."""
        hidden, keys = self._begin(features)
        if keys is None:
            return hidden, lambda token_ids, hidden, _: self.step(token_ids, hidden)
        all_keys = keys.to(self._dtype)
        of: tuple[Tensor, Tensor] | None = None  # images, and their keys

        def step(token_ids: Tensor, hidden: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal of
            if of is None or of[0] is not images:  # a search changes them rarely
                of = images, all_keys[images]
            return self.step(token_ids, hidden, of[1])

        return hidden, step

    def step(
        self, token_ids: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advance by one token per row.

        Args:
            token_ids: int64 (N,).
            hidden: float32 (L, N, H), or (2L, N, H) for an LSTM: all h, then all c.
            keys: of the places of A images, (A, P, E), each for N / A rows, in the dtype of the
                matrices; None: no attention.

        Returns:
            Logits (N, V) of the next token, in the dtype of the matrices, and the hidden state.
        """
        states = hidden.unbind(0)
        after_h: list[Tensor] = []
        after_c: list[Tensor] = []
        for layer, (w_hh, b_hh) in enumerate(self._recurrent):
            if layer:
                gates = functional.linear(after_h[-1].to(self._dtype), *self._input[layer - 1])
            else:
                gates = self._table.index_select(0, token_ids)
            h = states[layer]
            if self._kind == "GRU":
                from_state = functional.linear(h.to(self._dtype), w_hh, b_hh)
                h = _gru(gates.float(), h, from_state.float())
            else:
                gates = gates.addmm_(h.to(self._dtype), w_hh.t()).float()
                if self._kind == "LSTM":
                    h, c = _lstm(gates, states[self._layers + layer])
                    after_c.append(c)
                else:
                    h = gates.relu_() if self._kind == "RNN_RELU" else _tanh_of_half(gates)
            after_h.append(h)
        outputs = after_h[-1].to(self._dtype)
        if keys is not None and self._attention is not None:
            grouped = outputs.unflatten(0, (len(keys), -1))
            outputs = self._attention(grouped, keys)[0].flatten(0, 1)
        if self._to_embed is not None:
            outputs = functional.linear(outputs, self._to_embed)
        return functional.linear(outputs, *self._output), torch.stack(after_h + after_c)

    def _doubled(self, weight: Tensor) -> Tensor:
        """Double the rows whose outputs go to `_tanh_of_half`; doubling a float is exact."""
        if self._kind == "RNN_RELU":
            return weight
        if self._kind == "RNN_TANH":
            return 2 * weight
        gates = list(weight.chunk(4 if self._kind == "LSTM" else 3))
        gates[2] = 2 * gates[2]
        return torch.cat(gates)


def _tanh_of_half(values: Tensor) -> Tensor:
    """Compute tanh(x / 2) = 2 sigmoid(x) - 1 in place, five times as fast as `torch.tanh`."""
    return values.sigmoid_().mul_(2).sub_(1)


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """i, f, o = sigmoid, g = tanh of the gates (g is doubled); c' = f c + i g; h' = o tanh(c')."""
    i, f, half_g, o = gates.sigmoid_().chunk(4, dim=1)
    c = (f * c).addcmul_(i, half_g, value=2).sub_(i)
    return _tanh_of_half(2 * c).mul_(o), c


def _gru(gates: Tensor, h: Tensor, from_state: Tensor) -> Tensor:
    """r, z = sigmoid; n = tanh of the input's term + r * the state's term; h' = n + z (h - n)."""
    r, z, n = gates.chunk(3, dim=1)
    state_r, state_z, state_n = from_state.chunk(3, dim=1)
    r, z = (r + state_r).sigmoid_(), (z + state_z).sigmoid_()
    return torch.lerp(_tanh_of_half(torch.addcmul(n, r, state_n)), h, z)
