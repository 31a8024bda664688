"""The study of gradients as a table for the terminal, as one figure and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captioner.gradients.measure import EXPLODED, VANISHED, Flow
from captioner.gradients.study import CellStudy, Stage, Study
from captioner.system.files import whole_file, write_text
from captioner.system.version import __version__

COLOURS = {"tanh": "tab:blue", "relu": "tab:red", "gru": "tab:green", "lstm": "tab:purple"}
FLOOR = 1e-12  # of the drawing: what is smaller has long vanished


def describe_study(study: Study) -> str:
    """Lay the study out as aligned text: the way back, training, truncation."""
    return "\n\n".join((_describe_flow(study), _describe_training(study), _describe_cuts(study)))


def _describe_flow(study: Study) -> str:
    rows = [
        "cell when last_state per_step vanishes explodes to_image image/last keep_gate radius sigma"
    ]
    for cell in study.cells:
        for when, stage in _stages(cell):
            flow = stage.flow
            numbers = (
                f"{flow.last:.2e}",
                f"{flow.factor:.3f}",
                _or_dash(flow.vanishes, "d"),
                _or_dash(flow.explodes, "d"),
                str(flow.image_distance),
                f"{flow.image:.1e}",
                _or_dash(stage.kept, ".2f"),
                _or_dash(stage.radius, ".2f"),
                _or_dash(stage.sigma, ".2f"),
            )
            rows.append(" ".join((cell.name.replace(" ", "_"), when, *numbers)))
    lengths = f"{study.shortest} to {study.longest} tokens"
    return (
        f"Gradient of the last token's loss by every earlier state ({study.captions} captions of "
        f"{lengths}):\n{_align(rows)}\nvanishes, explodes: first distance at which less than "
        f"{VANISHED:g} or more than {EXPLODED:g} times the gradient at the last state arrives"
    )


def _describe_training(study: Study) -> str:
    rows = ["cell clipped mean_factor median_norm largest_norm last_loss"]
    for cell in study.cells:
        if cell.log is None:
            continue
        norms = sorted(cell.log.norms)
        losses = cell.log.losses[-20:] if study.steps else cell.log.losses[-1:]
        numbers = (
            f"{cell.log.clipped:.1%}",
            _or_dash(cell.log.factor, ".2f"),
            f"{norms[len(norms) // 2]:.2f}",
            f"{norms[-1]:.2f}",
            f"{sum(losses) / len(losses):.3f}",
        )
        rows.append(" ".join((cell.name.replace(" ", "_"), *numbers)))
    over = f"{study.steps} steps" if study.steps else "by the run's log"
    return f"Training, clipped to a norm of {study.clip_norm:g} ({over}):\n{_align(rows)}"


def _describe_cuts(study: Study) -> str:
    windows = [cut.window for cut in study.cells[0].after.cuts]
    rows = [" ".join(("cell", "weights", "when", *(f"k={window}" for window in windows)))]
    for cell in study.cells:
        for group in ("recurrent", "image"):
            for when, stage in _stages(cell):
                cosines = [f"{cut.cosine[group]:.3f}" for cut in stage.cuts]
                rows.append(" ".join((cell.name.replace(" ", "_"), group, when, *cosines)))
    return (
        "Truncation to k tokens: cosine between the gradient that is left and the full one, of "
        f"the\nrecurrent weights and of the image's projection:\n{_align(rows)}"
    )


def _stages(cell: CellStudy) -> tuple[tuple[str, Stage], tuple[str, Stage]]:
    return ("before", cell.before), ("after", cell.after)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _align(rows: list[str]) -> str:
    """Turn words into columns; an underscore stands for a space."""
    table = [row.split() for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return "\n".join(lines).replace("_", " ")


def draw_study(study: Study, path: Path) -> None:
    """Draw the way back before and after training, the norms that were clipped, the cuts.

    Args:
        study: to draw.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only here

    figure = Figure(figsize=(10, 7.2), layout="constrained", dpi=85)
    (before, after), (norms, cuts) = figure.subplots(2, 2)
    after.sharey(before)
    trained = f"{study.steps:,} steps of training" if study.steps else "training"
    before.set_title("gradient of the last token's loss, before training")
    after.set_title(f"the same after {trained}")
    for axes, stage in ((before, "before"), (after, "after")):
        for cell in study.cells:
            _draw_flow(axes, cell.name, getattr(cell, stage).flow)
        axes.axhline(1, color="black", lw=0.8)
        axes.set(yscale="log", xlabel="steps before the last state")
    before.set_ylabel("norm over that at the last state")
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
        # By the name of its writer it is known, when it is to be replaced.
        figure.savefig(
            aside,
            format="png",
            metadata={"Software": f"captioner {__version__}"},
            pil_kwargs={"optimize": True},
        )


def _colour(name: str) -> str:
    return COLOURS[name.rsplit(maxsplit=1)[-1]]


def _draw_flow(axes: Any, name: str, flow: Flow) -> None:
    colour = _colour(name)
    steps = range(len(flow.median))
    axes.fill_between(steps, flow.low, flow.high, color=colour, alpha=0.12, lw=0)
    axes.plot(steps, flow.median, color=colour, label=name)
    for (part, norms), style in zip(flow.parts.items(), ("--", ":"), strict=False):
        # The last c has yet to reach an output: it starts at zero, which no log scale shows.
        shown = [(step, norm) for step, norm in zip(steps, norms, strict=True) if norm > 0]
        axes.plot(*zip(*shown, strict=True), style, color=colour, lw=1, label=f"{name}: {part}")
    axes.plot(flow.image_distance, flow.image, "*", color=colour, ms=10)


def _draw_norms(axes: Any, study: Study) -> None:
    import numpy as np

    logs = [(cell.name, cell.log) for cell in study.cells if cell.log]
    every = np.array([norm for _, log in logs for norm in log.norms])
    every = every[np.isfinite(every) & (every > 0)]
    if every.size:
        low, high = every.min(), max(every.max(), study.clip_norm)
        bins = np.geomspace(low / 1.05, high * 1.05, 50)
        for name, log in logs:
            label = f"{name}: {log.clipped:.1%} clipped"
            axes.hist(log.norms, bins, histtype="step", color=_colour(name), label=label)
    axes.axvline(study.clip_norm, color="black", lw=1, ls="--", label="clipped to this norm")
    axes.set(
        xscale="log",
        yscale="log",  # one step that explodes is to be seen among the many that do not
        title="gradient norms in training, before clipping",
        xlabel="norm of the gradient of all weights",
        ylabel="steps",
    )
    axes.set_ylim(bottom=0.7)
    axes.legend(edgecolor="none", fontsize=8)


def _draw_cuts(axes: Any, study: Study) -> None:
    for cell in study.cells:
        windows = [cut.window for cut in cell.after.cuts]
        for group, style in (("recurrent", "o-"), ("image", "*:")):
            cosines = [cut.cosine[group] for cut in cell.after.cuts]
            label = cell.name if group == "recurrent" else None
            axes.plot(windows, cosines, style, color=_colour(cell.name), ms=5, label=label)
    axes.plot([], [], "o-", color="grey", ms=5, label="recurrent weights")
    axes.plot([], [], "*:", color="grey", ms=5, label="the image's projection")
    axes.set(
        xscale="log",
        title="what a truncation keeps, after training",
        xlabel="tokens per window",
        ylabel="cosine to the full gradient",
    )
    # The last window is the caption's length, which may stand close to a power of two.
    apart = [window for window in windows[:-1] if window * 1.3 < windows[-1]]
    axes.set_xticks([*apart, windows[-1]], [*map(str, apart), str(windows[-1])])
    axes.set_ylim(top=1.02)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def write_json(study: Study, path: Path) -> None:
    """Write all figures; what is no number is null."""
    write_text(path, json.dumps(_plain(asdict(study)), allow_nan=False) + "\n", "study")


def _plain(value: Any) -> Any:
    """Round floats to six digits, and leave out what JSON cannot say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
