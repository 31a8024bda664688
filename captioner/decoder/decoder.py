"""The RNN that writes the caption; the image gives its initial hidden state.

`init_hidden` turns features into the initial hidden state. `forward` reads whole captions
(teacher forcing). `stepper` advances many captions by one token. With `decoder.attention`, the
features of an image are its pooled vector and then its places, and each output looks at the places.
An LSTM's h and c are concatenated over layers, so every cell has one hidden state tensor.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from captioner.config import CELLS, DecoderConfig
from captioner.decoder.attention import Attention
from captioner.decoder.dropout import Dropout
from captioner.decoder.recurrence import Elman
from captioner.decoder.stepping import Stepper, Stepping
from captioner.decoder.trial import check_form, check_rules
from captioner.errors import ConfigError
from captioner.search import SpecialIds, Step
from captioner.system.plugins import blamed, guarded, load, plugin, tell_unused
from captioner.text import Vocabulary

SPECIAL_IDS = SpecialIds(Vocabulary.bos_id, Vocabulary.eos_id, Vocabulary.unwritable)


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

    def forward(self, features: Tensor) -> Tensor:
        """Map features to (L, B, H), or (2L, B, H) for an LSTM: all h, then all c.

        Of features, (B, F or more), only the pooled vector counts, which comes first.
        """
        features = features[:, : self.projection.in_features].float()
        if self.norm == "standardize":
            features = (features - self.mean) / self.std
        projected = self.projection(self.dropout(features))
        # (B, S * H) -> (S, B, H)
        states = projected.unflatten(1, (-1, self.hidden_size)).transpose(0, 1)
        h = states[: self.num_layers].tanh()
        return torch.cat((h, states[self.num_layers :])).contiguous()


class Decoder(nn.Module):
    """Word vectors -> recurrent cell -> logits of the next word."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        vocab_size: int,
        feature_size: int,
        places: int = 0,
        channels: int = 0,
    ):
        """Build a decoder with random weights.

        Args:
            config: its settings.
            vocab_size: words V.
            feature_size: numbers of an image, F: the pooled vector, then the places one by one.
            places: P; `attention` needs them.
            channels: numbers of a place, C.
        """
        super().__init__()
        self.config = config
        self.vocab_size, self.feature_size = vocab_size, feature_size
        self.places, self.channels = places, channels
        self.hidden_size, self.num_layers = config.hidden_size, config.num_layers
        self.is_lstm = config.cell == "lstm"
        self.num_states = 2 * self.num_layers if self.is_lstm else self.num_layers
        embed_size, tie_weights = config.embed_size, config.tie_weights
        self.embedding = nn.Embedding(vocab_size, embed_size, padding_idx=Vocabulary.pad_id)
        self.cell = _build_cell(config)
        self.init_hidden = InitialState(config, feature_size - places * channels)
        self.dropout = Dropout(config.dropout)
        self.attention = None
        if config.attention == "spatial":
            self.attention = Attention(config, channels)
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

        Raises:
            PlugInError: if the cell of a plug-in fails.
        """
        words = self.dropout(self.embedding(token_ids))
        if not self.is_lstm:
            with self.blamed():
                outputs, hidden = self.cell(words, hidden)
            return outputs, hidden
        h, c = hidden.split(self.num_layers)
        outputs, state = self.cell(words, (h.contiguous(), c.contiguous()))
        return outputs, torch.cat(state)

    def try_cell(self) -> None:
        """Try the rules of the cell of a plug-in: words one by one, rows alone, a gradient.

        Raises:
            ConfigError: if the cell breaks one.
        """
        if self.config.cell not in CELLS and (who := plugin("cells", self.config.cell)):
            training = self.cell.training
            with guarded(who, ConfigError):
                check_rules(self.cell.eval(), self.config)
            self.cell.train(training)

    def blamed(self) -> AbstractContextManager[None]:
        """Return what names the plug-in of the cell, if it has one, in an exception."""
        return blamed("cells", None if self.config.cell in CELLS else self.config.cell)

    def keys(self, features: Tensor) -> Tensor | None:
        """Compute the keys of the places, (B, P, E), from features, (B, F); None if it has none."""
        if self.attention is None:
            return None
        return self.attention.keys(features[:, -self.places * self.channels :])

    def look(self, outputs: Tensor, keys: Tensor | None) -> Tensor:
        """Let each output, (B, T, H), look at the places of its image."""
        if self.attention is None or keys is None:
            return outputs
        looked: Tensor = self.attention(outputs, keys)[0]
        return looked

    def attend(self, features: Tensor, token_ids: Tensor) -> Tensor | None:
        """Compute where captions look, by teacher forcing; None without attention.

        Args:
            features: of images, (B, F).
            token_ids: N captions of each image, from the start token on, int64 (B, N, T).

        Returns:
            The weights for the word after each token, (B, N, T, P + 1), the sentinel's last.
        """
        hidden, keys = self.begin(features)
        if self.attention is None or keys is None:
            return None
        images, captions, length = token_ids.shape
        hidden = hidden.repeat_interleave(captions, dim=1)
        outputs, _ = self.run_cell(token_ids.flatten(0, 1), hidden)
        _, weights = self.attention(outputs.reshape(images, captions * length, -1), keys)
        by_caption: Tensor = weights.unflatten(1, (captions, length))
        return by_caption

    def to_logits(self, outputs: Tensor) -> Tensor:
        """Compute logits, (..., V), from outputs that have looked, (..., H)."""
        outputs = self.dropout(outputs)
        if self.to_embed is not None:
            outputs = self.dropout(self.to_embed(outputs))
        logits: Tensor = self.output(outputs)
        return logits

    def forward(
        self, token_ids: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits (B, T, V) that follow each token (B, T), and the last hidden state."""
        outputs, hidden = self.run_cell(token_ids, hidden)
        return self.to_logits(self.look(outputs, keys)), hidden

    def step(
        self, token_ids: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits (B, V) that follow tokens (B,), and the hidden state after them.

        Without gradients, `stepper` is faster.
        """
        logits, hidden = self(token_ids.unsqueeze(1), hidden, keys)
        return logits.squeeze(1), hidden

    def measure(self, features: Tensor, rows: Tensor | None = None) -> None:
        """Store the mean and standard deviation of each feature over the training images.

        Args:
            features: (R, F); read in pieces, so the tensor may exceed the memory.
            rows: the rows of the training split, int64 (N,); None: all.
        """
        pieces = (torch.arange(len(features)) if rows is None else rows).split(1024)
        count = sum(map(len, pieces))
        mean, variance = torch.zeros(2, features.shape[1], dtype=torch.float64)
        for piece in pieces:
            mean += features[piece].double().sum(0) / count
        for piece in pieces:
            variance += (features[piece].double() - mean).square().sum(0) / count
        pooled = self.feature_size - self.places * self.channels
        _keep_moments(self.init_hidden, mean[:pooled], variance[:pooled])
        if self.attention is not None:
            means = mean[pooled:].view(self.places, self.channels)
            spread = means.var(0, correction=0)  # between the places
            of_places = variance[pooled:].view_as(means).mean(0) + spread
            _keep_moments(self.attention, means.mean(0), of_places)

    @torch.no_grad()
    def stepper(self, dtype: torch.dtype = torch.float32) -> Stepping:
        """Return a fast way to advance many captions, for the current weights.

        Building it takes as long as several steps: reuse it until the weights change. Matrix
        products have the dtype; the cell `elman` stays in float32.
        """
        # A plug-in's cell may be a subclass that computes something else.
        if not isinstance(self.cell, nn.RNNBase) or self.config.cell not in CELLS:
            return self
        layers = self.embedding, self.cell, self.attention, self.to_embed, self.output
        return Stepper(self.begin, *layers, dtype)

    def begin(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the initial hidden states of images, from features (A, F), and their keys."""
        return self.init_hidden(features), self.keys(features)

    def start(self, features: Tensor) -> tuple[Tensor, Step]:
        """Return the initial hidden states of images, from features (A, F), and their step."""
        hidden, keys = self.begin(features)

        def step(token_ids: Tensor, hidden: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            if keys is None:
                return self.step(token_ids, hidden)
            return self.step(
                token_ids, hidden, keys[images.repeat_interleave(len(token_ids) // len(images))]
            )

        return hidden, step


def _keep_moments(module: InitialState | Attention, mean: Tensor, variance: Tensor) -> None:
    module.mean.copy_(mean)
    # Dividing a constant feature by its deviation of almost 0 would amplify rounding errors.
    std = variance.sqrt()
    module.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def _build_cell(config: DecoderConfig) -> nn.Module:
    shape = (config.embed_size, config.hidden_size, config.num_layers)
    dropout = config.dropout if config.num_layers > 1 else 0.0
    if config.cell not in CELLS:
        return _cell_of_plugin(config, dropout)
    tell_unused("cells", config.cell)
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


def _cell_of_plugin(config: DecoderConfig, dropout: float) -> nn.Module:
    """Build a plug-in's cell, and try it on two captions of three words.

    Raises:
        ConfigError: if it cannot be built or called, or its results have another form.
    """
    make = load("cells", config.cell)
    who = plugin("cells", config.cell)
    assert who
    with guarded(who, ConfigError):
        cell = make(config.embed_size, config.hidden_size, config.num_layers, dropout=dropout)
        if not isinstance(cell, nn.Module):
            raise TypeError(f"it builds no torch.nn.Module but {type(cell).__name__}")
        check_form(cell.eval(), config)
    return cell.train()
