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


def side_by_side(cnns: Sequence[FrozenEncoder]) -> Encoder:
    """Return one encoder of one or more CNNs, all on one device.

    Raises:
        ModelError: if the CNNs do not take the same pixels.
    """
    return cnns[0] if len(cnns) == 1 else SideBySide(cnns)


class SideBySide(Encoder):
    """Two or more CNNs as one encoder; see `side_by_side`."""

    def __init__(self, cnns: Sequence[FrozenEncoder]):
        super().__init__()
        _check_alike(cnns)
        self._cnns = tuple(cnns)
        self.networks = nn.ModuleList(cnns)
        self.feature_size = sum(cnn.feature_size for cnn in cnns)
        self.device, self.dtype = cnns[0].device, cnns[0].dtype

    @property
    def cnns(self) -> tuple[FrozenEncoder, ...]:
        """The CNNs, in the order of their features."""
        return self._cnns

    def to_device(self, device: torch.device) -> Self:
        """Move all CNNs to a device."""
        for cnn in self.cnns:
            cnn.to_device(device)
        self.device, self.dtype = device, self.cnns[0].dtype
        return self

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch; see `Encoder`."""
        pixels = pixels.to(self.device, non_blocking=True)  # one copy for all CNNs
        return torch.cat([cnn(pixels) for cnn in self.cnns], dim=1)

    def fingerprint(self, arithmetic: str | None = None) -> str:
        """Return 32 hex digits that change with any CNN and with their order; see `Encoder`."""
        together = "+".join(cnn.fingerprint(arithmetic) for cnn in self.cnns)
        return hashlib.blake2b(together.encode(), digest_size=16).hexdigest()


def _check_alike(cnns: Sequence[FrozenEncoder]) -> None:
    """Refuse CNNs that differ in precision or in the preprocessing before normalisation."""

    def shared(cnn: FrozenEncoder) -> dict[str, object]:
        names = ("resize_size", "crop_size", "interpolation")
        values: dict[str, object] = {name: getattr(cnn.spec.preprocess, name) for name in names}
        return values | {"precision": cnn.precision}

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
