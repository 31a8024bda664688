"""The parts of a model as modules that `torch.export` can trace: encoder, start and step."""

from __future__ import annotations

import copy
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from captioner.captioner import Captioner
from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.backbones import blamed_backbone
from captioner.encoder.encoder import Encoder, FrozenEncoder, side_by_side, side_by_side_features
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import ModelError


class Program(NamedTuple):
    """One part of a model, with the names of what it takes and returns."""

    exported: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Encode(nn.Module):
    """Pixels, uint8 (B, 3, S, S), to features, float32 (B, F)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.cnns = nn.ModuleList(map(_Cnn, encoder.cnns))
        self._encoder = (encoder,)  # in a tuple, so that it is no submodule

    def forward(self, pixels: Tensor) -> Tensor:
        [encoder] = self._encoder
        return side_by_side_features([cnn(pixels) for cnn in self.cnns], encoder.cnns)


class _Cnn(nn.Module):
    """Pixels to features of one CNN; `Preprocess.normalize` keeps tensors outside the module."""

    mean: Tensor
    std: Tensor

    def __init__(self, cnn: FrozenEncoder):
        super().__init__()
        self.network, self.backbone = cnn.network, cnn.spec.backbone
        for name in ("mean", "std"):
            values = torch.tensor(getattr(cnn.spec.preprocess, name)).view(1, 3, 1, 1) * 255
            self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() - self.mean) / self.std
        with blamed_backbone(self.backbone):
            features: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)


class _See(nn.Module):
    """The same, as the mean of the image and its mirror image if the model was trained so."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encode = _Encode(encoder)
        self._encoder = (encoder,)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encode(pixels)
        [encoder] = self._encoder
        if not encoder.mirrored:
            return features
        mirrored = encoder.turned(self.encode(pixels.flip(-1)))
        return torch.lerp(features, mirrored, 0.5)


class _Start(nn.Module):
    """Features, (B, F), to the initial hidden state, (L, B, H), and the keys, (B, P, E), if any."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.init_hidden, self.attention = decoder.init_hidden, decoder.attention
        self.numbers = decoder.places * decoder.channels

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden: Tensor = self.init_hidden(features)
        if self.attention is None:
            return hidden
        return hidden, self.attention.keys(features[:, -self.numbers :])


class _Step(nn.Module):
    """Tokens, int64 (N,), and the state to log-probabilities of the next, (N, V), and the state."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, token_ids: Tensor, hidden: Tensor, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits, hidden = self.decoder.step(token_ids, hidden, keys)
        return logits.log_softmax(-1), hidden


@torch.no_grad()
def trace(captioner: Captioner) -> dict[str, Program]:
    """Trace the parts of a model in float32; the number of images or rows stays free.

    Returns:
        `encoder`: pixels, uint8 (B, 3, S, S), to features, (B, F); absent from a model of features.
        `start`: features to hidden, (L, B, H), and with attention keys, (B, P, E).
        `step`: token_ids, int64 (N,), hidden, (L, N, H), and with attention keys, (N, P, E), to
        log_probs, (N, V), and next_hidden, (L, N, H).

    Raises:
        ModelError: for an ensemble.
    """
    if isinstance(captioner.decoder, Ensemble):
        raise ModelError("an ensemble cannot be exported; export its models one by one")
    encoder, decoder = captioner.encoder, copy.deepcopy(captioner.decoder).cpu().float().eval()
    rows = Dim("rows")
    features = torch.rand(3, encoder.feature_size)
    hidden, keys = decoder.begin(features)
    state = ("hidden",) if keys is None else ("hidden", "keys")
    step_inputs = (torch.tensor([1, 1, 1]), hidden, *(() if keys is None else (keys,)))
    step_shapes = ({0: rows}, {1: rows}, *(() if keys is None else ({0: rows},)))
    programs = {}
    if not isinstance(encoder, GivenFeatures):
        side = encoder.preprocess.crop_size
        pixels = torch.zeros(3, 3, side, side, dtype=torch.uint8)
        exported = _export(_See(_exact(encoder)), (pixels,), ({0: Dim("images")},))
        programs["encoder"] = Program(exported, ("pixels",), ("features",))
    started = _export(_Start(decoder), (features,), ({0: Dim("images")},))
    programs["start"] = Program(started, ("features",), state)
    stepped = _export(_Step(decoder), step_inputs, step_shapes)
    programs["step"] = Program(stepped, ("token_ids", *state), ("log_probs", "next_hidden"))
    return programs


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Dim], ...]
) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch keeps the weights of a cell in two places
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def _exact(encoder: Encoder) -> Encoder:
    """Return the encoder on the CPU in float32."""
    cnns = [
        FrozenEncoder(cnn.spec, cnn.state, "fp32", cnn.grid, cnn.grid_channels)
        for cnn in encoder.cnns
    ]
    exact = side_by_side(cnns)
    exact.mirrored = encoder.mirrored
    return exact
