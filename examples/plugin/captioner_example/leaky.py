"""A cell: each unit keeps a learnt share of its old value."""

import torch
from torch import Tensor, nn


class Leaky(nn.Module):
    """h = a * h + (1 - a) * tanh(W x + U h), with a in (0, 1) for each unit."""

    def __init__(self, embed_size: int, hidden_size: int, num_layers: int, *, dropout: float):
        """Set the layers; `dropout` is between them."""
        super().__init__()
        sizes = [embed_size] + [hidden_size] * (num_layers - 1)
        self.inputs = nn.ModuleList(nn.Linear(size, hidden_size) for size in sizes)
        self.states = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(num_layers)
        )
        self.keep = nn.Parameter(torch.zeros(num_layers, hidden_size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Read word vectors, (B, T, E), from the states (L, B, H); return (B, T, H), (L, B, H)."""
        last = []
        for layer, h in enumerate(hidden):
            inputs = self.dropout(inputs) if layer else inputs
            share, outputs = self.keep[layer].sigmoid(), []
            for x in self.inputs[layer](inputs).unbind(1):
                h = share * h + (1 - share) * torch.tanh(x + self.states[layer](h))  # noqa: PLW2901
                outputs.append(h)
            inputs = torch.stack(outputs, dim=1)
            last.append(h)
        return inputs, torch.stack(last)
