"""Checkpoints: the state of a run in one file.

A checkpoint is a safetensors file. Its header holds all other values as JSON, and a checksum of
the tensors and the header. A run keeps its last two checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captioner.errors import CheckpointError, ConfigError, other_arithmetic
from captioner.run_dir import saved_steps
from captioner.system.disk import advice
from captioner.system.files import whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin
from captioner.training.update import Updater


class DamagedError(CheckpointError):
    """A checkpoint is truncated or altered."""


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0  # completed epochs
    batch: int = 0  # completed batches of the current epoch
    step: int = 0  # optimizer steps since the start
    loss_sum: float = 0.0  # of the epoch so far, in nats
    token_sum: int = 0  # of the epoch so far
    tokens: int = 0  # since the start
    best_score: float = -1.0  # dev score of the best epoch so far; -1: none yet; NaN: undefined
    best_loss: float = math.inf  # dev loss of the best epoch
    best_epoch: int = 0  # from 1; 0: none yet, or the initial weights
    signature: str = ""  # describes how the dev score is computed
    seconds: float = 0.0  # of training, including the time before a resumption


@dataclass(frozen=True, slots=True)
class Saved:
    """A file in memory. The leader reads a checkpoint; all processes restore from it."""

    path: Path
    tensors: dict[str, Tensor]  # of modules and optimizer, by dotted name
    header: dict[str, str]  # all other values, as JSON


def left_alone(folder: Path) -> list[str]:
    """Return the names of files that start with `step-` but are not checkpoints."""
    steps = {path.name for path in saved_steps(folder)}
    return sorted({path.name for path in folder.glob("step-*")} - steps)


def save_checkpoint(
    folder: Path, updater: Updater, progress: Progress, identity: Mapping[str, Any]
) -> None:
    """Write the state of a run, and delete all but the last two checkpoints.

    The identity holds the values that must be equal in a resumed run.

    Raises:
        CheckpointError: if the file cannot be written; earlier checkpoints stay unchanged.
    """
    tensors = {
        f"{name}.{key}": tensor.contiguous().clone()  # safetensors refuses shared memory
        for name, module in updater.modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, state in updater.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    header = {
        "progress": json.dumps(asdict(progress)),
        "scaler": json.dumps(updater.scaler.state_dict()),
        "identity": json.dumps(dict(identity)),
    }
    write_tensors(folder / f"step-{progress.step}.safetensors", tensors, header)
    for old in saved_steps(folder)[:-2]:
        old.unlink()


def read_newest(folder: Path) -> Saved | None:
    """Read the newest checkpoint of a run; None if there is none.

    Raises:
        CheckpointError: if the newest is damaged; the message names the one before it.
    """
    paths = saved_steps(folder)
    if not paths:
        return None
    try:
        return read_tensors(paths[-1])
    except DamagedError as error:
        steps = int(paths[-1].stem[5:])
        remedy = f"no earlier checkpoint; --overwrite starts over and loses {steps:,} steps"
        if len(paths) > 1:
            remedy = f"move it away, then --resume continues from {paths[-2].name}"
        raise CheckpointError(f"{error}; {remedy}") from error


def restore(saved: Saved, updater: Updater, identity: Mapping[str, Any]) -> Progress:
    """Restore the modules, moments and scale of an updater; return the position to continue from.

    Raises:
        CheckpointError: if the checkpoint belongs to a run of another identity, or does not fit.
    """
    path, header = saved.path, saved.header
    try:
        progress = Progress(**json.loads(header["progress"]))
        saved_identity = json.loads(header["identity"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {excerpt(error)}") from error
    check_identity(saved_identity, identity, path)
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    moments: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in saved.tensors.items():
        prefix, _, rest = key.partition(".")
        groups[prefix][rest] = tensor
    try:
        for key, tensor in groups["optimizer"].items():
            index, _, name = key.partition(".")
            moments[int(index)][name] = tensor
        for name, module in updater.modules.items():
            module.load_state_dict(groups[name])
        param_groups = updater.optimizer.state_dict()["param_groups"]
        updater.optimizer.load_state_dict({"state": moments, "param_groups": param_groups})
        if scale := json.loads(header["scaler"]):
            updater.scaler.load_state_dict(scale)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {plain(error)}") from error
    return progress


def check_identity(saved: Mapping[str, Any], identity: Mapping[str, Any], where: Path) -> None:
    """Refuse a checkpoint of another run; `identity`, of this run, may lack keys.

    Raises:
        CheckpointError: if the identities differ.
    """
    differing = [key for key in identity if saved.get(key) != identity[key]]
    if not differing:
        return
    if unknown := [key for key in differing if key not in saved]:
        raise CheckpointError(
            f"{where}: saved by another version of captioner, without {', '.join(unknown)}; finish "
            f"the run with that version, or start a new run with --output DIR"
        )
    reason = f"{', '.join(differing)} changed"
    if "arithmetic" in differing:
        reason += f": {other_arithmetic(saved.get('arithmetic'), identity['arithmetic'])}"
    raise CheckpointError(
        f"{where}: belongs to another run ({reason}); resume with the same data and settings, or "
        f"start a new run with --output DIR"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file with a checksum; a crash leaves no partial file at `path`.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    try:
        tensors = {key: tensor.cpu() for key, tensor in tensors.items()}
        header = header | {"checksum": _checksum(tensors, header)}
        begin(path.parent, "checkpoints", CheckpointError)
        with whole_file(path, "in checkpoints") as aside:
            save_file(tensors, aside, metadata=header)
    except (OSError, SafetensorError, ConfigError) as error:
        reason = getattr(error, "strerror", None) or plain(error)
        raise CheckpointError(f"{path}: could not be written: {reason}{advice(error)}") from error


def read_tensors(path: Path) -> Saved:
    """Read a file from `write_tensors`.

    Raises:
        DamagedError: if the file is missing, truncated or altered.
        CheckpointError: if the system refuses to read it.
    """
    try:
        with suppress(FileNotFoundError), path.open("rb") as readable:
            readable.read(1)
    except OSError as error:  # no permission, for example: the file may be sound
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # safetensors raises many types for a damaged header.
    except Exception as error:
        raise DamagedError(f"{path}: damaged, cannot be read ({plain(error)})") from error
    if header.pop("checksum", None) != _checksum(tensors, header):
        raise DamagedError(f"{path}: damaged, its checksum does not match")
    return Saved(path, tensors, header)


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(header.items())).encode(), digest_size=16)
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
