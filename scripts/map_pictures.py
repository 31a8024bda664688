"""Draw the pictures of docs/learn/maps.md from real output.

    python scripts/map_pictures.py [RUN]

RUN is a run of `captioner train` on the bundled scenes; without it, the script trains one. Writes
PNG files to docs/learn/maps:

- `line`: log-probabilities of words on the line from the average training image to the image
- `states`: how much of each word's gradient passes through each hidden state
- `methods`: maps of four words by three methods
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pictures import ROOT, run, scene
from torch import Tensor

from captioner import Captioner
from captioner.decoder.unrolled import unroll
from captioner.explanation.explained import token_ids_of
from captioner.explanation.gradient import END_OF_LINE, gradient_maps, whole_line
from captioner.explanation.occlusion import occlusion_maps
from captioner.explanation.panels import Block, Panel, draw_panels
from captioner.explanation.teacher_forcing import log_probs_of_words
from captioner.images.decode import read_image
from captioner.text import Vocabulary

FOLDER = ROOT / "docs" / "learn" / "maps"
IMAGE = 1  # of the test scenes
SHOWN = 4  # words
DPI = 85


class Walk:
    """One image, its caption, and the line from the average training image to it."""

    def __init__(self, captioner: Captioner):
        self.captioner, self.decoder = captioner, captioner.single_decoder("drawn")
        picture = read_image(ROOT / scene(IMAGE))
        self.pixels = captioner.encoder.preprocess.pixels(picture)[None]
        self.features = captioner.encoder.see(self.pixels).clone()
        [[self.caption]] = captioner.search(self.features, words=True)
        self.ids = token_ids_of(self.caption, captioner.vocabulary)
        self.words = [word.text for word in self.caption.words[:-1]]

    def at(self, points: Tensor) -> Tensor:
        """Return the features of points on the line, (N, F)."""
        average = self.decoder.init_hidden.mean
        return average + points[:, None] * (self.features - average)


def line(walk: Walk, chosen: list[int], axes: Any) -> None:
    """Draw the log-probabilities of the chosen words along the line."""
    points = torch.linspace(0, 1, 401).square()
    with torch.no_grad():
        found = log_probs_of_words([(walk.decoder, walk.at(points))], walk.ids)
    for place in chosen:
        axes.plot(points, found[:, place], label=walk.words[place])
    low = axes.get_ylim()[0]
    axes.plot(
        whole_line().points, [low] * 16, "|", color="0.3", ms=9, label="where gradients are taken"
    )
    axes.set_xscale("function", functions=(lambda x: x**0.5, lambda x: x**2))
    axes.set_xticks(
        [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], ["0", "0.01", "0.05", "0.1", "0.25", "0.5", "1"]
    )
    axes.set(
        title="along the line to the image",
        xlabel="share of the way from the average image",
        ylabel="log-probability, nats",
    )
    axes.legend(frameon=False, fontsize=8)


def states(walk: Walk, axes: Any) -> None:
    """Draw the norm of each word's gradient, averaged along the line, at each hidden state."""
    inputs = torch.nn.functional.pad(walk.ids, (1, -1), value=Vocabulary.bos_id)
    points, weights = whole_line()
    rows = []
    for word in range(len(walk.words)):
        count = len(points)
        seen = unroll(walk.decoder, walk.at(points), inputs.expand(count, -1),
                      torch.full((count,), word + 1))  # fmt: skip
        log_probs = seen.logits.log_softmax(1)[:, walk.ids[word]]
        gradients = torch.autograd.grad(weights.double() @ log_probs, seen.states[: word + 2])
        norms = torch.stack([each.sum(1).norm() for each in gradients])
        rows.append(
            torch.nn.functional.pad(norms, (0, len(walk.ids) - len(norms)), value=torch.nan)
        )
    image = axes.imshow(torch.stack(rows).log10(), cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label="norm, power of ten", shrink=0.8)
    axes.set_yticks(range(len(walk.words)), walk.words)
    axes.set_xticks(range(0, len(walk.ids), 2))
    axes.set(title="back through time", xlabel="hidden state; 0 is the image's", ylabel="word")


def methods(walk: Walk, chosen: list[int]) -> Figure:
    """Draw maps of the chosen words by three methods."""
    parts = walk.captioner.encoder, walk.captioner.decoder, walk.pixels, walk.ids
    every = {
        "at the image": gradient_maps(*parts, END_OF_LINE),
        "along the line": gradient_maps(*parts),
        "occlusion": occlusion_maps(*parts),
    }
    blocks = []
    for name, maps in every.items():
        amounts = maps.amax((1, 2)) if name == "occlusion" else maps.sum((1, 2))
        panels = [
            Panel(walk.words[at], maps[at].numpy(), f"{amounts[at]:+.2g} nats") for at in chosen
        ]
        blocks.append(Block(name, "nats", panels, "signed"))
    picture = walk.pixels[0].permute(1, 2, 0).numpy()
    return draw_panels(picture, walk.caption.text, blocks, 1.0)


def main(run_folder: Path | None) -> None:
    """Train if need be, and write every picture."""
    with tempfile.TemporaryDirectory() as name:
        if not run_folder:
            (Path(name) / "data").symlink_to(ROOT / "data")
            run("captioner train", Path(name))
        captioner = Captioner.load(run_folder or Path(name) / "runs" / "scenes", "cpu")
    walk = Walk(captioner)
    with torch.no_grad():
        before = log_probs_of_words([(walk.decoder, walk.at(torch.zeros(1)))], walk.ids)[0, :-1]
    chosen = sorted(before.topk(SHOWN, largest=False).indices.tolist())  # what the image decides
    FOLDER.mkdir(exist_ok=True)
    for title, draw in (("line", lambda axes: line(walk, chosen, axes)),
                        ("states", lambda axes: states(walk, axes))):  # fmt: skip
        figure = Figure(figsize=(6.4, 4), layout="constrained", dpi=DPI)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.savefig(FOLDER / f"{title}.png", pil_kwargs={"optimize": True})
    methods(walk, chosen).savefig(FOLDER / "methods.png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
