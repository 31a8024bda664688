"""Checks that the processes of one run, which may be on several machines, agree."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioner.errors import CheckpointError, ConfigError
from captioner.run_dir import saved_steps
from captioner.system.foreign import plain
from captioner.system.world import World


def check_newest(checkpoints: Path, world: World) -> None:
    """Refuse to resume from an older state than another machine has.

    `torchrun` may give rank 0, which writes the run, to another machine than before.

    Raises:
        CheckpointError: if the folder of another process holds a newer checkpoint.
    """
    steps = saved_steps(checkpoints)
    last = int(steps[-1].stem[5:]) if steps else -1
    (ours, host), *others = world.gather((last, platform.node()))
    newest, place = max(others, default=(-1, ""))
    if newest > ours:
        here = f"up to step {ours:,}" if ours >= 0 else "none"
        raise CheckpointError(
            f"{checkpoints}: machine {plain(place)} has checkpoints up to step {newest:,}, but "
            f"rank 0, on {plain(host)}, has {here}; copy the run folder there, or write to a "
            f"folder that all machines share"
        )


def check_alike(identity: Mapping[str, Any], world: World) -> None:
    """Refuse to train if processes differ in what must be equal: data, words, CNN, arithmetic.

    Raises:
        ConfigError: if the identity of a process differs from that of rank 0.
    """
    (first, host), *others = world.gather((dict(identity), platform.node()))
    for rank, (theirs, place) in enumerate(others, start=1):
        differing = [key for key in first if theirs.get(key) != first[key]]
        if differing:
            raise ConfigError(
                f"rank {rank}, on {plain(place)}, has other {', '.join(differing)} than rank 0, on "
                f"{plain(host)}; give every machine the same data, weights and versions"
            )
