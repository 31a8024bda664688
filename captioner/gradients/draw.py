"""Writes a gradient study as text tables, a figure and JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from captioner.gradients.measure import EXPLODED, VANISHED, Flow
from captioner.gradients.study import Stage, Study, TrainingLog
from captioner.system.files import whole_file, write_text
from captioner.system.version import __version__

COLOURS = {"tanh": "tab:blue", "relu": "tab:red", "gru": "tab:green", "lstm": "tab:purple"}
OF_PLUGINS = "tab:brown"  # cells that plug-ins add
FLOOR = 1e-12  # lower limit of the figure's axis
GROUPS = {"recurrent": "o-", "image": "*:"}  # of weights, with the style of their line
TRAINING = ["cell", "clipped", "mean factor", "median norm", "largest norm", "last loss"]


# Columns of the table of gradient flow, after the cell and the stage.
FLOW: dict[str, Callable[[Stage], str]] = {
    "last state": lambda stage: f"{stage.flow.last:.2e}",
    "per step": lambda stage: f"{stage.flow.factor:.3f}",
    "vanishes": lambda stage: _or_dash(stage.flow.vanishes, "d"),
    "explodes": lambda stage: _or_dash(stage.flow.explodes, "d"),
    "to image": lambda stage: str(stage.flow.image_distance),
    "image/last": lambda stage: f"{stage.flow.image:.1e}",
    "keep gate": lambda stage: _or_dash(stage.kept, ".2f"),
    "radius": lambda stage: _or_dash(stage.radius, ".2f"),
    "sigma": lambda stage: _or_dash(stage.sigma, ".2f"),
}


def describe_study(study: Study) -> str:
    """Return the study as text tables: gradient flow, training, truncation."""
    flow, training, cuts = [["cell", "when", *FLOW]], [TRAINING], []
    for cell in study.cells:
        stages = (("before", cell.before), ("after", cell.after))
        flow += [[cell.name, when, *(f(stage) for f in FLOW.values())] for when, stage in stages]
        if cell.log:
            training.append([cell.name, *_training(cell.log, 20 if study.steps else 1)])
        for group in GROUPS:
            for when, stage in stages:
                cosines = [f"{cut.cosine[group]:.3f}" for cut in stage.cuts]
                cuts.append([cell.name, group, when, *cosines])
    windows = [f"k={cut.window}" for cut in study.cells[0].after.cuts]
    source = f"{study.steps} steps" if study.steps else "from the run's log"
    return (
        f"Gradient of the last token's loss by every earlier state ({study.captions} captions of "
        f"{study.shortest} to {study.longest} tokens):\n{_align(flow)}\n"
        f"vanishes, explodes: first distance with less than {VANISHED:g} or more than "
        f"{EXPLODED:g} times the gradient at the last state\n\n"
        f"Training, clipped to a norm of {study.clip_norm:g} ({source}):\n{_align(training)}\n\n"
        f"Truncation to k tokens: cosine between the truncated and the full gradient, of the\n"
        f"recurrent weights and of the image projection:\n"
        f"{_align([['cell', 'weights', 'when', *windows], *cuts])}"
    )


def _training(log: TrainingLog, last: int) -> tuple[str, ...]:
    norms, losses = sorted(log.norms), log.losses[-last:]
    return (
        f"{log.clipped:.1%}",
        _or_dash(log.factor, ".2f"),
        f"{norms[len(norms) // 2]:.2f}",
        f"{norms[-1]:.2f}",
        f"{sum(losses) / len(losses):.3f}",
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _align(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def draw_study(study: Study, path: Path) -> None:
    """Draw gradient flow, gradient norms and truncation, as a PNG file."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 7.7), layout="constrained", dpi=85)
    (before, after), (norms, cuts) = figure.subplots(2, 2)
    after.sharey(before)
    trained = f"{study.steps:,} steps of training" if study.steps else "training"
    before.set_title("gradient of the last token's loss, before training")
    after.set_title(f"after {trained}")
    for cell in study.cells:
        _draw_flow(before, cell.name, cell.before.flow)
        _draw_flow(after, cell.name, cell.after.flow)
    for axes in (before, after):
        axes.axhline(1, color="black", lw=0.8)
        axes.set(yscale="log", xlabel="steps before the last state")
    before.set_ylabel("norm relative to the last state")
    before.set_ylim(bottom=max(FLOOR, before.get_ylim()[0]))
    before.plot([], [], "*", color="grey", ms=10, label="the image's state")
    handles, labels = before.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    _draw_norms(norms, study)
    _draw_cuts(cuts, study)
    for axes in (before, after, norms, cuts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    with whole_file(path, "figure") as aside:
        # `system.ownership` recognises the file by this name before it replaces the file.
        software = {"Software": f"captioner {__version__}"}
        figure.savefig(aside, format="png", metadata=software, pil_kwargs={"optimize": True})


def _colour(name: str) -> str:
    return COLOURS.get(name.rsplit(maxsplit=1)[-1], OF_PLUGINS)


def _draw_flow(axes: Any, name: str, flow: Flow) -> None:
    colour = _colour(name)
    steps = range(len(flow.median))
    axes.fill_between(steps, flow.low, flow.high, color=colour, alpha=0.12, lw=0)
    axes.plot(steps, flow.median, color=colour, label=name)
    for (part, norms), style in zip(flow.parts.items(), ("--", ":"), strict=False):
        # The gradient at the last c is zero, which a log scale cannot show.
        points = [(step, norm) for step, norm in zip(steps, norms, strict=True) if norm > 0]
        axes.plot(*zip(*points, strict=True), style, color=colour, lw=1, label=f"{name}: {part}")
    axes.plot(flow.image_distance, flow.image, "*", color=colour, ms=10)


def _draw_norms(axes: Any, study: Study) -> None:
    from matplotlib.ticker import LogLocator  # slow to import

    logs = [(cell.name, cell.log) for cell in study.cells if cell.log]
    norms = np.array([norm for _, log in logs for norm in log.norms])
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if norms.size:
        low, high = norms.min(), max(norms.max(), study.clip_norm)
        bins = np.geomspace(low / 1.05, high * 1.05, 50)
        for name, log in logs:
            label = f"{name}: {log.clipped:.1%} clipped"
            axes.hist(log.norms, bins, histtype="step", color=_colour(name), label=label)
    axes.axvline(study.clip_norm, color="black", lw=1, ls="--", label="maximum norm")
    axes.set(
        xscale="log",
        yscale="log",  # shows a single exploding step
        title="gradient norms in training, before clipping",
        xlabel="norm of the gradient of all weights",
        ylabel="steps",
    )
    first, last = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if last < 100 * first else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")  # more labels would overlap
    axes.set_ylim(bottom=0.7)
    # Below the axes: the histograms fill the whole width.
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
    axes.legend(**place, frameon=False, fontsize=8)


def _draw_cuts(axes: Any, study: Study) -> None:
    for cell in study.cells:
        windows = [cut.window for cut in cell.after.cuts]
        for group, style in GROUPS.items():
            cosines = [cut.cosine[group] for cut in cell.after.cuts]
            label = cell.name if group == "recurrent" else None
            axes.plot(windows, cosines, style, color=_colour(cell.name), ms=5, label=label)
    axes.plot([], [], "o-", color="grey", ms=5, label="recurrent weights")
    axes.plot([], [], "*:", color="grey", ms=5, label="image projection")
    axes.set(
        xscale="log",
        title="truncated gradient, after training",
        xlabel="tokens per window",
        ylabel="cosine with the full gradient",
    )
    # The last window, the caption's length, may be close to a power of two.
    ticks = [window for window in windows[:-1] if window * 1.3 < windows[-1]] + windows[-1:]
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_ylim(top=1.02)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def write_json(study: Study, path: Path) -> None:
    """Write the study as JSON; NaN and infinity become null."""
    write_text(path, to_json(asdict(study), inf_nan_mode="null").decode() + "\n", "study")
