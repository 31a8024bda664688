"""Cores are counted by affinity, quota and ranks; PyTorch's threads share them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioner.system.cores import allowed_cores, cores, share_cores


def allow(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pretend that the scheduler allows `count` cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the files that Linux shows about control groups."""
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 64),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n"}, 64),
        # The quota of a group above holds too.
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            "0::/a/b\n",
            {
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "500000 100000\n",
            },
            3,
        ),
        # A container that sees its own group as the root of the mount.
        ("0::/docker/12\n", {"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        # Version 1.
        (
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
            },
            5,
        ),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            V1,
            {
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        # The quota of another controller says nothing.
        ("4:memory:/job\n", {"sys/fs/cgroup/memory/job/cpu.max": "100000 100000\n"}, 64),
    ],
)
def test_quota_of_control_groups_limits_the_cores(
    groups: str,
    files: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allow(monkeypatch, 64)
    assert allowed_cores(system(tmp_path, groups, files)) == expected


def test_affinity_below_the_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 2)
    files = {"sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert allowed_cores(system(tmp_path, "0::/\n", files)) == 2


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.system.cores.allowed_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    assert cores() == 1


@pytest.mark.parametrize(
    ("looks", "spins"),
    [
        (["1"], "30000"),  # this process alone
        (["3"], "30000"),  # two others leave two of the four cores
        (["4"], "1000"),
        (["9", "1"], "30000"),  # a program that only starts
        (["nonsense"], "30000"),
        ([], "30000"),
    ],
)
def test_threads_spin_briefly_where_others_run(
    looks: list[str], spins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    load = tmp_path / "proc/loadavg"
    load.parent.mkdir()

    def look(running: str) -> None:
        load.write_text(f"0.52 0.58 0.59 {running}/389 12345\n")

    if looks:
        look(looks[0])
    rest = iter(looks[1:])
    monkeypatch.setattr(time, "sleep", lambda _: look(next(rest, looks[-1])))
    environment: dict[str, str] = {}
    share_cores(environment, tmp_path)
    assert environment == {"GOMP_SPINCOUNT": spins}


def test_threads_of_this_process_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.52 0.58 0.59 3/389 12345\n")
    for thread, (name, state) in enumerate([("a (b) c", "R"), ("numpy", "R"), ("numpy", "S")]):
        folder = tmp_path / f"proc/self/task/{thread}"
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{thread} ({name}) {state} 1 2 3\n")
    environment: dict[str, str] = {}
    share_cores(environment, tmp_path)
    assert environment == {"GOMP_SPINCOUNT": "1000"}  # three run, two of them here
    (tmp_path / "proc/self/task/2/stat").write_text("2 (numpy) R 1 2 3\n")
    environment.clear()
    share_cores(environment, tmp_path)
    assert environment == {"GOMP_SPINCOUNT": "30000"}


def test_threads_spin_briefly_and_are_no_more_than_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    system(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"})
    environment: dict[str, str] = {}
    share_cores(environment, tmp_path)
    assert environment == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "3"}


def test_threads_as_the_user_set_them_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 64)
    system(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"})
    for given in (
        {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"},
        {"GOMP_SPINCOUNT": "5", "OMP_NUM_THREADS": "7"},
    ):
        environment = dict(given)
        share_cores(environment, tmp_path)
        assert environment == given


def test_the_package_sets_how_threads_wait_before_torch_is_imported() -> None:
    code = (
        "import os, sys, captioner; assert 'torch' not in sys.modules; "
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("1000", "30000")
