"""Checkpoints: the state of a run in one file.

A checkpoint is a safetensors file; what is not a tensor is JSON in its header, and a checksum
covers all. It is written to a temporary file, flushed and renamed. The last two of a run are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from captioner.encoder.encoder import other_arithmetic
from captioner.errors import CheckpointError, ConfigError
from captioner.run_dir import saved_steps
from captioner.system.files import room, whole_file
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin


class DamagedError(CheckpointError):
    """A file that was cut off or altered after it was written."""


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: passes completed.
        batch: batches done of the epoch under way.
        step: optimizer steps since the start.
        loss_sum: nats over the epoch's tokens so far.
        token_sum: tokens of the epoch so far.
        tokens: tokens since the start.
        best_score: best dev score so far.
        best_epoch: the pass that gave it, from 1; 0 for none yet, or for the weights it began with.
        signature: how the dev score is made.
        seconds: spent training, over all sittings.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    token_sum: int = 0
    tokens: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    signature: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint as it was read; the leader reads it, and all processes restore it.

    Attributes:
        path: where it was.
        tensors: of modules and optimizer, by dotted name.
        header: everything else, as JSON.
    """

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]


def left_alone(folder: Path) -> list[str]:
    """Return the names of files that begin as a checkpoint's does and are none."""
    steps = {path.name for path in saved_steps(folder)}
    return sorted({path.name for path in folder.glob("step-*")} - steps)


def save_checkpoint(
    folder: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    identity: Mapping[str, Any],
) -> None:
    """Write the whole state of a run, and delete all but the last two.

    Args:
        folder: of the run's checkpoints.
        modules: by name; their parameters and buffers are stored.
        optimizer: its moments are stored.
        scaler: its scale is stored.
        progress: position and scores.
        identity: what a resumed run must share with this one.

    Raises:
        CheckpointError: if it cannot be written; the ones before it stay as they were.
    """
    tensors = {
        f"{name}.{key}": tensor.contiguous().clone()  # tied weights share memory, files cannot
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    header = {
        "progress": json.dumps(asdict(progress)),
        "scaler": json.dumps(scaler.state_dict()),
        "identity": json.dumps(dict(identity)),
    }
    write_tensors(folder / f"step-{progress.step}.safetensors", tensors, header)
    for old in saved_steps(folder)[:-2]:
        old.unlink()


def read_newest(folder: Path) -> Saved | None:
    """Read the newest checkpoint of a run.

    Args:
        folder: of the run's checkpoints.

    Returns:
        What was saved, or None where nothing was yet.

    Raises:
        CheckpointError: if the newest is damaged; it is never skipped silently, but the one
            before it is offered.
    """
    found = saved_steps(folder)
    if not found:
        return None
    try:
        return read_checkpoint(found[-1])
    except DamagedError as error:
        steps = int(found[-1].stem[5:])
        offer = f"; there is none before it: --overwrite starts over, its {steps:,} steps are lost"
        if len(found) > 1:
            offer = f"; move it away, and --resume goes on from {found[-2].name} before it"
        raise CheckpointError(f"{error}{offer}") from error


def read_checkpoint(path: Path) -> Saved:
    """Read one checkpoint.

    Raises:
        DamagedError: if it is missing, cut off or altered.
    """
    return Saved(path, *read_tensors(path))


def restore(
    saved: Saved,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    identity: Mapping[str, Any],
) -> Progress:
    """Restore the state of a run.

    Args:
        saved: what `save_checkpoint` wrote.
        modules: by the names they were saved under; changed in place.
        optimizer: changed in place.
        scaler: changed in place.
        identity: must equal what was saved.

    Returns:
        The position to go on from.

    Raises:
        CheckpointError: if it belongs to another run.
    """
    path, header = saved.path, saved.header
    try:
        progress = Progress(**json.loads(header["progress"]))
        saved_identity = json.loads(header["identity"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {excerpt(error)}") from error
    check_identity(saved_identity, identity, path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.tensors.items():
        prefix, _, rest = key.partition(".")
        groups.setdefault(prefix, {})[rest] = tensor
    try:
        for name, module in modules.items():
            module.load_state_dict(groups[name])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in groups.get("optimizer", {}).items():
            index, _, field = key.partition(".")
            state.setdefault(int(index), {})[field] = tensor
        param_groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})
        if scale := json.loads(header["scaler"]):
            scaler.load_state_dict(scale)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit this run: {plain(error)}") from error
    return progress


def check_identity(saved: Mapping[str, Any], identity: Mapping[str, Any], where: Path) -> None:
    """Refuse a checkpoint of another run.

    Args:
        saved: its identity.
        identity: of this run, or the part of it that is known.
        where: file or folder of the checkpoint, for the message.

    Raises:
        CheckpointError: if they differ.
    """
    differing = [key for key in identity if saved.get(key) != identity[key]]
    if not differing:
        return
    if unknown := [key for key in differing if key not in saved]:
        raise CheckpointError(
            f"{where}: saved by another version of captioner, which kept nothing to tell its "
            f"{', '.join(unknown)} by; finish the run with that version, or start one in another "
            f"folder"
        )
    what = f"{', '.join(differing)} changed"
    if "arithmetic" in differing:
        what += f": {other_arithmetic(saved.get('arithmetic'), identity['arithmetic'])}"
    raise CheckpointError(
        f"{where}: belongs to another run ({what}); "
        f"resume with the same data and settings, or start another with --output DIR"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write tensors and a header, whole.

    Raises:
        CheckpointError: if it cannot be written.
    """
    try:
        tensors = {key: tensor.cpu() for key, tensor in tensors.items()}
        header = header | {"checksum": _checksum(tensors, header)}
        begin(path.parent, "checkpoints", CheckpointError)
        with whole_file(path, "in checkpoints") as aside:
            save_file(tensors, aside, metadata=header)
    except (OSError, SafetensorError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: could not be written: {plain(error)}{room(error)}"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote.

    Raises:
        DamagedError: if it is missing, cut off or altered.
        CheckpointError: if the system does not let it be read.
    """
    try:
        with suppress(FileNotFoundError), path.open("rb") as readable:
            readable.read(1)
    except OSError as error:  # what cannot be read now is not damaged
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # A damaged header makes the library raise nearly anything.
    except Exception as error:
        raise DamagedError(f"{path}: damaged, cannot be read ({plain(error)})") from error
    if header.pop("checksum", None) != _checksum(tensors, header):
        raise DamagedError(f"{path}: damaged, its checksum does not match")
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(header.items())).encode(), digest_size=16)
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
