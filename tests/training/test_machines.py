"""Two machines train one model, without a common disk; a killed process costs nothing."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import captioner
from captioner.errors import CheckpointError, ConfigError
from captioner.system.world import World
from captioner.training.machines import check_alike, check_newest

import toys
from processes import ended

ENVIRONMENT = {
    "PYTHONPATH": str(Path(captioner.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
pytestmark = pytest.mark.usefixtures("ends_what_it_starts")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TRAIN = ("-m", "captioner", "train", "toy.yaml", "--output", "run", "--device", "cpu")


@dataclass(frozen=True)
class Machine:
    """A folder with its own data, weights, feature store and results, and an address."""

    folder: Path
    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()  # command before a command
    interface: str = "lo"

    def furnish(self) -> None:
        self.folder.mkdir()
        here = Path.cwd()
        os.chdir(self.folder)  # every machine has the same relative paths
        try:
            config = toys.config(Path(), epochs=20)
        finally:
            os.chdir(here)
        (self.folder / "toy.yaml").write_text(config.to_yaml())

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        places = {
            "CAPTIONER_CACHE": str(self.folder / "cache"),
            "GLOO_SOCKET_IFNAME": self.interface,
        }
        with (self.folder / "stderr").open("wb") as stderr:
            return subprocess.Popen(
                [*self.enter, *TORCHRUN, *words],
                cwd=self.folder,
                env=os.environ | ENVIRONMENT | places,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def model(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "run/model").iterdir()}


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("machines") / "one")
    machine.furnish()
    with ended():
        process = machine.start("--standalone", "--nproc-per-node=2", *TRAIN)
        assert process.wait(300) == 0, machine.said
    return machine


@contextmanager
def two_machines(folder: Path) -> Iterator[list[Machine]]:
    """Give two network namespaces with a cable between them, or else two loopback addresses."""
    number = os.getpid() % 10**7
    names, ends = [[f"{kind}{number}{n}" for n in "ab"] for kind in ("capt", "cable")]
    link = f"ip link add {ends[0]} netns {names[0]} type veth peer {ends[1]} netns {names[1]}"
    commands = [*(f"ip netns add {name}" for name in names), link]
    for name, end, last in zip(names, ends, "12", strict=True):
        commands += [
            f"ip -n {name} link set lo up",
            f"ip -n {name} addr add 10.77.0.{last}/24 dev {end}",
            f"ip -n {name} link set {end} up",
        ]
    try:
        if shutil.which("ip") and not any(
            subprocess.run(words.split(), capture_output=True, check=False).returncode
            for words in commands
        ):
            yield [
                Machine(folder / name, f"10.77.0.{last}", ("ip", "netns", "exec", name), end)
                for name, end, last in zip(names, ends, "12", strict=True)
            ]
        else:
            yield [
                Machine(folder / name, f"127.0.0.{last}")
                for name, last in zip("ab", "12", strict=True)
            ]
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start_job(machines: list[Machine]) -> list[subprocess.Popen[bytes]]:
    together = "--nnodes=2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d --rdzv-id=1"
    return [
        machine.start(
            *together.split(),
            f"--rdzv-endpoint={machines[0].address}:29431",
            f"--rdzv-conf=is_host={int(machine is machines[0])}",
            f"--local-addr={machine.address}",
            *TRAIN,
            "--resume",
        )
        for machine in machines
    ]


def kill_worker(launcher: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(launcher.pid).children(recursive=True)
    (worker,) = (child for child in children if "TORCHELASTIC_RUN_ID" in child.environ())
    worker.kill()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["unbroken", "killed"])
def test_two_machines_without_a_common_disk_train_what_one_trains(killed, one_machine, tmp_path):
    with two_machines(tmp_path) as machines:
        lead, other = machines
        lead.furnish()
        other.furnish()
        (other.folder / "toy.yaml").unlink()  # the first machine's settings hold
        with ended():
            launchers = start_job(machines)
            while killed and not list(lead.folder.rglob("step-*.safetensors")):
                assert launchers[0].poll() is None, lead.said
                time.sleep(0.02)
            if killed:
                kill_worker(launchers[1])
            assert [launcher.wait(300) for launcher in launchers] == [0, 0], lead.said + other.said
    starts = [int(line.split()[3]) for line in lead.said.splitlines() if "resuming" in line]
    assert len(starts) == 1 + killed
    assert all(0 < step < 120 for step in starts[1:])
    assert lead.model == one_machine.model
    assert not (other.folder / "run").exists()
    assert "model:" in lead.said
    assert "model:" not in other.said  # it has none
    for machine in machines:
        (keys,) = machine.folder.rglob("rows.key")
        assert keys.stat().st_size == 30 * 16


def test_a_restart_without_resume_is_refused_once(tmp_path):
    def train(restarts: int, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "captioner", "train", "no.yaml", *words],
            cwd=tmp_path,
            env=os.environ
            | ENVIRONMENT
            | {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": str(restarts)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, said = train(0)
    assert (code, said.count("\n")) == (2, 1)
    assert "torchrun --max-restarts needs --resume" in said
    assert train(1) == (2, "")
    assert "no.yaml" in train(0, "--resume")[1]


class Others(World):
    """A world whose other processes say what they are told to say."""

    def __init__(self, *values):
        super().__init__(0, 1 + len(values))
        object.__setattr__(self, "values", values)

    def gather(self, value):
        return [value, *self.values]


def test_only_the_leader_calls_and_says_what_failed():
    def fail() -> None:
        raise CheckpointError("no")

    assert World().lead(lambda: 5) == 5
    with pytest.raises(CheckpointError, match="no"):
        World().lead(fail)

    class Second(World):
        def broadcast(self, value):
            return heard

    heard = [5]
    assert Second(1, 2).lead(fail) == 5
    heard = []
    with pytest.raises(SystemExit):
        Second(1, 2).lead(fail)


def test_a_newer_checkpoint_elsewhere_is_not_forgotten(tmp_path):
    check_newest(tmp_path, World())
    check_newest(tmp_path, Others((-1, "beta")))
    with pytest.raises(CheckpointError, match=r"machine beta .* step 40, .* rank 0, .* has none"):
        check_newest(tmp_path, Others((20, "alpha"), (40, "beta")))
    (tmp_path / "step-40.safetensors").touch()
    check_newest(tmp_path, Others((20, "alpha"), (40, "beta")))


def test_machines_with_other_data_do_not_train(tmp_path):
    ours = {"config": {}, "train images": "a", "arithmetic": "fp32"}
    check_alike(ours, World())
    check_alike(ours, Others((dict(ours), "beta")))
    other = ours | {"train images": "b"}
    with pytest.raises(ConfigError, match="rank 2, on beta, has other train images than rank 0"):
        check_alike(ours, Others((ours, "alpha"), (other, "beta")))
