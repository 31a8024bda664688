"""Draws where a model looks before each word: the image, then a map of weights for each word."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captioner.captioning.records import Record
from captioner.errors import ConfigError, checked_names, must_be
from captioner.system.files import whole_file
from captioner.system.ownership import owns
from captioner.system.version import __version__
from captioner.text import Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 6  # panels in a row, at most
# Sizes in inches.
SIDE = 1.6  # of a panel
WIDTH, HEIGHT, BELOW = SIDE + 0.12, SIDE + 0.52, 0.24  # of a panel with its words
SCALE, MARGIN = 0.55, 0.12  # of the colour scale, and around the panels
DPI = 100
COLOURS = "inferno"
OPACITY = 0.55  # of a map over the picture
LONGEST = 18  # characters of a word over its panel
LONGEST_NAME = 200  # bytes of a file name
_WORDS: Any = {"parse_math": False}  # of a caption, in which $ is a $


@checked_names
def draw_maps(record: Record, path: str | Path) -> None:
    """Draw where the model looks before each word of an image's best caption, as a PNG file.

    The first panel is the image as the CNN sees it, resized and cropped. Each word follows with
    its weights over the image, interpolated between the places. One colour scale serves all words:
    it ends at the caption's largest weight of a place. The sentinel's weight, "not the image", is
    written below the word's map: it and the weights of the places sum to 1.

    Args:
        record: of `caption_files` with `CaptioningOptions(maps=True)`.
        path: the file to write. A file that `draw_maps` wrote is replaced.

    Raises:
        ConfigError: if the record has no maps: its image failed, or the model has no attention; or
            if another file is at the path.
    """
    must_be("record", record, Record)
    must_be("path", path, str, Path)
    words = record.captions[0].words if record.captions else ()
    if record.pixels is None or not words or not words[0].attention:
        reason = record.error or (
            "caption with CaptioningOptions(maps=True) and a model of decoder.attention: spatial"
        )
        raise ConfigError(f"record: has no maps: {reason}")
    if record.captions[0].finished:
        words = words[:-1]  # the end token
    picture = record.pixels.permute(1, 2, 0).numpy()
    figure = _figure(picture, record.caption, words, record.visible)
    # `system.ownership` recognises the file by its title before it replaces the file.
    metadata = {"Title": "captioner attention", "Software": f"captioner {__version__}"}
    with whole_file(Path(path), "map") as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as boxes
        figure.savefig(aside, format="png", metadata=metadata, pil_kwargs={"optimize": True})


@dataclass(slots=True)
class MapFolder:
    """A folder with one PNG file for each image, named after the image.

    The second image of a name gets "-2" behind it, in the order of the images. A file that exists
    is kept; with `overwrite`, only a file that captioner did not draw.
    """

    folder: Path
    overwrite: bool = False
    drawn: int = 0
    kept: list[Path] = field(default_factory=list)  # drawn by captioner before
    foreign: list[Path] = field(default_factory=list)  # not drawn by captioner
    absent: int = 0  # images that an earlier run captioned, without a file
    _names: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Draw an image's maps; one that failed, or has no maps, only takes its name."""
        path = self.folder / self._name(record.file_name)
        if record.pixels is None or not record.captions:
            self.absent += not (record.error or os.path.lexists(path))
        elif os.path.lexists(path) and not owns(path, "map"):
            self.foreign.append(path)
        elif os.path.lexists(path) and not self.overwrite:
            self.kept.append(path)
        else:
            draw_maps(record, path)
            self.drawn += 1

    def _name(self, file_name: str) -> str:
        """Return a name that no image has yet, whatever the case of its letters."""
        stem = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", Path(file_name).stem) or "image"
        stem = os.fsdecode(os.fsencode(stem)[:LONGEST_NAME])
        names = (f"{stem}{f'-{number}' if number > 1 else ''}.png" for number in count(1))
        name = next(name for name in names if name.casefold() not in self._names)
        self._names.add(name.casefold())
        return name


def _figure(
    picture: NDArray[np.uint8],
    caption: str,
    words: tuple[Word, ...],
    visible: float,
) -> Figure:
    """Draw a picture, uint8 (H, W, 3), and one panel for each word."""
    from matplotlib.cm import ScalarMappable  # slow to import
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = -(-(len(words) + 1) // COLUMNS)
    columns = -(-(len(words) + 1) // rows)
    lines = textwrap.wrap(caption, 13 * columns) or [""]
    width, height = columns * WIDTH + SCALE + MARGIN, rows * HEIGHT + 0.25 * len(lines) + 2 * MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.text(
        MARGIN / width, 1 - MARGIN / height, "\n".join(lines), **_WORDS, fontsize=12, va="top"
    )

    def panel(number: int) -> Axes:
        """Add the axes of a panel, row by row."""
        row, column = divmod(number, columns)
        left, bottom = MARGIN + column * WIDTH, MARGIN + (rows - 1 - row) * HEIGHT + BELOW
        axes = figure.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))
        axes.set_axis_off()
        return axes

    first = panel(0)
    first.imshow(picture, interpolation="nearest")
    first.set_title("the image", fontsize=9, color="0.4", pad=4)
    if visible < 0.995:
        _write_below(first, f"the middle {visible:.0%} of it")
    looks = [word.attention for word in words if word.attention]
    edges = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    scale = Normalize(0, max((max(map(max, look.places)) for look in looks), default=1))
    for number, (word, look) in enumerate(zip(words, looks, strict=True), 1):
        axes = panel(number)
        axes.imshow(picture)
        weights = np.array(look.places)
        axes.imshow(weights, COLOURS, scale, alpha=OPACITY, extent=edges, interpolation="bilinear")
        title = word.text if len(word.text) <= LONGEST else word.text[: LONGEST - 1] + "…"
        axes.set_title(title, **_WORDS, fontsize=10, pad=4)
        _write_below(axes, f"not the image: {look.sentinel:.2f}")
    bar = figure.add_axes(
        (
            (width - SCALE) / width,
            (MARGIN + (rows - 1) * HEIGHT + BELOW) / height,
            0.12 / width,
            SIDE / height,
        )
    )
    figure.colorbar(ScalarMappable(scale, COLOURS), cax=bar, alpha=OPACITY)
    bar.set_title("weight", fontsize=8, pad=4, loc="left")
    bar.tick_params(labelsize=8, length=2)
    return figure


def _write_below(axes: Axes, text: str) -> None:
    axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=8)
