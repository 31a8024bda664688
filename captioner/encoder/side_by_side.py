"""Several frozen CNNs that look at the same pixels: their features, one after another.

CNNs of different families, or of different training, make different mistakes; a decoder that is
given all their vectors learns which to believe. Each is frozen and in its fast form as if it were
alone, so nothing but the concatenation is new.
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
    """Return one encoder made of CNNs: of a single one, itself.

    Args:
        parts: one or more, on one device.

    Raises:
        ModelError: if they cannot be given the same pixels.
    """
    return parts[0] if len(parts) == 1 else SideBySide(parts)


class SideBySide(Encoder):
    """Two CNNs or more as one encoder, whose feature is the concatenation of theirs."""

    def __init__(self, parts: Sequence[FrozenEncoder]):
        """Put CNNs side by side.

        Args:
            parts: in the order of their features, on one device.

        Raises:
            ModelError: if they cannot be given the same pixels.
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
        """Move all of them to a device."""
        for part in self.parts:
            part.to_device(device)
        self.device, self.dtype = device, self.parts[0].dtype
        return self

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch; see `Encoder`."""
        pixels = pixels.to(self.device, non_blocking=True)  # once for all
        return torch.cat([part(pixels) for part in self.parts], dim=1)

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change with any part, and with their order; see `Encoder`."""
        together = "+".join(part.fingerprint(arithmetic) for part in self.parts)
        return hashlib.blake2b(together.encode(), digest_size=16).hexdigest()


def _check_alike(parts: Sequence[FrozenEncoder]) -> None:
    """Refuse CNNs that differ in what comes before each one's own normalisation.

    Raises:
        ModelError: naming what differs.
    """

    def shared(part: FrozenEncoder) -> dict[str, object]:
        seen = part.spec.preprocess
        return {
            "resize_size": seen.resize_size,
            "crop_size": seen.crop_size,
            "interpolation": seen.interpolation,
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
                f"encoder: {first.spec.backbone} and {part.spec.backbone} cannot stand side by "
                f"side: they would not be given the same ({'; '.join(faults)}); set "
                f"encoder.image_size and encoder.precision, which hold for all"
            )
