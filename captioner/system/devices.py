"""The devices that torch computes on."""

from __future__ import annotations

import torch

from captioner.errors import ConfigError, must_be

DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(device: str | torch.device) -> torch.device:
    """Return a device that is available; "auto" takes cuda, else mps, else cpu.

    Raises:
        ConfigError: if the device is unknown or not available.
    """
    must_be("device", device, str, torch.device)
    best = "mps" if torch.backends.mps.is_available() else "cpu"
    best = "cuda" if torch.cuda.is_available() else best
    if device == "auto":
        return torch.device(best)
    try:
        chosen = torch.device(device)
        if chosen.type not in DEVICES:  # such as meta, which holds no numbers
            raise ValueError(f"{chosen.type} is not supported")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        known = ", ".join(dict.fromkeys(("cpu", best)))
        raise ConfigError(
            f"device {device!s:.60}: not available here; choose auto or one of {known}"
        ) from error
    return torch.device("cpu") if chosen.type == "cpu" else chosen
