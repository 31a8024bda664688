"""The processes of one distributed job, started by `torchrun`: training, or captioning many images.

Every process takes its rows of each batch; one all-reduce per step sums the gradients.
`DistributedDataParallel` expects one backward pass per step, but truncated back-propagation and
gradient accumulation have several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from captioner.errors import CaptionerError
from captioner.system.cores import torchrun_number

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # the others wait while the leader encodes or evaluates alone


class LostProcessError(CaptionerError):
    """Another process of the job died or stopped answering."""


@dataclass(frozen=True, slots=True)
class World:
    """The rank of this process, from 0, and the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the leader, which alone writes files and prints."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.size == 1:
            return
        import torch

        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:  # no token of this process used the parameter
                p.grad = torch.zeros_like(p)
        flat = self.sum(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        pieces = flat.split([p.numel() for p in trained])
        for p, piece in zip(trained, pieces, strict=True):
            p.grad = piece.view_as(p)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; changes `values` in place."""
        if self.size > 1:
            from torch import distributed

            with _lost_process():
                distributed.all_reduce(values)
        return values

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether the value is true in any process."""
        import torch

        return bool(self.sum(torch.tensor(float(here), device=device)) > 0)

    def broadcast(self, value: T) -> T:
        """Return the leader's value in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        with _lost_process():
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def lead(self, call: Callable[[], T]) -> T:
        """Return what the leader's call returns, in every process; the others do not call.

        Raises:
            CaptionerError: in the leader, if the call raises one.
            SystemExit: in the other processes, if the leader's call fails; it says why.
        """
        result: list[T] = []
        error: CaptionerError | None = None
        if self.leads:
            try:
                result.append(call())
            except CaptionerError as raised:
                error = raised
        result = self.broadcast(result)
        if error:
            raise error
        if not result:
            raise SystemExit(1)
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[T] = [value] * self.size
        with _lost_process():
            distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes call this."""
        self.broadcast(None)


@contextmanager
def joined(
    device: torch.device, patience: timedelta = PATIENCE
) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that `torchrun` started; without `torchrun`, work alone. May be nested.

    Gives the world and this process's device: one GPU per process, or the CPU. `patience` is the
    timeout for waiting on another process.

    Raises:
        LostProcessError: if the other processes cannot be reached.
        ConfigError: if an environment variable of `torchrun` is invalid.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World(), device
        return
    import torch
    from torch import distributed

    size = torchrun_number("WORLD_SIZE", least=1)
    torchrun_number("RANK", most=size - 1)  # else this process would wait for ever
    torchrun_number("MASTER_PORT", "29500")
    if device.type == "cuda":
        gpus, hint = torch.cuda.device_count(), "start one process per GPU of this machine"
        device = torch.device("cuda", torchrun_number("LOCAL_RANK", "0", most=gpus - 1, hint=hint))
        torch.cuda.set_device(device)
    is_outermost = not distributed.is_initialized()
    if is_outermost:
        with _lost_process():
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", timeout=patience
            )
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        if is_outermost:
            distributed.destroy_process_group()


@contextmanager
def _lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"another process of this job was lost ({reason}); saved results are kept; run the "
            f"same command again (for training, with --resume), with any number of processes"
        ) from error
