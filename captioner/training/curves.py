"""Draws `curves.png` from the lines of `metrics.jsonl`."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

Lines: TypeAlias = list[dict[str, Any]]


def draw_curves(lines: Lines, path: Path, *, clip_norm: float, best_epoch: int) -> None:
    """Draw losses, gradient norm and dev scores over the steps of a run, as a PNG file."""
    from matplotlib.figure import Figure  # slow to import

    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(13, 4.2), layout="constrained", dpi=120)
    loss, norm, score = figure.subplots(1, 3)
    if steps and all("reward" in line for line in steps):  # the loss of scst is no measure
        loss.set_title("reward and loss")
        _plot(_side(loss, "reward of sampled captions", "tab:blue"), steps, "reward", lw=0.8)
        dev = _side(loss.twinx(), "dev loss, nats per token", "tab:red")
        _plot(dev, epochs, "dev_loss", "o-", ms=3)
    else:
        _draw_losses(loss, steps, epochs)
    _draw_norms(norm, steps, clip_norm)
    # BLEU is in 0..1 and CIDEr-D in 0..10, so each has its own axis.
    score.set_title("dev scores")
    right = score.twinx()
    for axes, name, label, colour in (
        (score, "bleu_4", "BLEU-4", "tab:green"),
        (right, "cider_d", "CIDEr-D", "tab:purple"),
    ):
        defined = any(math.isfinite(line[name]) for line in epochs)
        side = _side(axes, label if defined else f"{label}: undefined", colour)
        _plot(side, epochs, name, "o-", ms=3)
        if not defined:
            side.set_yticks([])
    best = next((line["step"] for line in epochs if line["epoch"] == best_epoch), None)
    for axes in (loss, norm, score):
        axes.set(xlabel="step", xlim=(0, None))
        axes.spines["top"].set_visible(False)
        axes.grid(alpha=0.25)
        if best is not None:
            named = {"label": f"best epoch: {best_epoch}"} if axes is score else {}
            axes.axvline(best, color="black", ls=":", lw=1.2, **named)
        if axes.get_legend_handles_labels()[0]:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
            axes.legend(**below, ncols=2, fontsize="small", frameon=False, handlelength=1.5)
    figure.savefig(path, format="png")


def _plot(axes: Any, lines: Lines, name: str, *style: str, **how: Any) -> None:
    """Plot a value over the steps, in the colour of the axis; lines of older runs may lack it."""
    values = [line.get(name, math.nan) for line in lines]
    colour = {"color": axes.yaxis.label.get_color()}
    axes.plot([line["step"] for line in lines], values, *style, **(colour | how))


def _side(axes: Any, label: str, colour: str) -> Any:
    """Label one of two vertical axes in the colour of its line."""
    axes.set_ylabel(label, color=colour)
    axes.tick_params(axis="y", labelcolor=colour)
    axes.spines["top"].set_visible(False)
    return axes


def _draw_losses(axes: Any, steps: Lines, epochs: Lines) -> None:
    """Draw the losses of train and dev; their distance shows over-fitting."""
    _plot(axes, steps, "loss", lw=0.8, alpha=0.4, color="tab:blue")
    # A mean over an epoch belongs to its middle.
    middles = [
        line | {"step": (before["step"] + line["step"]) / 2}
        for before, line in pairwise([{"step": 0}, *epochs])
    ]
    _plot(axes, middles, "train_loss", "o-", ms=3, color="tab:blue", label="train")
    dev = [line for line in epochs if math.isfinite(line.get("dev_loss", math.nan))]
    if dev:
        lowest = min(dev, key=lambda line: line["dev_loss"])
        label = f"dev, lowest after epoch {lowest['epoch']}"
        _plot(axes, dev, "dev_loss", "o-", ms=3, color="tab:red", label=label)
    # The losses of the first epoch would press all others to the bottom.
    means = [line["train_loss"] for line in epochs if "train_loss" in line]
    means = [*(means[1:] or means), *(line["dev_loss"] for line in dev)]
    highest = 1.05 * max(means) if means else None
    axes.set(title="loss", ylabel="nats per token", ylim=(None, highest))


def _draw_norms(axes: Any, steps: Lines, clip_norm: float) -> None:
    """Draw the gradient norms and the threshold at which they are clipped."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    _plot(axes, steps, "grad_norm", lw=0.8, color="dimgrey")
    clipped = sum(line["clipped"] for line in steps) / max(1, len(steps))
    label = f"clip_norm {clip_norm:g}, {clipped:.0%} of the steps clipped"
    axes.axhline(clip_norm, color="tab:orange", lw=1.2, label=label)
    axes.set(title="gradient norm before clipping", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter("")
