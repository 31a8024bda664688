"""Several runs of one config, and the summary of their dev scores."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from test_world import ENVIRONMENT, command

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.errors import ConfigError
from captioner.run_dir import read_metrics
from captioner.training import loop
from captioner.training.run import train
from captioner.training.sweep import train_seeds

import toys


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with `toy.yaml`, whose seed is 4."""
    monkeypatch.chdir(tmp_path)
    config = toys.config(tmp_path, epochs=2, seed=4)
    Path("toy.yaml").write_text(config.to_yaml())
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(main, [*words, "--device", "cpu"])


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def best(folder: Path, epoch: int) -> dict:
    lines = read_metrics(folder / "metrics.jsonl")
    [line] = [line for line in lines if line["kind"] == "epoch" and line["epoch"] == epoch]
    return line


def test_a_sweep_is_ordinary_runs_and_their_mean(here):
    done = run("train", "toy.yaml", "--seeds", "3")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "toy-seed4",
        "toy-seed5",
        "toy-seed6",
        "toy-seeds.json",
    ]
    summary = json.loads(Path("runs/toy-seeds.json").read_text())
    assert [row["seed"] for row in summary["runs"]] == [4, 5, 6]
    for row in summary["runs"]:
        folder = Path("runs", row["folder"])
        assert (
            yaml.safe_load((folder / "config.yaml").read_text())["training"]["seed"] == row["seed"]
        )
        line = best(folder, row["best_epoch"])
        assert [row[name] for name in ("cider_d", "dev_loss")] == [
            line["cider_d"],
            line["dev_loss"],
        ]
    scores = [row["cider_d"] for row in summary["runs"]]
    assert len(set(scores)) > 1
    assert summary["mean"]["cider_d"] == pytest.approx(np.mean(scores))
    assert summary["std"]["cider_d"] == pytest.approx(np.std(scores, ddof=1))
    [shown] = done.stdout.splitlines()
    mean, std = summary["mean"]["cider_d"], summary["std"]["cider_d"]
    assert f"cider_d {mean:.3f} +- {std:.3f}" in shown
    assert "3 runs" in shown
    Captioner.load(Path("runs/toy-seed5"), "cpu")
    alone = run("train", "toy.yaml", "--set", "training.seed=5", "--output", "alone")
    assert alone.exit_code == 0
    assert weights(Path("alone")) == weights(Path("runs/toy-seed5"))


def test_a_broken_sweep_is_resumed_with_its_own_settings(here, monkeypatch):
    whole = run("train", "toy.yaml", "--seeds", "3", "--output", "whole")
    step = loop.Trainer._step
    taken = []

    def stopped(self, batch):
        taken.append(self.config.seed)
        if taken.count(5) == 8:  # in the second epoch of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", stopped)
        patch.setattr(loop, "LOG_EVERY", 1)
        part = run("train", "toy.yaml", "--seeds", "3", "--output", "part")
    assert part.exit_code == 1
    assert "captioner train --output part --seeds 3 --resume" in part.stderr
    assert not Path("part-seeds.json").exists() and not Path("part-seed6").exists()
    # without CONFIG, as the message says
    resumed = run("train", "--output", "part", "--seeds", "3", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout == whole.stdout
    for seed in (4, 5, 6):
        assert weights(Path(f"part-seed{seed}")) == weights(Path(f"whole-seed{seed}"))
    # and a finished one is summed up again, or extended
    again = run("train", "--output", "part", "--seeds", "2", "--resume")
    assert again.exit_code == 0 and "2 runs" in again.stdout


def test_no_run_starts_if_a_folder_is_taken(here):
    config = toys.config(here, epochs=1)
    train(config, here / "x-seed1", device="cpu")
    with pytest.raises(ConfigError, match=r"x-seed1: already holds a run"):
        train_seeds(config, here / "x", 2, device="cpu")
    assert not (here / "x-seed0").exists()
    (here / "y-seeds.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"y-seeds\.json: already exists and is not"):
        train_seeds(config, here / "y", 2, device="cpu")
    assert not (here / "y-seed0").exists()
    for folder, seed in ((Path(), 0), (here / "z", 2**63 - 1)):
        tree = config.model_dump()
        tree["training"]["seed"] = seed
        with pytest.raises(ConfigError):
            train_seeds(type(config).model_validate(tree), folder, 2, device="cpu")
    assert run("train", "toy.yaml", "--seeds", "1").exit_code == 2


def test_undefined_scores_have_no_mean(here, monkeypatch):
    monkeypatch.setattr(
        loop.Trainer, "_dev_scores", lambda self: {"bleu_4": 0.5, "cider_d": math.nan}
    )
    done = run("train", "toy.yaml", "--seeds", "2")
    assert done.exit_code == 0, done.output
    summary = json.loads(Path("runs/toy-seeds.json").read_text(), parse_constant=pytest.fail)
    assert summary["mean"]["cider_d"] is None and summary["runs"][0]["cider_d"] is None
    assert "bleu_4 0.500 +- 0.000, cider_d undefined, dev_loss" in done.stdout


@pytest.mark.slow
def test_several_processes_sweep_together(here):
    config = toys.config(here, epochs=1)
    done = subprocess.run(
        command(config, here / "two", "--seeds", "2"),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "2 runs" in done.stdout
    assert (here / "two-seeds.json").exists()
