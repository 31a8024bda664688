"""The frozen CNN: a network of torchvision or timm without its last layer, in its fast form.

The feature of an image is the input of the network's last linear layer: the pooled vector in most
families, the second hidden layer ("fc7") in VGG and AlexNet. `folding` converts the network to its
fast form at construction and for each device. The network computes in bf16 if the hardware
supports it, and on the CPU a few images at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Self, TypedDict

import torch
from torch import Tensor, nn

from captioner.config import Precision
from captioner.encoder.backbones import (
    blamed_backbone,
    build_backbone,
    check_backbone,
    is_plugin,
    remove_head,
    try_plugin,
)
from captioner.encoder.folding import fast_form
from captioner.encoder.grid import with_grid
from captioner.encoder.preprocess import RESIZING, Preprocess
from captioner.encoder.timm_networks import check_timm, fast_timm, fetch_timm, is_timm, open_timm
from captioner.encoder.weights import EncoderSpec, fetch_weights, load_strictly
from captioner.errors import ModelError, within_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_IMAGES = 4  # in one pass; the maps of more are too large for malloc to keep between passes
MAX_NAME = 120  # characters; a folder name holds it and the fingerprint


class FeatureSizes(TypedDict):
    """The sizes of the features of an image."""

    feature_size: int  # numbers F: the vector and all places
    places: int  # P
    channels: int  # numbers C of a place


class Encoder(nn.Module):
    """Turns an image into features, with one frozen CNN or several side by side.

    The features are the concatenation of the CNNs' vectors. CNNs of different families or training
    make different mistakes; the decoder learns from the features of all of them. With a grid, the
    features of S x S places follow the vector, row by row; each place has those of all CNNs.
    """

    feature_size: int  # numbers F of an image
    grid: int = 0  # places S in a row and in a column; 0: the vector alone
    channels: int = 0  # numbers C of a place
    grid_channels: int = 0  # the most numbers of a place and CNN
    device: torch.device
    dtype: torch.dtype  # of the computation
    mirrored = False  # whether `see` averages both views

    def __init__(self, cnns: Sequence[FrozenEncoder]):
        """Combine CNNs, all on one device, in the order of their features; see `side_by_side`."""
        super().__init__()
        _check_alike(cnns)
        self._cnns = tuple(cnns)
        self.networks = nn.ModuleList(cnns)
        self.feature_size = sum(cnn.feature_size for cnn in cnns)
        # Those of models without attention, in an ensemble, have no grid.
        self.grid = max(cnn.grid for cnn in cnns)
        self.grid_channels = cnns[0].grid_channels
        self.channels = sum(cnn.channels for cnn in cnns)
        self.device, self.dtype = cnns[0].device, cnns[0].dtype

    @property
    def cnns(self) -> tuple[FrozenEncoder, ...]:
        """The CNNs, in the order of their features."""
        return self._cnns

    @property
    def name(self) -> str:
        """The name in messages and folder names."""
        return "+".join(cnn.spec.backbone for cnn in self.cnns)[:MAX_NAME]

    @property
    def preprocess(self) -> Preprocess:
        """Converts an image to the pixels for all CNNs; each CNN normalises the pixels itself."""
        return self.cnns[0].spec.preprocess

    @property
    def images_per_pass(self) -> int:
        """Images in one forward pass on the CPU."""
        return CPU_IMAGES

    @property
    def arithmetic(self) -> str:
        """Number format and device, such as "bf16 on cpu"; features depend on both."""
        names = (arithmetic_of(cnn.dtype, cnn.device.type) for cnn in self.cnns)
        return "+".join(dict.fromkeys(names))

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode, because the batch statistics are frozen too."""
        return super().train(False)

    def to_device(self, device: torch.device) -> Self:
        """Move to a device, with the device's fast form and precision."""
        for cnn in self.cnns:
            cnn.to_device(device)
        self.device, self.dtype = device, self.cnns[0].dtype
        return self

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels, uint8 (B, 3, S, S) on any device, to features, float32 (B, F)."""
        pixels = pixels.to(self.device, non_blocking=True)  # one copy for all CNNs
        return side_by_side_features([cnn(pixels) for cnn in self.cnns], self.cnns)

    @property
    def sizes(self) -> FeatureSizes:
        """The sizes that a decoder needs to know."""
        return {
            "feature_size": self.feature_size,
            "places": self.grid**2,
            "channels": self.channels,
        }

    @property
    def vector_size(self) -> int:
        """Numbers of the vector."""
        return self.feature_size - self.grid**2 * self.channels

    def mirror(self, pixels: Tensor) -> Tensor:
        """Encode the mirror images of a batch; each place keeps its position in the image."""
        return self.turned(self(pixels.flip(-1)))

    def turned(self, features: Tensor) -> Tensor:
        """Mirror the places of features, (B, F); the vector stays."""
        if not self.grid:
            return features
        vectors, places = features.split(
            (self.vector_size, features.shape[1] - self.vector_size), 1
        )
        rows = places.unflatten(1, (self.grid, self.grid, self.channels))
        return torch.cat((vectors, rows.flip(2).flatten(1)), dim=1)

    def see(self, pixels: Tensor) -> Tensor:
        """Encode a batch for captioning; if `mirrored`, average the image and its mirror image."""
        features: Tensor = self(pixels)
        return torch.lerp(features, self.mirror(pixels), 0.5) if self.mirrored else features

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change with the features, by default in its own arithmetic."""
        together = "+".join(cnn.fingerprint(arithmetic) for cnn in self.cnns)
        return hashlib.blake2b(together.encode(), digest_size=16).hexdigest()


class FrozenEncoder(Encoder):
    """One frozen CNN."""

    has_map = True  # whether its last feature map is (B, C, H, W), which `last_map` needs

    def __init__(
        self,
        spec: EncoderSpec,
        state: Mapping[str, Tensor],
        precision: Precision = "auto",
        grid: int = 0,
        grid_channels: int = 256,
    ):
        """Build a CNN from its library's state dict in fp32; a `ModelError` if it does not fit."""
        nn.Module.__init__(self)
        self.grid, self.grid_channels = grid, grid_channels
        self.spec = spec
        self.precision = precision
        self._build(state, torch.device("cpu"))

    @classmethod
    def create(
        cls,
        backbone: str,
        weights: str = "DEFAULT",
        *,
        builder_args: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        like: Preprocess | None = None,
        precision: Precision = "auto",
        grid: int = 0,
        grid_channels: int = 256,
    ) -> Self:
        """Build a CNN and load its weights.

        Args:
            backbone: torchvision name of a classification CNN; `timm:NAME`, with or without the
                tag of weights; or `plugin:NAME`.
            weights: torchvision enum name, tag of timm, path to a state dict, or "none" (random).
            builder_args: keyword arguments of the library's builder.
            image_size: pixels of the shorter side and the centre crop; None: set by the weights.
            like: how to resize to `image_size`; None: set by the weights.
            precision: of the computation.
            grid: places in a row and in a column; 0: the vector alone.
            grid_channels: the most numbers of a place.

        Raises:
            ModelError: if the backbone is invalid, or the weights are unavailable or do not fit.
        """
        args = dict(builder_args or {})
        (check_timm if is_timm(backbone) else check_backbone)(backbone)
        with within_memory(f"to build the CNN {backbone}"):
            if is_timm(backbone):
                spec, state = fetch_timm(backbone, weights, args, image_size)
            else:
                spec, state = fetch_weights(backbone, weights, args)
        if image_size is not None:
            like = like or spec.preprocess
            preprocess = replace(
                spec.preprocess,
                resize_size=image_size,
                crop_size=image_size,
                interpolation=like.interpolation,
                squash=like.squash,
            )
            spec = replace(spec, preprocess=preprocess)
        return cls(spec, state, precision, grid, grid_channels)

    def _build(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Build the library's network, and from it the fast form for a device."""
        self.device, self.dtype = device, dtype_of(self.precision, device)
        if is_timm(self.spec.backbone):
            features = open_timm(self.spec, state, self.grid, self.grid_channels)
            self.has_map = features.layout.kind == "channels first"
            self.channels = features.channels
            self.feature_size = features.layout.vector_size + self.grid**2 * self.channels
            self.state = dict(features.network.state_dict())
            self.network = fast_timm(features, self.dtype).to(device)
            return
        network = build_backbone(self.spec.backbone, self.spec.builder_args, device="meta")
        self.feature_size = remove_head(network)
        if is_plugin(self.spec.backbone):
            side = self.spec.preprocess.crop_size
            try_plugin(self.spec.backbone, network, self.feature_size, side)
        load_strictly(network, state, where=self.spec.weights)
        self.state = dict(network.state_dict())
        if self.grid:
            side = self.spec.preprocess.crop_size
            with self.blamed():
                network, self.channels = with_grid(network, self.grid, side, self.grid_channels)
            self.feature_size += self.grid**2 * self.channels
        with self.blamed():
            self.network = fast_form(network, self.dtype).to(device)

    def blamed(self) -> AbstractContextManager[None]:
        """Return what names the plug-in of the CNN, if it has one, in an exception."""
        return blamed_backbone(self.spec.backbone)

    @property
    def cnns(self) -> tuple[FrozenEncoder, ...]:
        """This CNN alone."""
        return (self,)

    def to_device(self, device: torch.device) -> Self:
        """Move to a device; see `Encoder`."""
        if (device, dtype_of(self.precision, device)) != (self.device, self.dtype):
            self._build(self.state, device)  # rounded weights cannot be made exact again
        return self

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch; see `Encoder`."""
        pixels = pixels.to(self.device, non_blocking=True)
        size = self.images_per_pass if self.device.type == "cpu" else max(1, len(pixels))
        normalize = self.spec.preprocess.normalize
        with self.blamed():
            features = [self.network(normalize(chunk)).flatten(1) for chunk in pixels.split(size)]
            return torch.cat(features).float()

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change whenever the features change; see `Encoder`."""
        how: dict[str, object] = {"weights": "", "resizing": RESIZING}
        how["arithmetic"] = arithmetic or self.arithmetic
        if self.grid:
            how["grid"] = [self.grid, self.grid_channels]
        how["preprocess"] = self.spec.preprocess.as_dict()
        digest = hashlib.blake2b(self._digest, digest_size=16)
        digest.update(json.dumps(asdict(self.spec) | how, sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.digest()


def side_by_side_features(features: Sequence[Tensor], cnns: Sequence[Encoder]) -> Tensor:
    """Concatenate features of CNNs, (B, F) each: all vectors, then all CNNs' numbers of a place."""
    vectors, places = [], []
    for each, cnn in zip(features, cnns, strict=True):
        vectors.append(each[:, : cnn.vector_size])
        if cnn.grid:
            places.append(each[:, cnn.vector_size :].unflatten(1, (-1, cnn.channels)))
    return torch.cat((*vectors, *([torch.cat(places, dim=2).flatten(1)] if places else [])), dim=1)


def side_by_side(cnns: Sequence[FrozenEncoder]) -> Encoder:
    """Return an encoder of CNNs on one device; a `ModelError` if they need different pixels."""
    return cnns[0] if len(cnns) == 1 else Encoder(cnns)


def _check_alike(cnns: Sequence[FrozenEncoder]) -> None:
    """Refuse CNNs that differ in precision or in the preprocessing before normalisation."""

    def shared(cnn: FrozenEncoder) -> dict[str, object]:
        names = ("resize_size", "crop_size", "interpolation", "squash")
        values: dict[str, object] = {name: getattr(cnn.spec.preprocess, name) for name in names}
        return values | {"precision": cnn.precision}

    grids = {cnn.grid: cnn.spec.backbone for cnn in cnns if cnn.grid}
    if len(grids) > 1:
        (one, first_name), (other, second_name), *_ = grids.items()
        raise ModelError(
            f"encoder: {first_name} and {second_name} have different grids, {one} and {other}; use "
            f"models that were trained with the same encoder.grid"
        )
    first, wanted = cnns[0], shared(cnns[0])
    for cnn in cnns[1:]:
        given = shared(cnn)
        faults = [
            f"{key} {wanted[key]}, {given[key]}" for key in wanted if given[key] != wanted[key]
        ]
        if faults:
            raise ModelError(
                f"encoder: {first.spec.backbone} and {cnn.spec.backbone} need different inputs "
                f"({'; '.join(faults)}); set encoder.image_size and encoder.precision, which apply "
                f"to all CNNs"
            )


def arithmetic_of(dtype: torch.dtype, device: str) -> str:
    """Return the name of an arithmetic, such as "bf16 on cpu"."""
    return f"{next(name for name in DTYPES if DTYPES[name] == dtype)} on {device}"


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision; "auto": the fastest on the device."""
    return DTYPES[best_precision(device) if precision == "auto" else precision]


def best_precision(device: torch.device) -> str:
    """Return the fastest precision of a device: bf16 if the hardware supports it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"
    return "fp32"
