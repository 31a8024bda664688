"""The fast form of a frozen CNN: batch norms folded in, a convolution and what follows as one.

Folding is the same function with fewer operations. On processors oneDNN computes a convolution,
the sum with a shortcut and the activation in one kernel, on weights it lays out once; PyTorch's
own compiler calls the same operators, but only after minutes with a C++ compiler.
"""

from __future__ import annotations

import copy
import operator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SUMS = (operator.add, operator.iadd, torch.add)
Activation = tuple[str, list[float]]  # oneDNN's name and arguments
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def fold(network: nn.Module) -> fx.GraphModule:
    """Fold every batch norm that directly follows a convolution into it.

    Args:
        network: in evaluation mode from now on; its own layers are not changed.
    """
    traced = fx.symbolic_trace(network.eval().requires_grad_(False))
    layers = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(layers[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op == "call_module" and len(before.users) == 1:
            convolution = layers[before.target]
            if isinstance(convolution, nn.Conv2d):
                folded = fuse_conv_bn_eval(copy.copy(convolution), layers[node.target])
                traced.set_submodule(before.target, folded)
                node.replace_all_uses_with(before)
                traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def fuse(network: fx.GraphModule, dtype: torch.dtype) -> bool:
    """Make convolutions and what follows them one oneDNN kernel each, in place.

    Args:
        network: folded, float32, on the processor.
        dtype: of the images it will be given; weights are rounded to it.

    Returns:
        Whether this machine and this PyTorch could.
    """
    if not _has_kernels(dtype):
        return False
    layers = dict(network.named_modules())
    for node in list(network.graph.nodes):
        convolution = layers.get(node.target) if node.op == "call_module" else None
        if not isinstance(convolution, nn.Conv2d) or not isinstance(convolution.padding, tuple):
            continue
        absorbed, inputs = [node], [node.args[0]]
        following = _only_user(node)
        if following and following.target in SUMS and len(following.args) == 2:
            shortcut = next(arg for arg in following.args if arg is not node)
            if isinstance(shortcut, fx.Node) and not following.kwargs:
                absorbed.append(following)
                inputs.append(shortcut)
                following = _only_user(following)
        activation = _activation(following, layers)
        if activation and following:
            absorbed.append(following)
        name = f"fused_{node.name}"  # a layer may serve in two places, with two activations
        network.add_module(name, _Convolution(convolution, dtype, activation or ("none", [])))
        with network.graph.inserting_before(absorbed[-1]):
            replacement = network.graph.call_module(name, tuple(inputs))
        absorbed[-1].replace_all_uses_with(replacement)
        for old in reversed(absorbed):
            network.graph.erase_node(old)
    network.delete_all_unused_submodules()
    network.recompile()
    return True


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, layers: dict[str, nn.Module]) -> Activation | None:
    """Return what oneDNN calls an activation, if it can append it to a convolution."""
    if node is None:
        return None
    if node.op == "call_function" and node.target in (functional.relu, torch.relu):
        return "relu", []
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    return next((after for kind, after in ACTIVATIONS.items() if type(layer) is kind), None)


class _Convolution(nn.Module):
    """A convolution, perhaps with a shortcut and an activation, as one kernel.

    Its weights are no parameters: their layout is oneDNN's own and stays on the processor.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, activation: Activation) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self._weight = weight if dtype == torch.float32 else round_weights(weight, dtype)
        self._packed: Tensor | None = None
        self._bias = None if bias is None else bias.detach()
        self._geometry = (
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        self._activation, self._arguments = activation

    def forward(self, images: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return activation(convolution(images) + shortcut), (B, C, H, W)."""
        weight = self._packed  # by several threads at once, at worst: they all pack the same
        if weight is None:  # which layout is best depends on the images' size
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *self._geometry, images.shape
            )
            self._packed = weight
        result: Tensor
        kernel = torch.ops.mkldnn._convolution_pointwise
        if shortcut is None:
            after: tuple[Any, ...] = (self._activation, self._arguments, "")
            result = kernel(images, weight, self._bias, *self._geometry, *after)
        else:
            # The bias stays in fp32 wherever it may: exact, at no cost. This kernel takes none.
            bias = None if self._bias is None else self._bias.to(images.dtype)
            unary = None if self._activation == "none" else self._activation
            after = ("add", 1.0, unary, self._arguments, "")
            result = kernel.binary(images, shortcut, weight, bias, *self._geometry, *after)
        return result


def round_weights(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round filters such that each keeps its sum: what one weight loses the next one gets.

    Neighbouring pixels are alike, and activations are never negative: what a filter answers to
    what is common in its inputs depends on the sum of its weights. Filters that take differences
    of large weights, as the first depthwise ones of MobileNets, are nothing but rounding errors
    otherwise. It is error diffusion (Floyd and Steinberg, 1976), from the largest weight to the
    smallest, within each kernel, or over the channels of a 1 x 1 filter.

    Args:
        weight: float32 (O, I, H, W).
        dtype: to round to.

    Returns:
        dtype (O, I, H, W).
    """
    filters = weight.flatten(0, 1).flatten(1)
    if filters.shape[1] == 1:
        filters = weight.flatten(1)
    _, order = filters.abs().sort(dim=1, descending=True)
    # By place first: rows of one place lie together in memory.
    exact = filters.gather(1, order).t().contiguous()
    rounded = torch.empty_like(exact, dtype=dtype)
    carried = torch.zeros_like(exact[0])
    for place, values in enumerate(exact):
        carried += values
        rounded[place] = carried
        carried -= rounded[place]
    result = torch.empty_like(filters, dtype=dtype).scatter_(1, order, rounded.t().contiguous())
    return result.view_as(weight)


@cache
def _has_kernels(dtype: torch.dtype) -> bool:
    """Try the kernels: they are no public interface, and not every machine has them."""
    shape = (1, 8, 4, 4)
    try:
        layer = _Convolution(nn.Conv2d(8, 8, 1), dtype, ("relu", []))
        image = torch.ones(shape, dtype=dtype).to(memory_format=torch.channels_last)
        return tuple(layer(image, layer(image)).shape) == shape
    except (AttributeError, RuntimeError, TypeError):
        return False
