"""The frozen CNN: any torchvision classification CNN without its last layer, in its fast form.

The feature of an image is the input of the network's last linear layer: the pooled vector in most
families, the second hidden layer ("fc7") in VGG and AlexNet. `folding` converts the network to its
fast form at construction and for each device. The network computes in bf16 if the hardware
supports it, and on the CPU a few images at a time.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from captioner.encoder.backbones import build_backbone, check_backbone, remove_head
from captioner.encoder.folding import fast_form
from captioner.encoder.preprocess import RESIZING, Preprocess
from captioner.encoder.weights import EncoderSpec, fetch_weights, load_strictly

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_BYTES = 16  # images per pass times bytes per value; larger passes do not fit the CPU caches
MAX_NAME = 120  # characters; a folder name holds it and the fingerprint


class Encoder(nn.Module, ABC):
    """Turns an image into one feature vector, with one frozen CNN or several.

    Attributes:
        feature_size: width F of the vector.
        device: device of the weights.
        dtype: number format of the computation.
        mirrored: whether `see` returns the mean of the features of the image and its mirror image,
            as for a model trained with `encoder.flip`.
    """

    feature_size: int
    device: torch.device
    dtype: torch.dtype
    mirrored = False

    @property
    @abstractmethod
    def cnns(self) -> tuple[FrozenEncoder, ...]:
        """The CNNs, in the order of their features."""

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
        return CPU_BYTES // self.dtype.itemsize

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode, because the batch statistics are frozen too."""
        return super().train(False)

    @property
    def arithmetic(self) -> str:
        """Number format and device, such as "bf16 on cpu"; features depend on both."""
        names = (arithmetic_of(cnn.dtype, cnn.device.type) for cnn in self.cnns)
        return "+".join(dict.fromkeys(names))

    @abstractmethod
    def to_device(self, device: torch.device) -> Self:
        """Move to a device, with the device's fast form and precision."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch.

        Args:
            pixels: uint8 (B, 3, S, S) from `preprocess.pixels`, on any device.

        Returns:
            features, float32 (B, F).
        """

    def see(self, pixels: Tensor) -> Tensor:
        """Encode a batch for captioning, as `forward`; if `mirrored`, average both views."""
        features: Tensor = self(pixels)
        return torch.lerp(features, self(pixels.flip(-1)), 0.5) if self.mirrored else features

    @abstractmethod
    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change whenever the features of an arithmetic change.

        Without an arithmetic, the encoder's own is meant.
        """


class FrozenEncoder(Encoder):
    """One frozen CNN."""

    def __init__(
        self, spec: EncoderSpec, state: Mapping[str, Tensor], precision: Precision = "auto"
    ):
        """Build the fast form from a torchvision state dict.

        Args:
            spec: the CNN to build.
            state: torchvision's parameters and statistics, fp32; may lack the classifier.
            precision: of the computation.

        Raises:
            ModelError: if the backbone is invalid, or the state does not fit.
        """
        super().__init__()
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
        interpolation: str | None = None,
        precision: Precision = "auto",
    ) -> Self:
        """Build a CNN and load its weights.

        Args:
            backbone: torchvision name of a classification CNN.
            weights: torchvision enum name, path to a state dict, or "none" (random).
            builder_args: keyword arguments of torchvision's builder.
            image_size: pixels of the shorter side and the centre crop; None: set by the weights.
            interpolation: of the resizing to `image_size`; None: set by the weights.
            precision: of the computation.

        Raises:
            ModelError: if the backbone is invalid, or the weights are unavailable or do not fit.
        """
        check_backbone(backbone)
        spec, state = fetch_weights(backbone, weights, dict(builder_args or {}))
        if image_size is not None:
            preprocess = replace(
                spec.preprocess,
                resize_size=image_size,
                crop_size=image_size,
                interpolation=interpolation or spec.preprocess.interpolation,
            )
            spec = replace(spec, preprocess=preprocess)
        return cls(spec, state, precision)

    def _build(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Build torchvision's network, and from it the fast form for a device."""
        network = build_backbone(self.spec.backbone, self.spec.builder_args, device="meta")
        self.feature_size = remove_head(network)
        load_strictly(network, state, where=self.spec.weights)
        self.state = dict(network.state_dict())
        self.device, self.dtype = device, dtype_of(self.precision, device)
        self.network = fast_form(network, self.dtype).to(device)

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
        features = [self.network(normalize(chunk)).flatten(1) for chunk in pixels.split(size)]
        return torch.cat(features).float()

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change whenever the features change; see `Encoder`."""
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


def arithmetic_of(dtype: torch.dtype, device: str) -> str:
    """Return the name of an arithmetic, such as "bf16 on cpu"."""
    return f"{next(name for name in DTYPES if DTYPES[name] == dtype)} on {device}"


def other_arithmetic(was: str | None, now: str) -> str:
    """Return a message that the arithmetic changed; a run of 0.1 did not record its own (None)."""
    return f"arithmetic was {was or 'not recorded'}, is {now}"


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
