"""The dev score chooses the epoch, and where it says nothing the dev loss."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from captioner.captioner import Captioner
from captioner.cli.train import best_line
from captioner.run_dir import read_metrics
from captioner.text import tokenize
from captioner.training import loop
from captioner.training.run import train

import toys

NAN = math.nan


@pytest.fixture
def config(tmp_path):
    return toys.config(tmp_path)


def epochs_of(folder: Path) -> list[dict]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "epoch"]


def keep_one_dev_image(table: Path) -> None:
    """CIDEr-D is undefined for one image."""
    lines = table.read_text().splitlines(keepends=True)
    kept = [line for line in lines if ",dev" not in line or line.startswith("dev_red_5.png")]
    table.write_text("".join(kept))


@pytest.mark.parametrize(
    ("scores", "losses", "best"),
    [
        ([0.4, 0.6, 0.5], [3, 2, 1], 2),
        ([NAN, NAN, NAN], [3, 1, 2], 2),
        ([0.4, NAN, 0.3], [3, 1, 2], 1),  # an undefined score never replaces a number
        ([NAN, 0.2, NAN], [1, 3, 2], 2),  # and a number always replaces it
        ([NAN, 0.2, 0.3], [1, 3, 2], 3),
        ([0.0, 0.0, 0.0], [3, 1, 2], 2),  # BLEU-4 of short captions
        ([0.5, 0.5, 0.5], [1, 2, 3], 1),
        ([0.4, 0.6, 0.5], [NAN, NAN, NAN], 2),
        ([NAN, NAN, NAN], [NAN, 2, 1], 3),
    ],
)
def test_the_best_epoch(config, tmp_path, monkeypatch, scores, losses, best):
    states = []

    def scripted(self):
        states.append({k: v.clone() for k, v in self.evaluated.state_dict().items()})
        return {"bleu_4": 0.0, "cider_d": scores[self.progress.epoch - 1]}

    monkeypatch.setattr(loop.Trainer, "_dev_scores", scripted)
    monkeypatch.setattr(loop.Trainer, "_dev_loss", lambda self: losses[self.progress.epoch - 1])
    done = train(config, tmp_path / "run", device="cpu")
    assert done.progress.best_epoch == best
    assert done.progress.best_score == pytest.approx(scores[best - 1], nan_ok=True)
    saved = Captioner.load(done.folder, "cpu").decoder.state_dict()
    assert all(torch.equal(saved[name], states[best - 1][name]) for name in saved)
    said = (tmp_path / "run" / "train.log").read_text()
    assert said.count("cider_d undefined") == sum(map(math.isnan, scores))
    assert said.count("cider_d is undefined") == any(map(math.isnan, scores))
    assert "nan" not in said + best_line(done)
    chosen_by_loss = not scores[best - 1] > 0
    assert ("so the lowest dev loss chose" in best_line(done)) == chosen_by_loss


def test_one_dev_image_has_no_cider_and_the_dev_loss_chooses(config, tmp_path):
    keep_one_dev_image(tmp_path / "captions.csv")
    done = train(config, tmp_path / "run", device="cpu")
    lines = epochs_of(done.folder)
    assert all(math.isnan(line["cider_d"]) for line in lines)
    lowest = min(lines, key=lambda line: line["dev_loss"])
    assert done.progress.best_epoch == lowest["epoch"]
    assert best_line(done) == (
        f"dev cider_d is undefined, so the lowest dev loss chose: "
        f"{lowest['dev_loss']:.3f} after epoch {lowest['epoch']}"
    )
    said = (done.folder / "train.log").read_text()
    assert said.count("dev cider_d is undefined (one image only") == 1
    for text in (done.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON


def test_undefined_scores_neither_end_a_run_nor_change_a_resumed_one(config, tmp_path, monkeypatch):
    keep_one_dev_image(tmp_path / "captions.csv")
    losses = [5, 4, 3, 6, 7, 8]

    def scripted(self):
        return losses[self.progress.epoch - 1]

    monkeypatch.setattr(loop.Trainer, "_dev_loss", scripted)
    tree = config.model_dump()
    tree["training"] |= {"epochs": 6, "patience": 2}
    config = type(config).model_validate(tree)
    whole = train(config, tmp_path / "whole", device="cpu")
    assert (whole.progress.epoch, whole.progress.best_epoch) == (5, 3)
    score_epoch = loop.Trainer._score_epoch

    def broken(self):
        if self.progress.epoch == 4:
            raise KeyboardInterrupt
        score_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "_score_epoch", broken)
        train(config, tmp_path / "part", device="cpu")
    part = train(config, tmp_path / "part", device="cpu", resume=True)
    assert (part.progress.epoch, part.progress.best_epoch) == (5, 3)
    for name in ("best.safetensors", "step-30.safetensors"):
        files = [run.folder / "checkpoints" / name for run in (whole, part)]
        tensors = [loop.read_tensors(file).tensors for file in files]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_dev_loss_is_the_negative_log_likelihood_of_the_references(
    config, tmp_path, label_smoothing
):
    tree = config.model_dump()
    tree["training"] |= {"label_smoothing": label_smoothing, "epochs": 1}
    done = train(type(config).model_validate(tree), tmp_path / "run", device="cpu")
    captioner = Captioner.load(done.folder, "cpu")
    nats, tokens = 0.0, 0
    for name, caption, split in csv.reader((tmp_path / "captions.csv").read_text().splitlines()):
        if split != "dev":
            continue
        nats -= captioner.score(tmp_path / name, caption, per_token=False)
        tokens += len(tokenize(caption)) + 1
    [line] = epochs_of(done.folder)
    if label_smoothing:  # the same loss as in training, so that the two can be compared
        assert line["dev_loss"] > nats / tokens
    else:
        assert line["dev_loss"] == pytest.approx(nats / tokens, rel=2e-3)
