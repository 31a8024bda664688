"""Runs that are killed, disks that are full, files that are altered."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from captioner.errors import CaptionerError, CheckpointError
from captioner.system.ownership import MARKER
from captioner.training.checkpoint import read_tensors
from captioner.training.run import train

import toys

pytestmark = pytest.mark.slow

EPOCHS = 60
# A fork server that has torch loaded already: twenty restarts cost little.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["captioner.training.run", "matplotlib.figure", "torchvision", "toys"]
)


@pytest.fixture
def config(tmp_path):
    return toys.config(tmp_path, epochs=EPOCHS, save_every=20, ema_decay=0.9)


def work(config, folder: Path, room: int | None) -> None:
    """Train in a process of its own; `room` is the largest file that can be written, in bytes."""
    torch.set_num_threads(1)
    if room:
        # Like a full disk: the system refuses to write on.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        train(config, folder, resume=True, device="cpu")
    except CaptionerError as error:
        (folder.parent / "said.txt").write_text(str(error))
        os._exit(1)


def start(config, folder: Path, room: int | None = None):
    process = PROCESSES.Process(target=work, args=(config, folder, room), daemon=True)
    process.start()
    return process


def finish(config, folder: Path, room: int | None = None) -> int | None:
    process = start(config, folder, room)
    process.join()
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bytes(config, tmp_path):
    assert finish(config, tmp_path / "first") == 0  # stores the features, loads the fork server
    began = time.monotonic()
    assert finish(config, tmp_path / "whole") == 0
    length = time.monotonic() - began
    dice = random.Random(0)
    reached = []
    for _ in range(20):
        process = start(config, tmp_path / "killed")
        process.join(dice.uniform(0.05, 0.5) * length)
        process.kill()
        process.join()
        reached.append(len(list((tmp_path / "killed").rglob("*.safetensors"))))
    assert max(reached) >= 2  # it got far enough to have something to lose
    assert finish(config, tmp_path / "killed") == 0
    assert contents(tmp_path / "killed" / "model") == contents(tmp_path / "whole" / "model")
    assert {left.name for left in (tmp_path / "killed").rglob(".*")} == {MARKER}


def test_a_full_disk_is_one_error_and_the_checkpoints_before_it_stay(config, tmp_path):
    assert finish(config, tmp_path / "whole") == 0
    folder = tmp_path / "run"
    process = start(config, folder)
    while not list(folder.rglob("step-*.safetensors")):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    before = contents(folder / "checkpoints")
    room = max(map(len, before.values())) // 2
    assert finish(config, folder, room) == 1
    said = (tmp_path / "said.txt").read_text()
    assert "could not be written" in said
    assert "free some space" in said
    assert len(said.splitlines()) == 1
    steps = {name: data for name, data in before.items() if name.startswith("step-")}
    assert steps.items() <= contents(folder / "checkpoints").items()
    assert finish(config, folder) == 0
    assert contents(folder / "model") == contents(tmp_path / "whole" / "model")


def test_an_altered_checkpoint_is_refused_by_name_and_the_one_before_it_offered(tmp_path):
    config = toys.config(tmp_path, epochs=2)
    folder = train(config, tmp_path / "run", device="cpu").folder
    files = sorted((folder / "checkpoints").glob("[!.]*"))
    assert [path.name for path in files] == [
        "best.safetensors",
        "step-12.safetensors",
        "step-6.safetensors",
    ]
    dice = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        header = int.from_bytes(whole[:8], "little") + 8
        # in the length, in the header, in the tensors, at both ends
        places = [0, 3, 8, dice.randrange(8, header), dice.randrange(header, len(whole))]
        for place in [*places, len(whole) - 1]:
            altered = bytearray(whole)
            altered[place] ^= 1 << dice.randrange(8)
            path.write_bytes(altered)
            with pytest.raises(CheckpointError, match=rf"{path.name}: damaged"):
                read_tensors(path)
        if path.name == "step-12.safetensors":
            with pytest.raises(CheckpointError, match=r"step-12.*continues from step-6"):
                train(config, folder, resume=True, device="cpu")
        path.write_bytes(whole)
    model = contents(folder / "model")
    (folder / "checkpoints" / "step-12.safetensors").unlink()
    train(config, folder, resume=True, device="cpu")
    assert contents(folder / "model") == model
