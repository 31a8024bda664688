"""Builds torchvision's classification CNNs by name, without weights or head.

`timm_networks` builds those of timm. A plug-in's, `plugin:NAME`, is built here as well: it is a
CNN that computes class scores from images, (B, 3, S, S), and its last layer is linear.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx, nn

from captioner.encoder.without_compiler import import_torchvision
from captioner.errors import ConfigError, ModelError, is_shortage
from captioner.system.foreign import excerpt, plain
from captioner.system.no_draws import NoDraws
from captioner.system.plugins import (
    PlugIn,
    blamed,
    guarded,
    load,
    names,
    plugin,
    tell_unused,
)

MAX_CALLS = 100_000  # torch calls to build a network; torchvision's deepest needs 11,215
NOT_CNN = ("maxvit", "swin", "vit")
PLUGIN = "plugin:"


def check_backbone(name: str) -> None:
    """Raise a `ModelError` for a name that is no CNN of torchvision or of a plug-in."""
    if name.startswith(PLUGIN):
        _plugin_of(name)
        return
    import_torchvision()
    from torchvision import models

    if name.startswith(NOT_CNN):
        raise ModelError(
            f"encoder.backbone: {name} is a transformer, not a CNN; choose a CNN such as resnet50 "
            f"or convnext_tiny, or a transformer of timm, such as timm:vit_base_patch16_224"
        )
    known = models.list_models(module=models)
    if name in known:
        tell_unused("backbones", name)
    else:
        added = [PLUGIN + name] if name in names("backbones") else []
        close = added or difflib.get_close_matches(name, known, n=3) or ["resnet50", "mobilenet_v2"]
        raise ModelError(
            f"encoder.backbone: torchvision has no classification CNN {excerpt(name)}; "
            f"did you mean {' or '.join(close)}?"
        )


class Building(NoDraws):
    """Supervises the construction of a network.

    RegNet computes with `torch.arange` and `torch.tensor`, which need real memory; all else may be
    on "meta". Arguments that ask for a million layers are refused.
    """

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise ValueError("more layers than any CNN has")
        kwargs = dict(kwargs or {})
        if func in (torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return super().__torch_function__(func, types, args, kwargs)


def blamed_backbone(name: str) -> AbstractContextManager[None]:
    """Return what names the plug-in of a backbone, if it has one, in an exception."""
    return blamed("backbones", name.removeprefix(PLUGIN) if is_plugin(name) else None)


def is_plugin(backbone: str) -> bool:
    """Return whether a plug-in builds a backbone."""
    return backbone.startswith(PLUGIN)


def _plugin_of(backbone: str) -> PlugIn:
    """Return the plug-in that builds a backbone; a `ModelError` if none is installed."""
    found = plugin("backbones", backbone.removeprefix(PLUGIN))
    if found is None:
        known = ", ".join(PLUGIN + name for name in names("backbones")) or "none"
        raise ModelError(
            f"encoder.backbone: no installed package adds {excerpt(backbone, 60)}; installed: "
            f"{known}"
        )
    return found


def _build_plugin(backbone: str, args: Mapping[str, Any]) -> nn.Module:
    """Build a plug-in's CNN, and look for its last layer.

    Raises:
        ModelError: if it cannot be built, or does not end with a linear layer.
    """
    who = _plugin_of(backbone)
    try:
        make = load("backbones", who.name)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    with guarded(who, ModelError):
        network = make(**args)
        if not isinstance(network, nn.Module):
            raise TypeError(f"it builds no torch.nn.Module but {type(network).__name__}")
        layers = [each for each in network.modules() if not [*each.children()]]
        if not layers or not isinstance(layers[-1], nn.Linear):
            raise TypeError("the last layer of the network must be torch.nn.Linear")
    return network.eval()


def try_plugin(backbone: str, network: nn.Module, feature_size: int, side: int) -> None:
    """Try a plug-in's CNN without its head on two images of some pixels a side, on "meta".

    Raises:
        ModelError: if it computes no features, (2, F), or cannot be traced.
    """
    with guarded(_plugin_of(backbone), ModelError), torch.device("meta"), torch.inference_mode():
        shape = tuple(network(torch.zeros(2, 3, side, side)).flatten(1).shape)
        if shape != (2, feature_size):
            raise ValueError(
                f"its last layer reads {feature_size} numbers, the layers before compute {shape[1]}"
            )
        fx.symbolic_trace(network)


def build_backbone(name: str, builder_args: Mapping[str, Any], *, device: str = "cpu") -> nn.Module:
    """Build a CNN without weights; on "meta" only its shapes, which takes no time.

    Raises:
        ModelError: if the name or an argument is invalid.
    """
    if is_plugin(name):
        with torch.device(device), Building():
            return _build_plugin(name, builder_args)
    import_torchvision()
    from torchvision import models

    check_backbone(name)
    args = dict(builder_args)
    if name in ("googlenet", "inception_v3"):
        # The auxiliary heads are for training only, and their initialisation is slow.
        args = {"aux_logits": False, "init_weights": False} | args
    gradients = torch.is_grad_enabled()
    try:
        with torch.device(device), Building():
            network: nn.Module = models.get_model(name, weights=None, **args)
    # Builders check little: invalid arguments raise many types.
    except Exception as error:
        if is_shortage(error) and device != "meta":  # there, only impossible shapes run short
            raise
        message = f"encoder.builder_args: {name} refuses {excerpt(args)}: {plain(error)}"
        raise ModelError(message) from error
    finally:
        # An exception in a builder can leave gradients switched off.
        torch.set_grad_enabled(gradients)
    return network


def remove_head(network: nn.Module) -> int:
    """Remove the layer that computes the class scores; return the width F of its input."""
    head = head_name(network)
    layer = network.get_submodule(head)
    if isinstance(layer, nn.Conv2d):  # SqueezeNet: 1x1 convolution, ReLU, pooling
        network.set_submodule("classifier", nn.AdaptiveAvgPool2d(1))
        return layer.in_channels
    assert isinstance(layer, nn.Linear)
    network.set_submodule(head, nn.Identity())
    return layer.in_features


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the last linear layer, or of SqueezeNet's last convolution."""
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else "classifier.1"
