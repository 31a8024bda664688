"""Spatial attention: before each word, the decoder looks at places of the image.

The recurrent cell runs over the caption as before. Then each of its outputs h_t asks the places
where to look; a sentinel, made of h_t, stands for "not at the image". The answer does not feed the
recurrence, so training runs the cell in one call.

Source: Lu et al. (2017), "Knowing When to Look: Adaptive Attention via A Visual Sentinel for Image
Captioning"; here the sentinel is a projection of h_t, and keys and values are the same vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import DecoderConfig
from captioner.decoder.dropout import Dropout


class Attention(nn.Module):
    """Adds to each output of the recurrent cell what it sees at P places with C features each.

    key k_p = relu(W_k a_p), query q_t = W_q h_t, sentinel s_t = relu(W_s h_t); the weights are the
    softmax of q_t . k_p / sqrt(E) and q_t . s_t / sqrt(E), the context c_t their mean of keys and
    sentinel, and the output tanh(W_c [c_t; h_t]). Keys, queries and sentinel have the size E of the
    word vectors, because products with the size H of the states make training longer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DecoderConfig, channels: int):
        """Build an attention with random weights for C features a place."""
        super().__init__()
        hidden_size, size = config.hidden_size, config.embed_size
        self.channels, self.size = channels, size
        self.place_dropout = config.place_dropout
        self.feature_dropout = Dropout(config.feature_dropout)
        self.dropout = Dropout(config.dropout)
        self.key = nn.Linear(channels, size)
        self.query = nn.Linear(hidden_size, size, bias=False)
        self.sentinel = nn.Linear(hidden_size, size)
        self.merge = nn.Linear(size + hidden_size, hidden_size)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def keys(self, grid: Tensor) -> Tensor:
        """Compute keys (B, P, E) from the features of places, (B, P * C)."""
        places = grid.to(self.mean.dtype).unflatten(1, (-1, self.channels))
        keys: Tensor = self.key(self.feature_dropout((places - self.mean) / self.std)).relu()
        return keys

    def forward(self, outputs: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the image after every token.

        Args:
            outputs: of the recurrent cell, (B, T, H).
            keys: (B, P, E), of `keys`.

        Returns:
            Outputs that have looked, (B, T, H), and weights, (B, T, P + 1), the sentinel's last.
        """
        query = self.query(outputs) / self.size**0.5
        sentinel = self.sentinel(outputs).relu()
        scores = query @ keys.transpose(1, 2)  # (B, T, P)
        if self.training and self.place_dropout:
            gone = torch.rand(len(keys), 1, keys.shape[1], device=keys.device) < self.place_dropout
            scores = scores.masked_fill(gone, -torch.inf)
        scores = torch.cat((scores, (query * sentinel).sum(2, keepdim=True)), dim=2)
        weights = scores.softmax(2)
        context = weights[:, :, :-1] @ keys + weights[:, :, -1:] * sentinel
        return self.merge(self.dropout(torch.cat((context, outputs), dim=2))).tanh(), weights
