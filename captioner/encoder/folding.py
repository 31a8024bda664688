"""The fast form of a frozen network: folded batch norms, channels last, optional low precision.

Folding computes the same function with fewer operations. The first layers stay in fp32: their
filters, above all MobileNet's depthwise filters, compute small differences of large weights. bf16
has eight bits of precision and would lose these differences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

EXACT = 3  # layers in fp32; measured in docs/results.md


def fast_form(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a faster module with the function of a float32 network, later layers in `dtype`."""
    folded = fold(network)
    fast = folded if dtype == torch.float32 else lower(folded, dtype)
    return fast.to(memory_format=torch.channels_last)


def fold(network: nn.Module, tracer: fx.Tracer | None = None) -> fx.GraphModule:
    """Fold every batch norm that directly follows a convolution into a copy of that convolution.

    A batch norm of timm with an activation leaves the activation. Only plain convolutions take a
    batch norm: others, such as weight-standardised ones, compute their weights anew.
    """
    tracer = tracer or fx.Tracer()
    graph = tracer.trace(network.eval().requires_grad_(False))
    traced = fx.GraphModule(tracer.root, graph)
    layers = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(layers[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op == "call_module" and len(before.users) == 1:
            convolution, norm = layers[before.target], layers[node.target]
            if type(convolution) is nn.Conv2d:
                folded = fuse_conv_bn_eval(copy.copy(convolution), norm)
                traced.set_submodule(before.target, folded)
                if type(norm) is not nn.BatchNorm2d:
                    rest = [norm.get_submodule(name) for name in ("drop", "act")]
                    traced.set_submodule(node.target, nn.Sequential(*rest))
                    continue
                node.replace_all_uses_with(before)
                traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def lower(
    network: fx.GraphModule,
    dtype: torch.dtype,
    lowered: Callable[[torch.dtype, nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Compute all but the first `EXACT` layers with weights in another dtype, or `lowered`."""
    late, layers = set[fx.Node](), 0
    for node in network.graph.nodes:
        if node.op == "call_module":
            layers += isinstance(network.get_submodule(node.target), nn.Conv2d | nn.Linear)
        layers += node.target in (functional.conv2d, functional.linear)
        if layers > EXACT:
            late.add(node)
    if not late:
        return network
    first, second = _split(network, late)
    return _Halves(first, (lowered or _In)(dtype, second))


def _split(network: fx.GraphModule, late: set[fx.Node]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a network before its late nodes; the first half returns the inputs of the second.

    `torch.fx.passes.split_module` does the same, and imports sympy.
    """
    nodes = [*network.graph.nodes]
    needed = (before for node in nodes if node in late for before in node.all_input_nodes)
    between = [*dict.fromkeys(before for before in needed if before not in late)]
    first, second = fx.Graph(), fx.Graph()
    early: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in late:
            early[node] = first.node_copy(node, early.__getitem__)
    first.output(tuple(early[node] for node in between))
    later = {node: second.placeholder(node.name) for node in between}
    for node in nodes:
        if node in late:
            later[node] = second.node_copy(node, later.__getitem__)
    return fx.GraphModule(network, first), fx.GraphModule(network, second)


class _Halves(nn.Module):
    """Two halves of a network, one after the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute what the network computes."""
        result: Tensor = self.second(*self.first(pixels))
        return result


class _In(nn.Module):
    """A module that computes in its own dtype, independent of the input's."""

    def __init__(self, dtype: torch.dtype, module: nn.Module) -> None:
        super().__init__()
        self.dtype = dtype
        self.module = copy.deepcopy(module).to(dtype)  # the other half may use the same layers

    def forward(self, *values: Tensor | int) -> Tensor:
        """Cast the tensors to the dtype and run the module; sizes stay integers."""
        result: Tensor = self.module(
            *(value.to(self.dtype) if isinstance(value, Tensor) else value for value in values)
        )
        return result
