"""One step of the recurrent cell written out, for search: as `nn.LSTM`, for one token, is slow.

Called for a single token, the module prepares its weights anew each time, which costs more than
the products themselves. And the first layer's input is always one of V word vectors: what the
input weights make of each is computed once and then looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_ROWS = 64  # computing V products is not worth it for a search of fewer rows


class Stepper:
    """Advances a torch recurrent cell by one token; exact, without gradients.

    Remembers the table of input products for as long as no weight in it changes.
    """

    def __init__(self) -> None:
        self._table = torch.empty(0)
        self._made_from: Sequence[object] = ()

    def step(
        self, embedding: nn.Embedding, cell: nn.RNNBase, token_ids: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read one token per row.

        Args:
            embedding: word vectors.
            cell: `nn.RNN`, `nn.GRU` or `nn.LSTM` in evaluation mode, one direction.
            token_ids: int64 (B,).
            hidden: (L, B, H), or (2L, B, H) for an LSTM: all h, then all c.

        Returns:
            output of the last layer (B, H), and the hidden state after the token.
        """
        states = hidden.unbind(0)
        layers = cell.num_layers
        after_h: list[Tensor] = []
        after_c: list[Tensor] = []
        for layer in range(layers):
            w_ih, w_hh, b_ih, b_hh = (
                cell.get_parameter(f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if layer:
                gates = functional.linear(after_h[-1], w_ih, b_ih)
            else:
                gates = self._first_layer(embedding, w_ih, b_ih, token_ids)
            h = states[layer]
            if isinstance(cell, nn.LSTM):
                h, c = _lstm(gates, h, states[layers + layer], w_hh, b_hh)
                after_c.append(c)
            elif isinstance(cell, nn.GRU):
                h = _gru(gates, h, w_hh, b_hh)
            else:
                total = functional.linear(h, w_hh, b_hh).add_(gates)
                h = total.tanh_() if cell.mode == "RNN_TANH" else total.relu_()
            after_h.append(h)
        return after_h[-1], torch.stack(after_h + after_c)

    def _first_layer(
        self, embedding: nn.Embedding, w_ih: Tensor, b_ih: Tensor, token_ids: Tensor
    ) -> Tensor:
        """Return what the input weights make of the tokens' word vectors."""
        words = embedding.weight
        sources = (words, w_ih, b_ih)
        # In-place changes count the version up; a move to another device or dtype shows as such.
        # Tensors made in inference mode have no version: nothing may be remembered of them.
        counted = not any(tensor.is_inference() for tensor in sources)
        # By this call alone, not by what was looked up before: what is written about an image must
        # not depend on the history of the process, not even in the last bit.
        if not counted or len(token_ids) < FEW_ROWS:
            return functional.linear(embedding(token_ids), w_ih, b_ih)
        made_from = [(t.data_ptr(), t._version, t.device, t.dtype) for t in sources]
        if self._made_from != made_from:
            with torch.inference_mode(False), torch.no_grad():
                self._table = functional.linear(words, w_ih, b_ih)
            self._made_from = made_from
        return self._table.index_select(0, token_ids)


def _lstm(gates: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """i, f, o = sigmoid, g = tanh of the gates; c' = f c + i g; h' = o tanh(c')."""
    gates = gates.addmm_(h, w_hh.t()).add_(b_hh)
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.addcmul(f.sigmoid_() * c, i.sigmoid_(), g.tanh_())
    return o.sigmoid_() * c.tanh(), c


def _gru(gates: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    """r, z = sigmoid; n = tanh of the input's part + r * the state's part; h' = n + z (h - n)."""
    r, z, n = gates.chunk(3, dim=1)
    state_r, state_z, state_n = functional.linear(h, w_hh, b_hh).chunk(3, dim=1)
    r, z = (r + state_r).sigmoid_(), (z + state_z).sigmoid_()
    n = torch.addcmul(n, r, state_n).tanh_()
    return torch.lerp(n, h, z)
