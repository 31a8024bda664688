"""The figure of a run: both losses, the clip threshold, the best epoch."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from captioner.training.curves import draw_curves


def step_line(step: int, **more) -> dict:
    values = {"loss": 9 / step, "grad_norm": 2.0, "clipped": 0.25, "learning_rate": 0.1}
    return {"kind": "step", "epoch": 1 + step // 10, "step": step} | values | more


def epoch_line(epoch: int, **more) -> dict:
    losses = {"train_loss": 3 / max(epoch, 1), "dev_loss": 2 + abs(epoch - 2)}
    line = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "bleu_4": 0.1, "cider_d": 0.2}
    return line | losses | more


STEPS = [step_line(step) for step in range(1, 41)]
EPOCHS = [epoch_line(epoch) for epoch in range(1, 5)]
OLD = [{k: v for k, v in line.items() if k != "dev_loss"} for line in EPOCHS]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return the lines of the figure with their labels, and all labels of its vertical axes."""
    figures = []
    save = Figure.savefig

    def kept(self, *args, **more):
        figures.append(self)
        save(self, *args, **more)

    monkeypatch.setattr(Figure, "savefig", kept)

    def drawn(lines, **settings):
        path = tmp_path / "curves.png"
        draw_curves(lines, path, **{"clip_norm": 5.0, "best_epoch": 3} | settings)
        assert path.read_bytes().startswith(b"\x89PNG")
        axes = figures[-1].axes
        labelled = [
            (line.get_label(), line.get_xdata(), line.get_ydata())
            for one in axes
            for line in one.get_lines()
        ]
        return labelled, [one.get_ylabel() for one in axes]

    return drawn


def test_over_fitting_the_best_epoch_and_the_threshold_are_visible(draw):
    lines, labels = draw([*STEPS, *EPOCHS])
    named = {label: (list(x), list(y)) for label, x, y in lines}
    assert named["dev, lowest after epoch 2"] == ([10, 20, 30, 40], [3, 2, 3, 4])
    # a mean over an epoch belongs to its middle
    assert named["train"] == ([5, 15, 25, 35], [3, 1.5, 1, 0.75])
    assert named["clip_norm 5, 25% of the steps clipped"][1] == [5, 5]
    assert named["best epoch: 3"][0] == [30, 30]
    assert sum(list(x) == [30, 30] for _, x, _ in lines) == 3  # in every chart
    assert labels == ["nats per token", "", "BLEU-4", "CIDEr-D"]


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ([], {}),
        (STEPS, {"best_epoch": 0}),
        (EPOCHS, {}),
        ([*STEPS, *OLD], {}),
        ([STEPS[0], EPOCHS[0]], {"best_epoch": 1}),
        ([step_line(1, grad_norm=math.inf), step_line(2, grad_norm=math.nan), *EPOCHS], {}),
        ([*STEPS, *(epoch_line(n, dev_loss=math.nan) for n in (1, 2))], {"best_epoch": 1}),
        ([*STEPS, *EPOCHS], {"clip_norm": 1e-12}),
        ([*STEPS, *EPOCHS], {"clip_norm": 1e12}),
    ],
)
def test_every_run_has_a_figure(draw, lines, settings):
    draw(lines, **settings)


def test_an_undefined_score_is_named(draw):
    _, labels = draw([*STEPS, *(epoch_line(n, cider_d=math.nan) for n in (1, 2, 3))])
    assert labels[-1] == "CIDEr-D: undefined"


def test_self_critical_training_shows_its_reward_and_the_dev_loss(draw):
    rewarded = [step_line(step, reward=0.5) for step in range(1, 31)]
    _, labels = draw([epoch_line(0, step=0), *rewarded, *EPOCHS])
    assert labels[0] == "reward of sampled captions"
    assert "dev loss, nats per token" in labels
