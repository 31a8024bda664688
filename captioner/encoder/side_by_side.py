"""Several frozen CNNs with the same input; the feature is the concatenation of their features.

CNNs of different families or training make different mistakes. The decoder learns from the
features of all of them. Each CNN is a `FrozenEncoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.errors import ModelError


def side_by_side(parts: Sequence[FrozenEncoder]) -> Encoder:
    """Return one encoder of one or more CNNs.

    Args:
        parts: one or more, on one device.

    Raises:
        ModelError: if the CNNs do not take the same pixels.
    """
    return parts[0] if len(parts) == 1 else SideBySide(parts)


class SideBySide(Encoder):
    """Two or more CNNs as one encoder."""

    def __init__(self, parts: Sequence[FrozenEncoder]):
        """Combine CNNs.

        Args:
            parts: in the order of their features, on one device.

        Raises:
            ModelError: if the CNNs do not take the same pixels.
        """
        super().__init__()
        _check_alike(parts)
        self._parts = tuple(parts)
        self.networks = nn.ModuleList(parts)
        self.feature_size = sum(part.feature_size for part in parts)
        self.device, self.dtype = parts[0].device, parts[0].dtype

    @property
    def parts(self) -> tuple[FrozenEncoder, ...]:
        """The CNNs, in the order of their features."""
        return self._parts

    def to_device(self, device: torch.device) -> Self:
        """Move all CNNs to a device."""
        for part in self.parts:
            part.to_device(device)
        self.device, self.dtype = device, self.parts[0].dtype
        return self

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch; see `Encoder`."""
        pixels = pixels.to(self.device, non_blocking=True)  # one copy for all CNNs
        return torch.cat([part(pixels) for part in self.parts], dim=1)

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change with any CNN and with their order; see `Encoder`."""
        together = "+".join(part.fingerprint(arithmetic) for part in self.parts)
        return hashlib.blake2b(together.encode(), digest_size=16).hexdigest()


def _check_alike(parts: Sequence[FrozenEncoder]) -> None:
    """Refuse CNNs that differ in precision or in the preprocessing before normalisation.

    Raises:
        ModelError: with the differences.
    """

    def shared(part: FrozenEncoder) -> dict[str, object]:
        preprocess = part.spec.preprocess
        return {
            "resize_size": preprocess.resize_size,
            "crop_size": preprocess.crop_size,
            "interpolation": preprocess.interpolation,
            "precision": part.precision,
        }

    first, wanted = parts[0], shared(parts[0])
    for part in parts[1:]:
        given = shared(part)
        faults = [
            f"{key} {wanted[key]}, {given[key]}" for key in wanted if given[key] != wanted[key]
        ]
        if faults:
            raise ModelError(
                f"encoder: {first.spec.backbone} and {part.spec.backbone} need different inputs "
                f"({'; '.join(faults)}); set encoder.image_size and encoder.precision, which apply "
                f"to all CNNs"
            )
