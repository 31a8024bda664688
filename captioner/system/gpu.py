"""Which parts of the way through a CUDA device are used, and streams beside the current one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Part = Literal["nvjpeg", "graphs", "streams"]
SWITCH = "CAPTIONER_GPU"  # names of the parts to use, with commas; for benchmarks
# Compute capabilities of GPUs that decode JPEGs in hardware: A100, H100 and H200, B200.
JPEG_DECODERS = ((8, 0), (9, 0), (10, 0), (10, 3))


def uses(part: Part, device: torch.device) -> bool:
    """Return whether a part is used on a device: no part on any but a CUDA device."""
    if device.type != "cuda":
        return False
    chosen = os.environ.get(SWITCH)
    if chosen is not None:
        return part in chosen.split(",")
    return part != "nvjpeg" or torch.cuda.get_device_capability(device) in JPEG_DECODERS


class SideStream:
    """A stream of a CUDA device beside its current one; not wanted or elsewhere: the current."""

    def __init__(self, device: torch.device, wanted: bool = True):
        self.stream = torch.cuda.Stream(device) if wanted and device.type == "cuda" else None

    def current(self) -> AbstractContextManager[object]:
        """Make it the current stream of this thread within a block."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def wait(self) -> None:
        """Wait until the device has done what the stream was given."""
        if self.stream:
            self.stream.synchronize()

    def mark(self) -> torch.cuda.Event | None:
        """Mark what the stream was given so far, for `use`."""
        return self.stream.record_event() if self.stream else None


def use(tensors: list[Tensor], made: torch.cuda.Event | None = None) -> None:
    """Prepare tensors of another stream for the current one.

    Args:
        tensors: their memory is not given to others before the current stream has used it.
        made: the current stream waits for this mark; None: they are already computed.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            if made is not None:
                stream.wait_event(made)
                made = None
            tensor.record_stream(stream)
