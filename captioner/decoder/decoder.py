"""The RNN that writes the caption; the image gives its initial hidden state.

`init_hidden` turns features into the initial hidden state. `forward` reads whole captions
(teacher forcing). `step` advances by one token. An LSTM's h and c are concatenated over layers,
so every cell has one hidden state tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.config import DecoderConfig
from captioner.decoder.recurrence import Elman
from captioner.decoder.stepping import Stepper
from captioner.search import SpecialIds, Step
from captioner.text import Vocabulary

SPECIAL_IDS = SpecialIds(Vocabulary.bos_id, Vocabulary.eos_id, Vocabulary.unwritable)


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


class InitialState(nn.Module):
    """Project features to the initial hidden state of every layer.

    h passes through tanh, so it has the range of the cell's own states. An LSTM's c is unbounded
    and stays linear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DecoderConfig, feature_size: int):
        super().__init__()
        self.norm = config.feature_norm
        self.hidden_size, self.num_layers = config.hidden_size, config.num_layers
        self.dropout = Dropout(config.feature_dropout)
        states = 2 * self.num_layers if config.cell == "lstm" else self.num_layers
        self.projection = nn.Linear(feature_size, states * self.hidden_size)
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))

    def measure(self, features: Tensor, rows: Tensor | None = None) -> None:
        """Store the mean and standard deviation of each feature over the training images.

        Args:
            features: (R, F); read in pieces, so the tensor may exceed the memory.
            rows: the rows of the training split, int64 (N,); None: all.
        """
        pieces = (torch.arange(len(features)) if rows is None else rows).split(8192)
        count = sum(map(len, pieces))
        mean, variance = torch.zeros(2, features.shape[1], dtype=torch.float64)
        for piece in pieces:
            mean += features[piece].double().sum(0) / count
        for piece in pieces:
            variance += (features[piece].double() - mean).square().sum(0) / count
        self.mean.copy_(mean)
        # Dividing a constant feature by its deviation of almost 0 would amplify rounding errors.
        std = variance.sqrt()
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to (L, B, H), or (2L, B, H) for an LSTM: all h, then all c."""
        features = features.float()
        if self.norm == "standardize":
            features = (features - self.mean) / self.std
        projected = self.projection(self.dropout(features))
        # (B, S * H) -> (S, B, H)
        states = projected.unflatten(1, (-1, self.hidden_size)).transpose(0, 1)
        h = states[: self.num_layers].tanh()
        return torch.cat((h, states[self.num_layers :])).contiguous()


class Decoder(nn.Module):
    """Word vectors -> recurrent cell -> logits of the next word."""

    def __init__(self, config: DecoderConfig, *, vocab_size: int, feature_size: int):
        """Build a decoder with random weights for V words and F features."""
        super().__init__()
        self.config = config
        self.vocab_size, self.feature_size = vocab_size, feature_size
        self.hidden_size, self.num_layers = config.hidden_size, config.num_layers
        self.is_lstm = config.cell == "lstm"
        self.num_states = 2 * self.num_layers if self.is_lstm else self.num_layers
        embed_size, tie_weights = config.embed_size, config.tie_weights
        self.embedding = nn.Embedding(vocab_size, embed_size, padding_idx=Vocabulary.pad_id)
        self.cell = _build_cell(config)
        self.init_hidden = InitialState(config, feature_size)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(embed_size if tie_weights else self.hidden_size, vocab_size)
        # Tied weights: the logits are products of this projection with the word vectors.
        self.to_embed = nn.Linear(self.hidden_size, embed_size, bias=False) if tie_weights else None
        # The first logits are near zero, so the first loss is about log V.
        nn.init.normal_(self.embedding.weight, std=embed_size**-0.5)
        with torch.no_grad():
            self.embedding.weight[Vocabulary.pad_id].zero_()
        nn.init.zeros_(self.output.bias)
        if tie_weights:
            self.output.weight = self.embedding.weight

    def run_cell(self, token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run the recurrent cell over tokens, without the output layer.

        Args:
            token_ids: int64 (B, T).
            hidden: (L, B, H), or (2L, B, H) for an LSTM.

        Returns:
            Outputs of the last layer (B, T, H), and the hidden state after the last token.
        """
        words = self.dropout(self.embedding(token_ids))
        if not self.is_lstm:
            outputs, hidden = self.cell(words, hidden)
            return outputs, hidden
        h, c = hidden.split(self.num_layers)
        outputs, state = self.cell(words, (h.contiguous(), c.contiguous()))
        return outputs, torch.cat(state)

    def to_logits(self, outputs: Tensor) -> Tensor:
        """Compute logits, (..., V), from outputs of the last layer, (..., H)."""
        outputs = self.dropout(outputs)
        if self.to_embed is not None:
            outputs = self.dropout(self.to_embed(outputs))
        logits: Tensor = self.output(outputs)
        return logits

    def forward(self, token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits (B, T, V) that follow each token (B, T), and the last hidden state."""
        outputs, hidden = self.run_cell(token_ids, hidden)
        return self.to_logits(outputs), hidden

    def step(self, token_ids: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits (B, V) that follow tokens (B,), and the hidden state after them.

        Without gradients, `stepper` is faster.
        """
        logits, hidden = self(token_ids.unsqueeze(1), hidden)
        return logits.squeeze(1), hidden

    @torch.no_grad()
    def stepper(self, dtype: torch.dtype = torch.float32) -> Step:
        """Return a fast `step` for the current weights, with matrix products in a dtype.

        Building it takes as long as several steps: reuse it until the weights change. The cell
        `elman` stays in float32.
        """
        if not isinstance(self.cell, nn.RNNBase):
            return self.step
        return Stepper(self.embedding, self.cell, self.to_embed, self.output, dtype)


def _build_cell(config: DecoderConfig) -> nn.Module:
    shape = (config.embed_size, config.hidden_size, config.num_layers)
    dropout = config.dropout if config.num_layers > 1 else 0.0
    if config.cell == "elman":
        return Elman(*shape, nonlinearity=config.nonlinearity, dropout=dropout)
    if config.cell == "rnn":
        rnn = nn.RNN(*shape, nonlinearity=config.nonlinearity, batch_first=True, dropout=dropout)
        # Only the sum of the two biases matters, so one of them stays zero.
        for layer in range(config.num_layers):
            bias = rnn.get_parameter(f"bias_hh_l{layer}")
            nn.init.zeros_(bias).requires_grad_(False)
        return rnn
    cell = nn.GRU if config.cell == "gru" else nn.LSTM
    return cell(*shape, batch_first=True, dropout=dropout)
