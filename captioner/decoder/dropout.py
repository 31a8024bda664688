"""Dropout that is fast on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """Dropout that draws one 64-bit random number for four values on a CPU.

    `nn.Dropout` draws one for each, and takes a seventh of a training step.

    Source: Srivastava et al. (2014), "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting".
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Zero values at random in training mode; scale the others by 1 / (1 - rate)."""
        if not self.training or not self.rate:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.rate)
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[: values.numel()].view_as(values)
        kept = draws >= round(self.rate * 2**16) - 2**15
        return values * kept.to(values.dtype).div_(1 - self.rate)
