"""Finds the weights of a CNN by enum name or path, and loads them strictly."""

from __future__ import annotations

import argparse
import errno
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioner.config import resolve_path
from captioner.encoder.backbones import build_backbone, head_name, is_plugin
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.without_compiler import import_torchvision
from captioner.errors import ModelError
from captioner.system.files import mistaken_for, no_stream, read_head
from captioner.system.foreign import excerpt, plain

# The classifier, and the auxiliary classifiers of GoogLeNet and Inception.
CLASSIFIER_KEYS = re.compile(r"^(fc|classifier|aux1|aux2|AuxLogits)\b")
# Keys of training checkpoints that hold the weights, the usual first.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "encoder", "backbone", "ema", "model_ema", "state_dict_ema"),
)
HOW_TO_WRITE = "torch.save(model.state_dict(), 'weights.pth') writes one"
# Torchvision's DenseNet files use old parameter names.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The specification of a CNN without its weights."""

    backbone: str  # torchvision name, or timm:NAME
    builder_args: dict[str, Any] = field(default_factory=dict)  # of the builder
    preprocess: Preprocess = field(default_factory=Preprocess)
    weights: str = "none"  # origin of the weights, for display


def fetch_weights(
    backbone: str, weights: str, builder_args: dict[str, Any]
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Return a CNN with the transform of its weights' training, and its state dict.

    The arguments are those of `FrozenEncoder.create`; the backbone is valid.

    Raises:
        ModelError: if the weights cannot be read or downloaded.
    """
    members, first = _known_weights(backbone)
    if weights.lower() == "none":
        state = random_weights(backbone, lambda: build_backbone(backbone, builder_args))
        return EncoderSpec(backbone, builder_args, first), _headless(backbone, builder_args, state)
    if weights in members:
        entry = members[weights]
        if backbone in ("googlenet", "inception_v3"):
            # These weights come from TensorFlow; torchvision's builder does the same.
            builder_args = {"transform_input": True} | builder_args
        origin = f"{type(entry).__name__}.{entry.name}"
        preprocess = Preprocess.of_weights(entry.transforms())
        return EncoderSpec(backbone, builder_args, preprocess, origin), _download(entry, origin)
    path = find_weights(weights, backbone, members)
    expected = list(build_backbone(backbone, builder_args, device="meta").state_dict())
    found = without_prefix(read_state_dict(path), expected, where=plain(path))
    found = _headless(backbone, builder_args, found)
    return EncoderSpec(backbone, builder_args, first, path.name), found


def _headless(
    backbone: str, builder_args: dict[str, Any], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights without those of the head of a plug-in's CNN, which may have any name."""
    if not is_plugin(backbone):
        return state
    head = head_name(build_backbone(backbone, builder_args, device="meta"))
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}


def _known_weights(backbone: str) -> tuple[Mapping[str, Any], Preprocess]:
    """Return the enum of a CNN's weights by name, and how to read images with other weights."""
    if is_plugin(backbone):
        return {}, Preprocess()
    import_torchvision()
    from torchvision import models

    members = models.get_model_weights(backbone)
    return members.__members__, Preprocess.of_weights(next(iter(members)).transforms())


def random_weights(backbone: str, build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return the weights of a network that draws them, always the same; a line warns of them."""
    print(
        f"warning: encoder.weights is none: {backbone} has random weights; captions will be poor",
        file=sys.stderr,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build().state_dict())


def find_weights(weights: str, backbone: str, known: Iterable[str]) -> Path:
    """Return the path of a state dict; a `ModelError` with the known names if there is no file."""
    path = resolve_path(weights)
    if not path.is_file():
        names = ", ".join(known)
        raise ModelError(
            f"encoder.weights: {weights} is neither a file nor weights of {backbone} "
            f"(known: {f'{names}, ' if names else ''}none)"
        )
    return path


def _download(entry: Any, origin: str) -> dict[str, Tensor]:
    try:
        # Without weights_only, torchvision unpickles the file in its cache.
        state = entry.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"encoder.weights: {origin} could not be downloaded ({plain(error)}); put "
            f"{entry.url.rsplit('/', 1)[-1]} into {folder} ({entry.url}), or set encoder.weights "
            f"to the path of a state dict"
        ) from error
    return state_of(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict in fp32, from `.safetensors` or `torch.save`, and run no code of the file.

    Raises:
        ModelError: if the file cannot be read or holds anything but tensors.
    """
    try:
        head = read_head(path)
        if mistaken := mistaken_for(head):
            raise ModelError(f"{path}: {mistaken}")
        if head[8:9] == b"{" or (path.suffix == ".safetensors" and head[:2] != b"PK"):
            state: Any = load_file(path)
        else:
            # Torchvision's own training script stores its arguments in a Namespace. By the name
            # of a file, torch.load would choose another reader.
            allowed = torch.serialization.safe_globals([argparse.Namespace])
            with allowed, open(path, "rb", opener=no_stream) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: damaged, or not a plain state dict: Python objects are never loaded; "
            f"{HOW_TO_WRITE}"
        ) from error
    except OSError as error:
        is_cut = error.errno == errno.EINVAL and not error.filename  # torch looks before its start
        reason = (
            "damaged: it is cut off"
            if is_cut
            else f"cannot be read: {error.strerror or plain(error)}"
        )
        raise ModelError(f"{path}: {reason}") from error
    # torch raises many types for a damaged file (IndexError, KeyError, ...).
    except Exception as error:
        foreign = any(words in str(error) for words in ("TorchScript", "legacy .tar", "archive is"))
        what = "not a state dict of PyTorch" if foreign else f"damaged: {plain(error)}"
        raise ModelError(f"{path}: {what}{f'; {HOW_TO_WRITE}' if foreign else ''}") from error
    state = _unwrapped(state, path)
    # A tensor with stride 0 claims any shape from one stored number; the conversion allocates all.
    if any(t.nbytes > t.untyped_storage().nbytes() for t in state.values()):
        raise ModelError(f"{path}: damaged: tensors claim more numbers than the file holds")
    return state_of(state)


def _unwrapped(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a checkpoint, and say which key held it."""
    keys: list[str] = []
    state = content
    while isinstance(state, Mapping):
        if state and all(isinstance(value, Tensor) for value in state.values()):
            if keys:
                say = f"note: {plain(path)}: takes the weights of {'.'.join(keys)}"
                print(say, file=sys.stderr)
            return state
        key = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if key is None or len(keys) == len(WRAPPERS):  # a dict may hold itself
            break
        keys.append(key)
        state = state[key]
    found = f", and holds {excerpt(list(state))}" if isinstance(state, Mapping) else ""
    raise ModelError(
        f"{path}: not a state dict: it must map names to tensors{found}; {HOW_TO_WRITE}"
    )


def without_prefix(
    state: dict[str, Tensor], names: Sequence[str], *, where: str
) -> dict[str, Tensor]:
    """Return the tensors below the prefix, such as `module.`, that covers most of a CNN's names.

    Says so if a prefix is removed.
    """
    if not names or any(name in state for name in names):
        return state
    first = names[0]
    prefixes = {name[: -len(first)] for name in state if name.endswith(f".{first}")}
    covered = {p: sum(p + name in state for name in names) for p in sorted(prefixes)[:100]}
    prefix = max(covered, key=lambda p: covered[p], default="")
    if covered.get(prefix, 0) * 2 < len(names):
        return state
    kept = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    rest = f"; {len(state) - len(kept)} others are not used" if len(kept) < len(state) else ""
    print(f"note: {where}: takes the weights named {plain(prefix)}*{rest}", file=sys.stderr)
    return kept


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in fp32 with current parameter names."""
    return {
        OLD_DENSENET.sub(r"\1\2", str(name)): t.float() if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load weights into a network without its head; a `ModelError` with all that does not fit."""
    wanted = network.state_dict()
    # Counters of training batches: missing in converted weights, unused by a frozen CNN.
    given = {k: torch.zeros((), dtype=torch.long) for k in wanted if k.endswith("batches_tracked")}
    given |= {k: v for k, v in state.items() if k in wanted}
    both = sorted(wanted.keys() & given.keys())
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(k for k in state if k not in wanted and not CLASSIFIER_KEYS.match(k)),
        "shape": [
            f"{k} is {tuple(given[k].shape)}, not {tuple(wanted[k].shape)}"
            for k in both
            if given[k].shape != wanted[k].shape
        ],
        "numbers": [
            f"{k} is {given[k].dtype}"
            for k in both
            if given[k].is_floating_point() != wanted[k].is_floating_point()
        ],
    }
    listed = "; ".join(f"{fault}: {_few(names)}" for fault, names in faults.items() if names)
    if listed:
        raise ModelError(
            f"encoder.weights: {where} does not fit this backbone ({listed}); "
            f"check encoder.backbone and encoder.builder_args"
        )
    wanted.update(given)  # keeps the version metadata that MNASNet needs
    network.load_state_dict(wanted, assign=True)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(plain(name, 100) for name in names[:5]) + more
