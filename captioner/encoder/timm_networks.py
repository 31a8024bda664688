"""Networks of timm by name: CNNs, and transformers such as ViT, DINOv2 and CLIP.

The feature is what timm's classifier would read: `forward_head(forward_features(x),
pre_logits=True)`. The places of a grid are the last feature map, that of `forward_features`; of a
transformer, its patch tokens.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from captioner.encoder.backbones import Building
from captioner.encoder.folding import fold, lower
from captioner.encoder.grid import beside, no_places, places, random_signs
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import (
    EncoderSpec,
    find_weights,
    load_strictly,
    random_weights,
    read_state_dict,
    state_of,
    without_prefix,
)
from captioner.errors import ModelError, is_shortage
from captioner.hub import check_reach
from captioner.system.foreign import excerpt, plain

PREFIX = "timm:"
# Arguments of `timm.create_model` that are not the network's: they would load or change files.
NOT_ARGS = (
    *("cache_dir", "checkpoint_path", "features_only", "in_chans", "scriptable", "exportable"),
    *("no_jit", "kwargs_filter", "feature_cfg"),
)


def is_timm(backbone: str) -> bool:
    """Return whether timm builds a backbone."""
    return backbone.startswith(PREFIX)


def _library(backbone: str) -> Any:
    """Import timm; a `ModelError` if it is not installed."""
    try:
        import timm
    except ImportError as error:
        message = f"encoder.backbone: {plain(backbone)} needs timm: pip install 'captioner[timm]'"
        raise ModelError(message) from error
    return timm


def check_timm(backbone: str) -> None:
    """Raise a `ModelError` for a name that timm does not know, or without timm."""
    timm = _library(backbone)
    name = backbone.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(PREFIX + each for each in close)}?" if close else ""
        raise ModelError(
            f"encoder.backbone: timm {timm.__version__} has no model {excerpt(architecture)}; "
            f"{hint or 'timm.list_models() lists all'}"
        )
    if tag and tag not in (known := _tags(timm, architecture)):
        raise ModelError(
            f"encoder.backbone: timm {timm.__version__} has no weights {excerpt(tag)} of "
            f"{architecture}; known: {', '.join(known) or 'none'}"
        )


def _tags(timm: Any, architecture: str) -> list[str]:
    """Return the tags of an architecture's weights."""
    names: list[str] = timm.list_pretrained(f"{architecture}.*")
    return [name.partition(".")[2] for name in names if name.partition(".")[0] == architecture]


def fetch_timm(
    backbone: str, weights: str, builder_args: dict[str, Any], image_size: int | None
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Return a network with the preprocessing of its weights' training, and its state dict.

    The arguments are those of `FrozenEncoder.create`; the backbone is valid.

    Raises:
        ModelError: if the weights cannot be read or downloaded.
    """
    timm = _library(backbone)
    architecture, _, tag = backbone.removeprefix(PREFIX).partition(".")
    tags = _tags(timm, architecture)
    if weights == "DEFAULT" or weights in tags:
        default = timm.get_pretrained_cfg(architecture)
        wanted = weights if weights in tags else tag or (default.tag if default else "")
        if wanted not in tags:
            raise ModelError(
                f"encoder.weights: timm has no weights of {architecture}; set the path of a state "
                f"dict, or none"
            )
        backbone = f"{PREFIX}{architecture}.{wanted}"
        args = _sized(timm, backbone, builder_args, image_size)
        preprocess = _preprocess(timm, build_timm(backbone, args, device="meta"), args)
        state = _download(timm, backbone, args)
        return EncoderSpec(backbone, args, preprocess, wanted), state
    args = _sized(timm, backbone, builder_args, image_size)
    empty = build_timm(backbone, args, device="meta")
    preprocess = _preprocess(timm, empty, args)
    if weights.lower() == "none":
        state = random_weights(backbone, lambda: _create(timm, backbone, args))
        return EncoderSpec(backbone, args, preprocess), state
    path = find_weights(weights, backbone, tags)
    state = without_prefix(read_state_dict(path), list(empty.state_dict()), where=plain(path))
    return EncoderSpec(backbone, args, preprocess, path.name), state


def _sized(
    timm: Any, backbone: str, builder_args: dict[str, Any], image_size: int | None
) -> dict[str, Any]:
    """Return the builder's arguments; a network for one size of images is told the size."""
    config = timm.get_pretrained_cfg(backbone.removeprefix(PREFIX))
    fixed = config is not None and config.fixed_input_size
    free = builder_args.get("dynamic_img_size") or not builder_args.get("strict_img_size", True)
    if image_size and fixed and not free:
        return {"img_size": image_size} | builder_args
    return builder_args


def _preprocess(timm: Any, network: nn.Module, args: Mapping[str, Any]) -> Preprocess:
    """Return the transform of a network's weights, from timm's data config."""
    config = timm.data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if isinstance(size := args.get("img_size"), int):
        height = width = size
    crop = min(height, width)
    squash = config["crop_mode"] == "squash"
    if height != width or config["crop_mode"] == "border":
        how = "adds borders" if config["crop_mode"] == "border" else f"sees {height} x {width}"
        print(f"note: timm {how}; captioner crops the middle {crop} x {crop}", file=sys.stderr)
    return Preprocess(
        resize_size=max(crop, int(crop / config["crop_pct"])),
        crop_size=crop,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        squash=squash,
    )


def _download(timm: Any, backbone: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a tag, from timm's cache or the network."""
    name = backbone.removeprefix(PREFIX)
    try:
        if repository := timm.get_pretrained_cfg(name).hf_hub_id:
            check_reach(repository)  # timm would try for a minute
        with _Quick():
            network = timm.create_model(name, pretrained=True, **args)
    # Any layer between here and the server may fail in its own type.
    except Exception as error:
        if is_shortage(error):
            raise
        raise ModelError(
            f"encoder.weights: timm could not download {name} ({plain(error)}); fetch it where "
            f"there is a network, with the same command, or set encoder.weights to the path of a "
            f"state dict"
        ) from error
    return state_of(network.state_dict())


class _Quick(Building):
    """Skips the initialisation of weights that are loaded afterwards.

    Random numbers are 0: timm draws some again until they are in a range.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0].zero_()
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return super().__torch_function__(func, types, args, kwargs)


def _create(timm: Any, backbone: str, args: Mapping[str, Any]) -> nn.Module:
    if banned := sorted(set(args) & set(NOT_ARGS) | {k for k in args if "pretrained" in k}):
        raise ValueError(f"{banned[0]} is not an argument of the network")
    network: nn.Module = timm.create_model(backbone.removeprefix(PREFIX), **args)
    return network.eval()


def build_timm(backbone: str, builder_args: Mapping[str, Any], *, device: str = "cpu") -> nn.Module:
    """Build a network of timm with its classifier and arbitrary weights; on "meta" only its shapes.

    Raises:
        ModelError: if the name or an argument is invalid.
    """
    check_timm(backbone)
    timm = _library(backbone)
    gradients = torch.is_grad_enabled()
    try:
        with torch.device(device), _Quick():
            return _create(timm, backbone, builder_args)
    # Builders check little: invalid arguments raise many types.
    except Exception as error:
        if is_shortage(error) and device != "meta":
            raise
        given = excerpt(dict(builder_args))
        message = f"encoder.builder_args: {plain(backbone)} refuses {given}: {plain(error)}"
        raise ModelError(message) from error
    finally:
        torch.set_grad_enabled(gradients)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a network computes from an image."""

    vector_size: int  # numbers F of the vector
    kind: Literal["channels first", "channels last", "tokens", "none"]  # of the last feature map
    channels: int = 0  # numbers C of a place
    rows: int = 0
    columns: int = 0
    skipped: int = 0  # tokens before those of the patches


def layout_of(network: nn.Module, backbone: str, side: int) -> Layout:
    """Find the layout of a network on "meta", without classifier, for images of some pixels a side.

    Raises:
        ModelError: if the network has no pooled vector, or cannot see such images.
    """
    whole: Any = network
    try:
        with torch.inference_mode(), torch.device("meta"):
            found = whole.forward_features(torch.zeros(2, 3, side, side))
            vector = whole.forward_head(found, pre_logits=True)
    # The networks of timm check their input in many ways.
    except Exception as error:
        raise ModelError(
            f"encoder.backbone: {backbone} cannot be used with images of {side} pixels: "
            f"{plain(error)}; check encoder.image_size and encoder.builder_args"
        ) from error
    if not isinstance(vector, Tensor):
        raise ModelError(f"encoder.backbone: {backbone} computes no pooled vector")
    size = vector.flatten(1).shape[1]
    if isinstance(found, Tensor) and found.dim() == 4:
        last = str(getattr(network, "output_fmt", "")).endswith("NHWC")
        rows, columns, channels = found.shape[1:] if last else found.permute(0, 2, 3, 1).shape[1:]
        return Layout(size, "channels last" if last else "channels first", channels, rows, columns)
    if isinstance(found, Tensor) and found.dim() == 3:
        skipped = getattr(network, "num_prefix_tokens", 0)
        rows = isqrt(max(0, found.shape[1] - skipped))
        if rows > 1 and rows**2 + skipped == found.shape[1]:
            return Layout(size, "tokens", found.shape[2], rows, rows, skipped)
    return Layout(size, "none")


class TimmFeatures(nn.Module):
    """A network of timm without its classifier: the vector, and S x S places of its last map."""

    def __init__(self, network: nn.Module, layout: Layout, grid: int, most: int):
        """Wrap a network; without a grid the places are left out, see `with_grid`."""
        super().__init__()
        self.network: Any = network
        self.layout, self.grid, self.most = layout, grid, most
        self.signs: Tensor | None
        sketched = grid and most < layout.channels
        self.register_buffer("signs", random_signs(layout.channels) if sketched else None)

    @property
    def channels(self) -> int:
        """Numbers of a place; 0 without a grid."""
        return min(self.most, self.layout.channels) if self.grid else 0

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images, (B, 3, H, W), to features, (B, F)."""
        found = self.network.forward_features(images)
        vector: Tensor = self.network.forward_head(found, pre_logits=True).flatten(1)
        if not self.grid:
            return vector
        return beside(vector, places(self._map(found), self.grid, self.signs, self.most))

    def _map(self, found: Tensor) -> Tensor:
        """Return the last feature map, (B, C, H, W)."""
        layout = self.layout
        if layout.kind == "channels last":
            return found.permute(0, 3, 1, 2)
        if layout.kind == "tokens":
            patches: Any = found[:, layout.skipped :].transpose(1, 2)
            grid: Tensor = patches.unflatten(2, (layout.rows, layout.columns))
            return grid
        return found


def open_timm(spec: EncoderSpec, state: Mapping[str, Tensor], grid: int, most: int) -> TimmFeatures:
    """Build a network and load its weights; see `with_grid` for the grid.

    Raises:
        ModelError: if the weights do not fit, or the network has no places.
    """
    name, args = spec.backbone, spec.builder_args
    empty, classifier = _without_classifier(build_timm(name, args, device="meta"))
    side = spec.preprocess.crop_size
    layout = layout_of(empty, name, side)
    if grid and layout.kind == "none":
        raise ModelError(
            f"encoder.backbone: {name} has no last feature map that is known; set "
            f"decoder.attention=none, or choose another backbone"
        )
    if grid and layout.rows * layout.columns < 2:
        raise ModelError(no_places(side))
    kept = {name: tensor for name, tensor in state.items() if name not in classifier}
    load_strictly(empty, kept, where=spec.weights)  # hostile sizes allocate nothing
    network, _ = _without_classifier(build_timm(name, args))
    load_strictly(network, kept, where=spec.weights)
    return TimmFeatures(network, layout, grid, most)


def _without_classifier(network: nn.Module) -> tuple[nn.Module, set[str]]:
    """Remove the classifier; return also the names of its weights."""
    whole = set(network.state_dict())
    with _Quick():
        network.reset_classifier(0)  # type: ignore[operator]
    return network.eval(), whole - set(network.state_dict())


def fast_timm(features: TimmFeatures, dtype: torch.dtype) -> nn.Module:
    """Return a faster module with the same function; later layers compute in `dtype`.

    A few networks cannot be traced: their batch norms stay, and all layers compute in `dtype`.
    """
    lowered: Callable[[torch.dtype, nn.Module], nn.Module] = _Autocast
    fast: nn.Module
    try:
        fast = fold(features, _tracer())
    # Control flow that depends on the input stops a trace, with errors of many types.
    except Exception:
        fast = features.eval().requires_grad_(False)
        fast = fast if dtype == torch.float32 else lowered(dtype, fast)
    else:
        fast = fast if dtype == torch.float32 else lower(fast, dtype, lowered)
    for layer in fast.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return fast


def _tracer() -> fx.Tracer:
    """Return a tracer that keeps the layers whole that timm wants whole, and batch norms."""
    import timm

    layers: Any = timm.layers
    whole = (layers.BatchNormAct2d, *layers.get_notrace_modules())

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return type(m) in whole or super().is_leaf_module(m, module_qualified_name)

    return Tracer(autowrap_functions=tuple(layers.get_notrace_functions()))


class _Autocast(nn.Module):
    """A module that multiplies in another dtype; its weights and small sums stay in fp32.

    Networks of timm make tensors in float32 on the way, which low precision weights would refuse.
    """

    def __init__(self, dtype: torch.dtype, module: nn.Module) -> None:
        super().__init__()
        self.dtype, self.module = dtype, module

    def forward(self, *values: Any) -> Tensor:
        """Run the module."""
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        with torch.autocast(device, self.dtype):
            result: Tensor = self.module(*values)
        return result
