"""Draws where a model looks before each word: the image, then a map of weights for each word."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from captioner.captioning.records import Record
from captioner.errors import ConfigError, checked_names, must_be
from captioner.explanation.fonts import missing
from captioner.explanation.panels import Block, Panel, draw_panels, save_figure
from captioner.system.ownership import owns
from captioner.text import Word

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 200  # bytes of a file name


@checked_names
def draw_maps(record: Record, path: str | Path) -> None:
    """Draw where the model looks before each word of an image's best caption, as a PNG file.

    The first panel is the image as the CNN sees it, resized and cropped. Each word follows with
    its weights over the image, interpolated between the places. One colour scale serves all words:
    it ends at the caption's largest weight of a place. The sentinel's weight, "not the image", is
    written below the word's map: it and the weights of the places sum to 1.

    Args:
        record: of `caption_files` with `CaptioningOptions(maps=True)`. A letter that no installed
            font has is drawn as a box.
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
    figure = _figure(record.pixels.permute(1, 2, 0).numpy(), record.caption, words, record.visible)
    save_figure(figure, Path(path), "map")


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
    letters: set[str] = field(default_factory=set)  # drawn as boxes: no font has them
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
            self.letters |= missing(record.caption)

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
    looks = [(word.text, word.attention) for word in words if word.attention]
    panels = [
        Panel(text, np.array(look.places), f"not the image: {look.sentinel:.2f}")
        for text, look in looks
    ]
    return draw_panels(picture, caption, [Block("the image", "weight", panels, "weights")], visible)
