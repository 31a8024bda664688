"""Several processes train one model, started by torchrun as people start them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import captioner
from captioner.run_dir import read_metrics
from captioner.system.world import World
from captioner.training import bptt
from captioner.training.checkpoint import read_newest
from captioner.training.run import train

import toys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ends_what_it_starts")]

ENVIRONMENT = {
    "PYTHONPATH": str(Path(captioner.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@pytest.fixture
def config(tmp_path):
    config = toys.config(tmp_path, epochs=2)
    tree = config.model_dump()
    tree["decoder"]["dropout"] = 0.0  # its masks differ between processes
    return type(config).model_validate(tree)


def command(config, folder: Path, *words: str) -> list[str]:
    path = folder.parent / "toy.yaml"
    path.write_text(config.to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "captioner", "train", str(path), "--output", str(folder), "--device", "cpu"]
    return [*launch, *train, *words]


def torchrun(config, folder: Path, *words: str) -> str:
    done = subprocess.run(
        command(config, folder, *words),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def series(folder: Path, kind: str, name: str) -> list[float]:
    return [m[name] for m in read_metrics(folder / "metrics.jsonl") if m["kind"] == kind]


def test_two_processes_learn_what_one_learns_and_encode_each_image_once(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    two = tmp_path / "two"
    said = torchrun(config, two)
    (keys,) = (tmp_path / "cache").rglob("rows.key")
    assert keys.stat().st_size == 30 * 16
    assert said.count("million weights") == 1  # only the leader talks
    one = train(config, tmp_path / "one", device="cpu").folder
    assert len(series(one, "step", "loss")) == 2
    for kind, name in (("step", "loss"), ("step", "grad_norm"), ("epoch", "cider_d")):
        np.testing.assert_allclose(series(two, kind, name), series(one, kind, name), rtol=1e-3)

    # a run of one process goes on with two
    (one / "checkpoints" / "step-12.safetensors").unlink()
    torchrun(config, one, "--resume")
    np.testing.assert_allclose(series(one, "step", "loss"), series(two, "step", "loss"), rtol=1e-3)


def test_a_killed_process_ends_the_job_in_words_and_one_process_goes_on(tmp_path):
    config = toys.config(tmp_path, epochs=2000, save_every=20)
    folder = tmp_path / "run"
    launcher = subprocess.Popen(
        command(config, folder), env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        while not list(folder.rglob("step-*.safetensors")):
            assert launcher.poll() is None
            time.sleep(0.05)
        ranks = {p.environ().get("RANK"): p for p in psutil.Process(launcher.pid).children()}
        ranks["1"].kill()
        _, said = launcher.communicate(timeout=600)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    lost = [line for line in said.splitlines() if line.startswith("captioner: error")]
    assert len(lost) == 1
    assert "another process of this job was lost" in lost[0]
    assert "--resume" in lost[0]

    # what was saved is whole, and one process goes on from it
    saved = read_newest(folder / "checkpoints")
    assert saved is not None
    step = json.loads(saved.header["progress"])["step"]
    alone = start_alone(config, folder)
    resumed = next(line for line in alone.stderr if "resuming" in line)
    alone.kill()
    alone.communicate()
    assert f"resuming at step {step:,} of" in resumed


def start_alone(config, folder: Path) -> subprocess.Popen[str]:
    words = command(config, folder, "--resume")
    start = words.index("captioner") - 1
    return subprocess.Popen(
        [sys.executable, *words[start:]],
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(parts):
    decoder, batch = toys.decoder(), toys.batch(size=7)
    whole = bptt.backward(decoder, batch)
    expected = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    total = sum(bptt.backward(decoder, batch.subset(index, parts)) for index in range(parts))
    torch.testing.assert_close(total, whole)
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)


def test_accumulated_batches_train_the_same_model(config, tmp_path):
    tree = config.model_dump()
    tree["training"]["accumulate"] = 3
    parts = type(config).model_validate(tree)
    runs = [
        train(settings, tmp_path / name, device="cpu").folder
        for name, settings in (("whole", config), ("parts", parts))
    ]
    losses = [series(folder, "step", "loss") for folder in runs]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_one_process_alone_needs_no_other():
    world = World()
    assert world.leads
    assert world.broadcast("word") == "word"
    assert world.any(True, torch.device("cpu"))
    assert not world.any(False, torch.device("cpu"))
