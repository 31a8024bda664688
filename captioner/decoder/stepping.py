"""A fast step of one token for search: recurrent cell and output layer.

On one token, `nn.LSTM` spends more time on set-up than on arithmetic, and multiplies the word
vector by the input weights in every step. Here a table holds these products for every word, and
the matrices may have a faster dtype. States and activations stay in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Stepper:
    """Advance a recurrent cell by one token and compute the next logits, without gradients.

    Build a new stepper after the weights change.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        cell: nn.RNNBase,
        to_embed: nn.Linear | None,
        output: nn.Linear,
        dtype: torch.dtype,
    ):
        """Prepare the weights of a cell of one direction; `dtype` is that of the matrices."""
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
        self._to_embed = None if to_embed is None else to_embed.weight.detach().to(dtype)
        self._output = output.weight.detach().to(dtype), output.bias.detach().to(dtype)

    def __call__(self, token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one token per row.

        Args:
            token_ids: int64 (B,).
            hidden: float32 (L, B, H), or (2L, B, H) for an LSTM: all h, then all c.

        Returns:
            Logits (B, V) of the next token, in the dtype of the matrices, and the hidden state.
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
