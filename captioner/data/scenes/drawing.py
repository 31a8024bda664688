"""Draws a scene; everything that the captions do not mention is random."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from captioner.data.scenes.grammar import Scene
from captioner.errors import ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import read_file

Colour = tuple[float, float, float]
Spot = tuple[float, float, float]

SIZE = 64  # pixels, width and height of an image
RADII = {"small": 5.5, "large": 10.5}  # pixels
PALETTE: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (240, 196, 20),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (130, 55, 175),
    "pink": (242, 135, 190),
    "black": (35, 35, 35),
}
_SUPERSAMPLING = 4
_LEVELS = 7  # shades from background to thing; two things and the background need 15 colours


def _outlines() -> dict[str, list[tuple[float, float]]]:
    """Return the corners of each kind around the origin, y down, radius about 1."""

    def ring(radii: list[float]) -> list[tuple[float, float]]:
        turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
        return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]

    heart = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        heart.append((math.sin(t) ** 3, -y / 16))
    a, b = 0.33, 1.0  # half the width and half the length of a bar of the cross
    quarter = [(a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b)]
    return {
        "circle": ring([0.95] * 40),
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": ring([1.15] * 3),
        "star": ring([1.15, 0.5] * 5),
        "heart": heart,
        "cross": quarter + [(-x, -y) for x, y in quarter],
    }


_OUTLINES = _outlines()


def _place(scene: Scene, rng: random.Random) -> list[Spot]:
    """Choose random places, (x, y, radius) in pixels, inside the image and without overlap."""
    sizes = [thing.size for thing in scene.things] * scene.count
    while True:
        spots = []
        for size in sizes:
            radius = RADII[size] * rng.uniform(0.93, 1.07)
            low, high = 1.1 * radius + 1, SIZE - 1.1 * radius - 1
            spots.append((rng.uniform(low, high), rng.uniform(low, high), radius))
        apart = all(
            math.dist(one[:2], two[:2]) > 1.15 * (one[2] + two[2]) + 1
            for one, two in combinations(spots, 2)
        )
        if apart and (not scene.relation or _related(scene.relation, *spots)):
            return spots


def _related(relation: str, first: Spot, second: Spot) -> bool:
    """Return whether two spots show the relation clearly: one axis dominates."""
    across, down = second[0] - first[0], second[1] - first[1]
    if relation == "left of":
        return across > 2 * abs(down)
    return down > 2 * abs(across)


def masks(image: ImageFile) -> list[NDArray[np.bool_]]:
    """Return the pixels, (`SIZE`, `SIZE`), of each thing of a scene that `draw` drew.

    Things that look equal share a mask. Without the palette of `draw` there is no mask.
    """
    try:
        with Image.open(io.BytesIO(read_file(image))) as picture:
            if picture.mode != "P" or picture.size != (SIZE, SIZE):
                return []
            levels = np.asarray(picture)
    except (ImageError, OSError, ValueError, Image.DecompressionBombError):
        return []
    numbers = (levels.astype(int) + _LEVELS - 1) // _LEVELS  # 0: background
    return [numbers == number for number in range(1, numbers.max(initial=0) + 1)]


def draw(scene: Scene, rng: random.Random, colours: Mapping[str, Colour] = PALETTE) -> Image.Image:
    """Draw a scene with random places, rotations, tints and background.

    Colours are red, green and blue, 0 to 255. The palette image has `SIZE` x `SIZE` pixels and at
    most 16 colours, first those of the background, then of each thing: `masks` needs that.
    """
    grey = rng.uniform(205, 248)
    background = [round(grey + rng.uniform(-7, 7)) for _ in range(3)]
    spots = _place(scene, rng)
    indices = Image.new("L", (SIZE, SIZE))
    palette = list(background)
    for number, thing in enumerate(scene.things):
        mask = Image.new("L", (SIZE * _SUPERSAMPLING,) * 2)
        pen = ImageDraw.Draw(mask)
        for x, y, radius in spots[number :: len(scene.things)]:
            turn = math.radians(rng.uniform(-20, 20))
            right, down = radius * math.cos(turn), radius * math.sin(turn)
            corners = [
                (
                    _SUPERSAMPLING * (x + u * right - v * down),
                    _SUPERSAMPLING * (y + u * down + v * right),
                )
                for u, v in _OUTLINES[thing.kind]
            ]
            pen.polygon(corners, fill=255)
        levels = [round(cover * _LEVELS / 255) for cover in range(256)]
        shades = [level and level + number * _LEVELS for level in levels]
        # Things touch at most at a corner, so the greater palette index keeps both.
        indices = ImageChops.lighter(indices, mask.reduce(_SUPERSAMPLING).point(shades))
        tint = [min(255, max(0, c + rng.uniform(-14, 14))) for c in colours[thing.colour]]
        for level in range(1, _LEVELS + 1):
            mix = zip(background, tint, strict=True)
            palette += [round(back + (front - back) * level / _LEVELS) for back, front in mix]
    picture = Image.frombytes("P", indices.size, indices.tobytes())
    picture.putpalette(palette)
    return picture
