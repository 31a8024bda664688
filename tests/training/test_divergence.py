"""Training that leaves what numbers can hold stops there, and keeps what was sound."""

from __future__ import annotations

import math
import os
import subprocess
from itertools import count

import pytest
import torch
from test_world import ENVIRONMENT, command

from captioner.captioner import Captioner
from captioner.config import Config
from captioner.errors import DivergedError
from captioner.run_dir import read_metrics
from captioner.training import bptt, loop
from captioner.training.checkpoint import read_newest, read_tensors
from captioner.training.run import train
from captioner.training.update import Updater

import toys


@pytest.fixture
def config(tmp_path):
    return toys.config(tmp_path, ema_decay=0.9, save_every=2)


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)


def change(config: Config, **training) -> Config:
    return Config.model_validate(
        config.model_dump() | {"training": config.training.model_dump() | training}
    )


def all_finite(folder) -> bool:
    files = list(folder.rglob("*.safetensors"))
    return all(
        tensor.isfinite().all() for file in files for tensor in read_tensors(file).tensors.values()
    )


@pytest.mark.parametrize("bad", [1, 2, 7, 8, 18])
@pytest.mark.parametrize("what", ["loss", "norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_stops_at_the_step_and_keeps_what_was_saved(
    config, tmp_path, monkeypatch, bad, what, value
):
    """Whatever spoils a step, whichever step of an interval it is."""
    steps = count(1)
    backward, update = bptt.backward, Updater.update
    taken = []

    def spoil_loss(*args, **kwargs):
        loss = backward(*args, **kwargs)
        return loss * value if next(steps) == bad else loss

    def spoil_norm(self, step):
        if step + 1 == bad:
            self.decoder.output.bias.grad.fill_(value)
        taken.append(step + 1)
        return update(self, step)

    if what == "loss":
        monkeypatch.setattr(bptt, "backward", spoil_loss)
    else:
        monkeypatch.setattr(Updater, "update", spoil_norm)
    with pytest.raises(DivergedError) as caught:
        train(config, tmp_path / "run", device="cpu")
    said = str(caught.value)
    assert f"training diverged at step {bad}:" in said
    kept = (bad - 1) // 2 * 2
    assert (f"step {kept} is saved" if kept else "no step was saved") in said
    for word in ("learning rate", "clip norm 5", "training.learning_rate", "warmup", "fp32"):
        assert word in said
    assert "\n" not in said
    newest = read_newest(tmp_path / "run" / "checkpoints")
    assert (newest.path.stem if newest else "step-0") == f"step-{kept}"
    assert all_finite(tmp_path / "run")
    logged = [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert max(logged, default=0) == kept
    assert not (tmp_path / "run" / "model").exists()


def test_a_learning_rate_that_is_far_too_high(config, tmp_path):
    with pytest.raises(DivergedError, match="training diverged at step"):
        train(change(config, learning_rate=1e6, epochs=40), tmp_path / "run", device="cpu")
    assert all_finite(tmp_path / "run")


@pytest.mark.parametrize("which", ["decoder", "average"])
def test_weights_that_are_no_numbers_are_neither_scored_nor_saved(
    config, tmp_path, monkeypatch, which
):
    """Also where loss and gradient norm of the last step were sound."""
    update = Updater.update

    def spoil(self, step):
        norm = update(self, step)
        if step + 1 == 6:  # the last of the second epoch
            with torch.no_grad():
                self.modules[which].init_hidden.projection.bias[0] = torch.inf
        return norm

    monkeypatch.setattr(Updater, "update", spoil)
    with pytest.raises(DivergedError, match="at step 6: a weight is not finite"):
        train(change(config, save_every=100, epochs=1), tmp_path / "run", device="cpu")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_fp16_gradients_may_overflow_but_losses_may_not(config, tmp_path):
    trainer = loop.Trainer.__new__(loop.Trainer)
    trainer.config, trainer.total_steps, trainer.saved_step = config.training, 100, 0
    trainer.progress = loop.Progress(step=4)
    trainer.updater = Updater(toys.decoder(), config.training, 100, fp16=True)
    sound = torch.ones(4)
    overflowed = torch.tensor([1.0, math.inf, math.nan, 1.0])
    trainer._check_steps(sound, overflowed)
    with pytest.raises(DivergedError, match="at step 2:"):
        trainer._check_steps(overflowed, sound)
    trainer.updater = Updater(toys.decoder(), config.training, 100, fp16=False)
    with pytest.raises(DivergedError, match="at step 2:"):
        trainer._check_steps(sound, overflowed)


def test_one_wait_for_the_device_an_interval_and_none_between(config, tmp_path, monkeypatch):
    """Values are read when an interval ends, never in a step."""
    reads = []
    for name in ("isfinite", "tolist"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *, _f=original: reads.append(trainer_step()) or _f(self),
        )
    steps = []
    original_update = Updater.update
    monkeypatch.setattr(
        Updater, "update", lambda self, step: steps.append(step) or original_update(self, step)
    )

    def trainer_step() -> int:
        return len(steps)

    train(change(config, epochs=1, save_every=100), tmp_path / "run", device="cpu")
    assert {step for step in reads if step} <= {2, 4, 6}


def test_dev_pictures_without_numbers_count_as_without_a_caption(config, tmp_path, monkeypatch):
    each = Captioner.search_each

    def partly(self, features, **decoding):
        features = features.clone()
        features[0, 0] = torch.nan
        return each(self, features, **decoding)

    monkeypatch.setattr(Captioner, "search_each", partly)
    train(change(config, epochs=1), tmp_path / "run", device="cpu")
    said = (tmp_path / "run" / "train.log").read_text()
    assert "dev: 1 image(s) scored as empty captions" in said


@pytest.mark.slow
def test_all_processes_stop_together(config, tmp_path):
    words = command(change(config, learning_rate=1e6, epochs=40), tmp_path / "run")
    done = subprocess.run(
        words,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert "training diverged at step" in done.stderr
    assert "process of this job was lost" not in done.stderr
    assert all_finite(tmp_path / "run")
