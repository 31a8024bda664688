"""The processes that do one job together: train one model, or caption one set of images.

`torchrun` starts them and tells each its rank; here they exchange gradients, scores and the
order to stop. The gradients are summed by one all-reduce after the last backward pass of a
step: truncated back-propagation and gradient accumulation have several passes per step, which
the hooks of `DistributedDataParallel` would each want to be the only one. Every process reads
the same batch order and takes its rows of each batch, so the sum is the gradient of the whole
batch, whatever the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from captioner.errors import CaptionerError, ConfigError
from captioner.system.foreign import excerpt

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # the leader may take this long to encode or to evaluate alone


class LostProcessError(CaptionerError):
    """Another process of the job died or stopped answering."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all.

    Attributes:
        rank: from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Only the leader writes files and talks."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:  # no token of this process reached it
                p.grad = torch.zeros_like(p)
        flat = self.sum(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        pieces = flat.split([p.numel() for p in trained])
        for p, piece in zip(trained, pieces, strict=True):
            p.grad = piece.view_as(p)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; changes `values` in place."""
        if self.size > 1:
            with _lost():
                distributed.all_reduce(values)
        return values

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether it is so in any process."""
        return bool(self.sum(torch.tensor(float(here), device=device)) > 0)

    def broadcast(self, value: T) -> T:
        """Return the leader's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        with _lost():
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait until all are here."""
        self.broadcast(None)


@contextmanager
def joined(
    device: torch.device, patience: timedelta = PATIENCE
) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes that `torchrun` started, if it did.

    Args:
        device: kind of device to train on.
        patience: for how long one process may keep the others waiting.

    Yields:
        This process's place, and its own device: one GPU per process, or the CPU.

    Raises:
        LostProcessError: if the others cannot be reached.
        ConfigError: if what `torchrun` says makes no sense.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World(), device
        return
    size = _number("WORLD_SIZE", least=1)
    if _number("RANK") >= size:  # the others would be waited for, for ever
        raise ConfigError(f"$RANK: must be below $WORLD_SIZE ({size:,})")
    _number("MASTER_PORT", default="29500")
    if device.type == "cuda":
        local = _number("LOCAL_RANK", default="0")
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"$LOCAL_RANK: there is no GPU {local} here; start at most "
                f"{torch.cuda.device_count()} processes on this machine"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    with _lost():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=patience
        )
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()


def _number(name: str, *, default: str = "", least: int = 0) -> int:
    """Return a number that `torchrun` puts into the environment."""
    value = os.environ.get(name, default)
    if not value.isdecimal() or len(value) > 9 or int(value) < least:
        raise ConfigError(
            f"${name}: must be a whole number from {least}, given {excerpt(value, 60)}; "
            f"`torchrun` sets it"
        )
    return int(value)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"another process of this job was lost ({reason}); what was saved stays: give the same "
            f"command again (to train, with --resume), with as many processes as there are"
        ) from error
