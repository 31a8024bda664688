"""The frozen CNN: any torchvision classification CNN, without its last layer, in its fast form.

The feature of an image is what the network's last linear layer is given: the pooled vector of
most families, the second hidden layer of VGG and AlexNet (the published captioners' "fc7").
The network takes its fast form (`folding`) when it is built and when it moves to a device. It
computes in bf16 where the hardware has it, on processors a few images at a time.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from captioner.encoder.backbones import build_backbone, check_backbone, remove_head
from captioner.encoder.folding import fast_form
from captioner.encoder.preprocess import RESIZING, Preprocess
from captioner.encoder.weights import fetch_weights, load_strictly

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_BYTES = 16  # per value of a pass's images; larger passes leave the caches and fault pages in
MAX_NAME = 120  # letters; with a fingerprint it must remain the name of a folder


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What rebuilds the CNN: its name, its builder's arguments, its preprocessing.

    Attributes:
        backbone: torchvision name.
        builder_args: keyword arguments of torchvision's builder.
        preprocess: from pictures to its input.
        weights: where the weights came from, for people to read.
    """

    backbone: str
    builder_args: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    weights: str = "none"


class Encoder(nn.Module, ABC):
    """Images in, one feature vector each out, for ever the same: one CNN, or several side by side.

    Attributes:
        feature_size: width F of the vector.
        device: where it computes.
        dtype: in which arithmetic.
        mirrored: whether pictures are captioned from the mean of themselves and their mirror
            images, as they are where training has shown both.
    """

    feature_size: int
    device: torch.device
    dtype: torch.dtype
    mirrored = False

    @property
    @abstractmethod
    def parts(self) -> tuple[FrozenEncoder, ...]:
        """The CNNs, in the order of their features."""

    @property
    def name(self) -> str:
        """What people and folders call it."""
        return "+".join(part.spec.backbone for part in self.parts)[:MAX_NAME]

    @property
    def preprocess(self) -> Preprocess:
        """From a picture to the pixels that every part is given, and then normalises for itself."""
        return self.parts[0].spec.preprocess

    @property
    def images_per_pass(self) -> int:
        """Images a processor encodes at once."""
        return CPU_BYTES // self.dtype.itemsize

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode for good: frozen statistics are part of frozen weights."""
        return super().train(False)

    @property
    def arithmetic(self) -> str:
        """How it computes, such as "bf16 on cpu"; features differ in their last digits by it."""
        return "+".join(dict.fromkeys(part.arithmetic for part in self.parts))

    @abstractmethod
    def to_device(self, device: torch.device) -> Self:
        """Move to a device, in the form and the precision that suit it."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch.

        Args:
            pixels: uint8 (B, 3, S, S) from `preprocess.pixels`, on any device.

        Returns:
            features, float32 (B, F).
        """

    def see(self, pixels: Tensor) -> Tensor:
        """Encode pictures to caption them: a batch as for `forward`, mirrored where that is due."""
        features: Tensor = self(pixels)
        return torch.lerp(features, self(pixels.flip(-1)), 0.5) if self.mirrored else features

    @abstractmethod
    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change whenever the features would.

        Args:
            arithmetic: that of the features; None: its own.
        """


class FrozenEncoder(Encoder):
    """One CNN that never changes."""

    def __init__(self, spec: EncoderSpec, state: Mapping[str, Tensor], precision: str = "auto"):
        """Build the fast form from a torchvision state dict.

        Args:
            spec: what to build.
            state: torchvision's parameters and statistics, fp32, classifier keys left out.
            precision: "auto", "fp32", "bf16" or "fp16".

        Raises:
            ModelError: if the backbone is refused, or the state does not fit it.
        """
        super().__init__()
        self.spec = spec
        self.precision = precision
        network, self.feature_size = _exact(spec, state)
        self.state = dict(network.state_dict())
        self._settle(network, torch.device("cpu"))

    @classmethod
    def create(
        cls,
        backbone: str,
        weights: str = "DEFAULT",
        *,
        builder_args: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        interpolation: str | None = None,
        precision: str = "auto",
    ) -> Self:
        """Build a CNN and bring its weights.

        Args:
            backbone: torchvision name of a classification CNN.
            weights: torchvision enum name, path to a state dict, or "none" (random).
            builder_args: keyword arguments of torchvision's builder.
            image_size: pixels; shorter side and centre crop instead of the weights' own.
            interpolation: of that resizing, instead of the weights' own.
            precision: see `FrozenEncoder`.

        Raises:
            ModelError: if the backbone is refused, or the weights cannot be had or do not fit.
        """
        check_backbone(backbone)
        found = fetch_weights(backbone, weights, dict(builder_args or {}))
        preprocess = found.preprocess
        if image_size is not None:
            preprocess = Preprocess(
                image_size,
                image_size,
                interpolation or preprocess.interpolation,
                preprocess.mean,
                preprocess.std,
            )
        spec = EncoderSpec(backbone, found.builder_args, preprocess, found.origin)
        return cls(spec, found.state, precision)

    @property
    def parts(self) -> tuple[FrozenEncoder, ...]:
        """Itself, alone."""
        return (self,)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes as what it was built from, half the bytes."""
        return _rebuild, (self.spec, self.state, self.precision, self.device, self.mirrored)

    def to_device(self, device: torch.device) -> Self:
        """Move to a device, in the form and the precision that suit it."""
        if (device, dtype_of(self.precision, device)) != (self.device, self.dtype):
            # From the exact weights: rounded ones cannot be made exact again.
            network, _ = _exact(self.spec, self.state)
            self._settle(network, device)
        return self

    def _settle(self, network: nn.Module, device: torch.device) -> None:
        """Give an exact network the form and the precision that suit a device."""
        self.device, self.dtype = device, dtype_of(self.precision, device)
        self.network = fast_form(network, self.dtype).to(device)

    @property
    def arithmetic(self) -> str:
        """How it computes; see `Encoder`."""
        return arithmetic_of(self.dtype, self.device.type)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch; see `Encoder`."""
        pixels = pixels.to(self.device, non_blocking=True)
        size = self.images_per_pass if self.device.type == "cpu" else max(1, len(pixels))
        return torch.cat([self._encode(part) for part in pixels.split(size)])

    def _encode(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(self.spec.preprocess.normalize(pixels))
        return features.flatten(1).float()

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change whenever the features would; see `Encoder`."""
        how = {"weights": "", "arithmetic": arithmetic or self.arithmetic, "resizing": RESIZING}
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


def _rebuild(
    spec: EncoderSpec,
    state: Mapping[str, Tensor],
    precision: str,
    device: torch.device,
    mirrored: bool,
) -> FrozenEncoder:
    encoder = FrozenEncoder(spec, state, precision).to_device(device)
    encoder.mirrored = mirrored
    return encoder


def arithmetic_of(dtype: torch.dtype, device: str) -> str:
    """Name an arithmetic, such as "bf16 on cpu"."""
    return f"{next(name for name, each in DTYPES.items() if each == dtype)} on {device}"


def other_arithmetic(was: str | None, now: str) -> str:
    """Say that features were computed in another arithmetic before.

    Args:
        was: the arithmetic of before; None: an older captioner kept no note of it.
        now: that of now.
    """
    if was is None:
        return f"arithmetic is {now}, and was not noted by the older captioner that began"
    return f"arithmetic was {was}, is {now}"


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision; "auto" is the best of the device."""
    return DTYPES[best_precision(device) if precision == "auto" else precision]


def best_precision(device: torch.device) -> str:
    """Return the arithmetic the device is fastest at: bf16 where its hardware has it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"
    return "fp32"


def _exact(spec: EncoderSpec, state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """Build torchvision's own network without its last layer; also return its width F."""
    network = build_backbone(spec.backbone, spec.builder_args, device="meta")
    feature_size = remove_head(network)
    load_strictly(network, state, where=spec.weights)
    return network, feature_size
