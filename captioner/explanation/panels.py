"""Draws the maps of words over an image: the image, then one panel for each word."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.explanation.fonts import families
from captioner.system.files import whole_file
from captioner.system.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

COLUMNS = 6  # panels in a row, at most
# Sizes in inches.
SIDE = 1.6  # of a panel
WIDTH, HEIGHT, BELOW = SIDE + 0.12, SIDE + 0.52, 0.24  # of a panel with its words
SCALE, MARGIN = 0.68, 0.12  # of the colour scale, and around the panels
LINE = 0.25  # of the caption
DPI = 100
WEIGHTS, OPACITY = "inferno", 0.55  # colours of weights over the picture
# Of numbers with a sign, as red, green, blue and opacity: against the word, nothing, for it.
SIGNED = (
    *((0.12, 0.43, 0.86, 0.85), (0.12, 0.43, 0.86, 0.0)),
    *((0.96, 0.51, 0.08, 0.0), (0.96, 0.51, 0.08, 0.85)),
)
LONGEST = 18  # characters of a word over its panel


class Panel(NamedTuple):
    """The map of one word."""

    word: str
    map: NDArray[np.floating]  # (h, w)
    below: str


@dataclass(frozen=True, slots=True)
class Block:
    """The maps of all words of a caption, in one colour scale."""

    title: str  # over the image
    unit: str  # over the colour scale
    panels: Sequence[Panel]
    kind: Literal["weights", "signed"]


def save_figure(figure: Figure, path: Path, kind: Literal["map", "explanation"]) -> None:
    """Write a figure as PNG, in place of a file that captioner wrote.

    Raises:
        ConfigError: if another file is at the path.
    """
    # `system.ownership` recognises the file by its title before it replaces the file.
    title = {"map": "captioner attention", "explanation": "captioner explanation"}[kind]
    metadata = {"Title": title, "Software": f"captioner {__version__}"}
    with whole_file(path, kind) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as boxes
        figure.savefig(aside, format="png", metadata=metadata, pil_kwargs={"optimize": True})


def draw_panels(
    picture: NDArray[np.uint8], caption: str, blocks: Sequence[Block], visible: float
) -> Figure:
    """Draw a picture, uint8 (H, W, 3), and one panel for each word of each block.

    Args:
        picture: what the CNN sees.
        caption: written above.
        blocks: below each other, all of the same words.
        visible: share of the image's area in the picture, 0 to 1.
    """
    from matplotlib.figure import Figure  # slow to import

    count = len(blocks[0].panels) + 1
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)
    lines = wrapped(caption, 13 * columns)
    width = columns * WIDTH + SCALE + MARGIN
    height = len(blocks) * rows * HEIGHT + LINE * len(lines) + 2 * MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    side = "right" if _is_right_to_left(caption) else "left"
    left = 1 - MARGIN / width if side == "right" else MARGIN / width
    figure.text(
        *(left, 1 - MARGIN / height, "\n".join(lines)),
        **_style(caption),
        ha=side,
        fontsize=12,
        va="top",
    )
    for number, block in enumerate(reversed(blocks)):
        _draw_block(figure, picture, block, visible, (rows, columns), number * rows * HEIGHT)
    return figure


def _style(words: str) -> dict[str, Any]:
    """Return how to draw words of a caption, in which $ is a $."""
    return {"parse_math": False, "fontfamily": families(words)}


def _is_right_to_left(text: str) -> bool:
    """Return whether the first letter that has a direction goes to the left."""
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    return next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L"


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` letters; Chinese letters count twice.

    A line ends at a space, or anywhere in a word that is longer than a line, but not before an
    accent.
    """
    lines, used = [""], 0
    for word in text.split():
        letters = _clusters(word)
        sizes = [1 + (unicodedata.east_asian_width(each[0]) in "WF") for each in letters]
        if used and used + 1 + sum(sizes) <= width:
            lines[-1] += " "
            used += 1
        elif used:
            lines.append("")
            used = 0
        for letter, size in zip(letters, sizes, strict=True):
            if used and used + size > width:
                lines.append("")
                used = 0
            lines[-1] += letter
            used += size
    return lines


def _clusters(word: str) -> list[str]:
    """Split a word into letters, each with the accents that follow it."""
    clusters: list[str] = []
    for letter in word:
        if clusters and unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf"):
            clusters[-1] += letter
        else:
            clusters.append(letter)
    return clusters


def _draw_block(
    figure: Figure,
    picture: NDArray[np.uint8],
    block: Block,
    visible: float,
    shape: tuple[int, int],
    floor: float,
) -> None:
    """Draw the panels of a block in rows and columns, from `floor` inches upward."""
    from matplotlib.cm import ScalarMappable

    rows, columns = shape
    width, height = figure.get_size_inches()
    bottom = floor + MARGIN + BELOW

    def panel(number: int, title: str, below: str, **style: Any) -> Axes:
        """Add a panel, row by row."""
        row, column = divmod(number, columns)
        left, low = MARGIN + column * WIDTH, bottom + (rows - 1 - row) * HEIGHT
        axes = figure.add_axes((left / width, low / height, SIDE / width, SIDE / height))
        axes.set_axis_off()
        axes.imshow(picture, interpolation="nearest" if number == 0 else None)
        axes.set_title(title, **_style(title), pad=4, **style)
        axes.text(0.5, -0.04, below, transform=axes.transAxes, ha="center", va="top", fontsize=8)
        return axes

    hidden = f"the middle {visible:.0%} of it" if visible < 0.995 else ""
    panel(0, block.title, hidden, fontsize=9, color="0.4")
    edges = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    scale, colours = _scale(block)
    alpha = OPACITY if block.kind == "weights" else None
    for number, (word, places, below) in enumerate(block.panels, 1):
        title = word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"
        axes = panel(number, title, below, fontsize=10)
        axes.imshow(places, colours, scale, alpha=alpha, extent=edges, interpolation="bilinear")
    bar = figure.add_axes(
        ((width - SCALE) / width, bottom / height, 0.12 / width, SIDE / height),
    )
    figure.colorbar(ScalarMappable(scale, colours), cax=bar, alpha=alpha)
    bar.set_title(block.unit, fontsize=8, pad=4, loc="left")
    bar.tick_params(labelsize=8, length=2)


def _scale(block: Block) -> tuple[Normalize, Colormap]:
    """Return the numbers and the colours of a block's scale."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    top = max((float(np.abs(panel.map).max()) for panel in block.panels), default=1.0)
    if block.kind == "weights":
        return Normalize(0, top), colormaps[WEIGHTS]
    colours = LinearSegmentedColormap.from_list(
        "signed", [*zip((0, 0.5, 0.5, 1), SIGNED, strict=True)]
    )
    return Normalize(-top or -1, top or 1), colours
