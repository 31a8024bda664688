"""The last feature map of a CNN: features by place, beside the pooled vector.

Both come from one pass. `with_grid` adds the map to the outputs of the traced network, pooled to
S x S places, and by a count sketch to fewer channels: each channel is added, with a random sign, to
one of the sums. That nearly keeps the angles between places, and needs nothing to be learnt.

Source of the sketch: Charikar et al. (2002), "Finding Frequent Items in Data Streams"; Weinberger
et al. (2009), "Feature Hashing for Large Scale Multitask Learning".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioner.errors import ModelError

PROBE = 224  # pixels; with fewer, the last map of many CNNs is a single place


def with_grid(
    network: nn.Module, size: int, image_size: int, most: int
) -> tuple[fx.GraphModule, int]:
    """Return a network that also computes the last feature map, and the channels C of a place.

    Args:
        network: computes the pooled vector, (B, F), from images, (B, 3, H, W).
        size: S; the result returns (B, F + S * S * C), the places row by row after the vector.
        image_size: pixels of a side.
        most: the result has at most so many channels.

    Raises:
        ModelError: if the last feature map of such an image is a single place.
    """
    traced = fx.symbolic_trace(network.eval())
    finder = _Shapes(traced)
    probed = max(image_size, PROBE)
    with torch.inference_mode():
        finder.run(torch.zeros(1, 3, probed, probed))
    if finder.last is None or finder.side * image_size < 2 * probed:
        raise ModelError(no_places(image_size))
    if most < finder.channels:
        traced.register_buffer("signs", random_signs(finder.channels))
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    vector = graph.graph_copy(traced.graph, copied)
    signs = graph.get_attr("signs") if most < finder.channels else None
    grid = graph.call_function(places, (copied[finder.last], size, signs, most))
    graph.output(graph.call_function(beside, (vector, grid)))
    return fx.GraphModule(traced, graph), min(most, finder.channels)


class _Shapes(fx.Interpreter):
    """Runs a network, and remembers its last feature map of more than one place."""

    last: fx.Node | None = None
    channels = side = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.dim() == 4 and min(result.shape[2:]) > 1:
            self.last, self.channels, self.side = n, result.shape[1], result.shape[2]
        return result


def no_places(image_size: int) -> str:
    """Return what is wrong with images of so many pixels, whose last map is a single place."""
    return (
        f"encoder.grid: images of {image_size} pixels have no places in this CNN; set a larger "
        f"encoder.image_size"
    )


def random_signs(channels: int) -> Tensor:
    """Return the sign of each channel in the sketch, float32 (C,), always the same."""
    draw = np.random.RandomState(0).randint(0, 2, channels)
    return torch.from_numpy(2.0 * draw - 1).float()


def places(feature_map: Tensor, size: int, signs: Tensor | None, most: int) -> Tensor:
    """Pool a map, (B, C, H, W), to S x S places with at most so many channels, (B, S * S, C')."""
    grid = functional.adaptive_avg_pool2d(feature_map, size).flatten(2).transpose(1, 2)
    if signs is None:
        return grid
    signed = functional.pad(grid * signs, (0, -len(signs) % most))
    sketch: Tensor = signed.unflatten(2, (-1, most)).sum(2)
    return sketch


def beside(vector: Tensor, grid: Tensor) -> Tensor:
    """Concatenate a vector, (B, F, ...), and its places, (B, P, C)."""
    return torch.cat((vector.flatten(1), grid.flatten(1)), dim=1)
