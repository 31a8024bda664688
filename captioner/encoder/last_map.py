"""The last feature map of a CNN and the vector that the CNN makes of it, joined by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import ModelError


class _Maps(TorchFunctionMode):
    """Keeps every feature map of more than one place, in the order of the computation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() == 4 and min(result.shape[2:]) > 1:
            self.found.append(result)
        return result


def last_map(cnn: FrozenEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode one image, uint8 (1, 3, S, S), and keep how its vector depends on the last map.

    The network may be in its fast form: folded filters and bf16 pass gradients on.

    Returns:
        The vector, float32 (1, F), and the last feature map of more than one place on which it
        depends, (1, C, h, w), for `torch.autograd.grad`.

    Raises:
        ModelError: if no feature map has more than one place, or it is not known which one.
    """
    if not cnn.has_map:
        raise ModelError(
            f"encoder: {cnn.spec.backbone} has no last feature map, as CNNs have, so gradients "
            f"have no place; explain by occlusion (--method occlusion)"
        )
    with torch.enable_grad(), _Maps() as maps, cnn.blamed():
        normal = cnn.spec.preprocess.normalize(pixels.to(cnn.device)).requires_grad_()
        features = cnn.network(normal).flatten(1).float()
    vector = features[:, : cnn.vector_size]
    # The places of a grid are a map too, but the vector does not depend on them.
    for feature_map in reversed(maps.found):
        if feature_map.requires_grad:
            [gradient] = torch.autograd.grad(
                vector.sum(), feature_map, retain_graph=True, allow_unused=True
            )
            if gradient is not None and gradient.any():
                return vector, feature_map
    raise ModelError(
        f"encoder: {cnn.spec.backbone} sees images of {cnn.spec.preprocess.crop_size} pixels as a "
        f"single place, so a word has no map; use a model with a larger encoder.image_size"
    )
