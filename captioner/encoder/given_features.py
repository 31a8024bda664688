"""Stands where the CNN stands, for features that another program made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from captioner.config import EncoderConfig
from captioner.encoder.encoder import Encoder, FeatureSizes
from captioner.encoder.preprocess import Preprocess
from captioner.errors import ModelError


class GivenFeatures(Encoder):
    """Takes features of a file instead of images; there is no CNN.

    With places, the vector of an image is the mean of its places, and the places follow it. The
    places have no known position in the image.
    """

    def __init__(self, feature_size: int, places: int = 0, channels: int = 0, source: str = ""):
        """State the sizes, as a decoder does; `source` names the file that the model learnt from.

        Args:
            feature_size: numbers F of an image, vector and places.
            places: P, for attention; 0: the vector alone.
            channels: numbers C of a place.
            source: file name, for messages.
        """
        nn.Module.__init__(self)
        self._cnns = ()
        self.grid_channels = EncoderConfig().grid_channels  # not used
        self.feature_size, self.places, self.channels = feature_size, places, channels
        self.source = source
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @classmethod
    def of_shape(cls, shape: Sequence[int], attends: bool, source: str = "") -> Self:
        """State the sizes of features of a shape, (F,) or (P, C).

        Raises:
            ModelError: if attention would have no places.
        """
        if not attends:
            return cls(shape[-1], source=source)
        if len(shape) != 2:
            raise ModelError(
                f"decoder.attention: spatial needs places, and {source} holds one vector an image; "
                f"set decoder.attention=none, or give a grid (P x C) an image"
            )
        places, channels = shape
        return cls(channels * (1 + places), places, channels, source)

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.source or "features of a file"

    @property
    def wanted(self) -> str:
        """What a file must hold for an image."""
        if self.places:
            return f"{self.places} places of {self.channels:,} numbers"
        return f"{self.feature_size:,} numbers"

    @property
    def preprocess(self) -> Preprocess:
        """There is none: a `ModelError` that says what the model captions."""
        example = f", as in {self.source}" if self.source else ""
        raise ModelError(
            f"this model has no CNN and sees no pictures: it captions features of {self.wanted} an "
            f"image{example}; use captioner caption FEATURES.npz, or captioner evaluate"
        )

    @property
    def arithmetic(self) -> str:
        """Nothing is computed."""
        return "none"

    @property
    def sizes(self) -> FeatureSizes:
        """The sizes that a decoder needs to know."""
        return {
            "feature_size": self.feature_size,
            "places": self.places,
            "channels": self.channels,
        }

    @property
    def vector_size(self) -> int:
        """Numbers of the vector."""
        return self.feature_size - self.places * self.channels

    def to_device(self, device: torch.device) -> Self:
        """Move to a device."""
        self.device = device
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return features, (B, F), in float32 on the device."""
        return features.to(self.device).float()

    def row(self, values: NDArray[Any]) -> Tensor:
        """Convert the features of an image, (F,) or (P, C), to those of the model, fp16 (F,).

        Raises:
            ValueError: if they are of another size, or too large for fp16; says so in one line.
        """
        vector = values.mean(0, dtype=np.float32) if values.ndim == 2 else values
        parts = [vector]
        if self.places:
            parts.append(values.ravel())
        wrong = self.places and values.shape != (self.places, self.channels)
        if wrong or len(vector) != self.vector_size:
            given = " x ".join(f"{size:,}" for size in values.shape)
            raise ValueError(f"{given} numbers, the model wants {self.wanted}")
        if not np.isfinite(values).all():
            raise ValueError("holds a number that is not finite (nan or inf)")
        with np.errstate(over="ignore"):
            row = np.concatenate(parts).astype(np.float16)
        if not np.isfinite(row).all():
            raise ValueError("holds a number above 65,504: divide all by the same number")
        return torch.from_numpy(row)

    def fingerprint(self, arithmetic: str | None = None) -> str:  # noqa: ARG002
        """Return 32 hex digits of the sizes; what the numbers mean cannot be known."""
        sizes = f"features {self.feature_size} {self.places} {self.channels}"
        return hashlib.blake2b(sizes.encode(), digest_size=16).hexdigest()
