"""An explanation as one PNG file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from captioner.explaining.word_table import from_image, shown
from captioner.explanation.explained import Explanation
from captioner.explanation.panels import Block, Panel, draw_panels, save_figure


def blocks_of(explanation: Explanation) -> list[Block]:
    """Return the maps of an explanation, and those of attention below if the model has it."""
    words, panels, looks = explanation.caption.words, [], []
    for place, word in enumerate(words):
        text, chance = shown(word.text), f"{math.exp(word.log_prob):.0%}"
        nats = f"{chance}, {from_image(explanation, place):+.2f} nats"
        panels.append(Panel(text, explanation.maps[place].numpy(), nats))
        if word.attention:
            below = f"not the image: {word.attention.sentinel:.2f}"
            looks.append(Panel(text, np.array(word.attention.places), below))
    found = [Block(explanation.method, "nats", panels, "signed")]
    return found + ([Block("attention", "weight", looks, "weights")] if looks else [])


def draw_explanation(explanation: Explanation, path: Path) -> None:
    """Write a PNG file; a ConfigError if a file that captioner did not write is at the path."""
    picture = explanation.pixels.permute(1, 2, 0).numpy()
    blocks = blocks_of(explanation)
    figure = draw_panels(picture, explanation.caption.text, blocks, explanation.visible)
    save_figure(figure, path, "explanation")
