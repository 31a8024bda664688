"""Number of cores that a process may use: by affinity, quota of control groups, and ranks.

A container with `--cpus=2` on 64 cores sees 64 cores in its affinity. 64 threads would use up the
quota in a moment and then stand still until the next period.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

from captioner.errors import ConfigError
from captioner.system.foreign import excerpt

MOST_RANKS = 10**6
FEW_SPINS = "1000"  # OpenMP itself takes 100 to 1,000 for more threads than cores
MANY_SPINS = "30000"  # a tenth of the default: programs that start later lose less by it
LOOKS = 5


def cores() -> int:
    """Return this process's number of cores: the allowed cores divided by the local ranks.

    Raises:
        ConfigError: if `$LOCAL_WORLD_SIZE`, which torchrun sets, is not a number of ranks.
    """
    return max(1, allowed_cores() // torchrun_number("LOCAL_WORLD_SIZE", "1", least=1))


def torchrun_number(
    name: str,
    default: str = "",
    *,
    least: int = 0,
    most: int = MOST_RANKS,
    hint: str = "`torchrun` sets it",
) -> int:
    """Read a number that `torchrun` sets in the environment.

    Raises:
        ConfigError: if it is not a whole number from `least` to `most`.
    """
    text = os.environ.get(name, default)
    if not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise ConfigError(
            f"${name}: must be {least} to {most:,}, given {excerpt(text, 60)}; {hint}"
        )
    return int(text)


def allowed_cores(root: Path = Path("/")) -> int:
    """Return the number of cores of the affinity or of the quota, whichever is less; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _quotas(root))]))


def share_cores(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set how PyTorch's threads count and wait; works until torch is imported.

    A thread of GNU OpenMP that waits for another one spins, by default 300,000 times: milliseconds.
    Beside other programs it takes the core that the other thread needs. On free cores it saves the
    time to wake up. So threads spin briefly if other programs run now or the cores have a quota.
    Values that the user set stay.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = allowed_cores(root)
    limited = affinity is not None and allowed < len(affinity(0))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        crowded = limited or _others(root) + allowed > (os.cpu_count() or 1)
        environment["GOMP_SPINCOUNT"] = FEW_SPINS if crowded else MANY_SPINS
    if limited:
        environment.setdefault("OMP_NUM_THREADS", str(allowed))


def _others(root: Path) -> int:
    """Return the number of other threads that run or wait for a core; 0 where it is not shown."""
    seen = []
    for _ in range(LOOKS):
        try:
            running = (root / "proc/loadavg").read_text().split()[3].split("/")[0]
            seen.append(max(0, int(running) - _own(root)))
        except (OSError, ValueError, IndexError):
            return 0
        if not seen[-1]:
            return 0  # no other look shows fewer
        time.sleep(0.001)  # a program that only starts or answers soon sleeps again
    return min(seen)


def _own(root: Path) -> int:
    """Return the number of this process's threads that run; those of numpy do, once imported."""
    states = []
    for thread in root.glob("proc/self/task/*/stat"):
        with suppress(OSError):  # it ended
            states.append(thread.read_text().rpartition(")")[2].split()[0])
    return max(1, states.count("R"))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control groups and the groups above them."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see its own group as the root of the mount.
        for folder in (Path(group), *Path(group).parents):
            for mount in (mounts / "cpu", mounts / controllers, mounts / "unified"):
                yield from _quota(mount / folder.relative_to("/"))


def _quota(group: Path) -> Iterator[float]:
    """Yield the quota of one control group, of version 2 or 1, if it has one."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        if float(quota) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no group, or "max": no quota
        return
