"""Drawn scenes: small pictures whose every true caption is known.

A picture shows either one to four equal things, or two things of different kinds, one left of or
above the other. `generate` draws the bundled set, `load` reads it, and the judge of the loaded
set says whether a caption is true of its picture. Redraw it with

    python -m captioner.datasets.scenes FOLDER
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from captioner.datasets.base import Dataset, Example, Problem
from captioner.errors import DataError

Colour = tuple[float, float, float]

KINDS = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (240, 196, 20),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (130, 55, 175),
    "pink": (242, 135, 190),
    "black": (35, 35, 35),
}
RADII = {"small": 5.5, "large": 10.5}  # pixels
COUNTS = ("a", "two", "three", "four")
# What the first of two things is to the second -> the second to the first, and both as trailers.
RELATIONS = {
    "left of": ("right of", "on its left", "on its right"),
    "above": ("below", "above it", "below it"),
}

SIZE = 64  # pixels, width and height of a picture
SPLITS = {"train": 2000, "dev": 200, "test": 200}  # pictures
HELD_OUT = {"test": (42, 100), "dev": (42, 100)}  # combinations of (groups, pairs)
INDEX = "captions.jsonl"

_SUPERSAMPLING = 4
_LEVELS = 7  # shades from background to thing: two things and a background fill 15 of 16 entries
# (opening, body) of the five captions each picture comes with, out of all its true sentences.
# An opening settles which of two things is named first: a learner that had to work it out from
# the colour it has just said would learn the pairs by heart instead.
_WORDINGS = ((0, 0), (0, 1), (1, 0), (2, 2), (3, 3))

Combination = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Thing:
    """What a caption says about one kind of thing in a picture."""

    kind: str
    colour: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """The truth of one picture.

    Attributes:
        things: one thing, shown `count` times, or two things with a relation.
        count: how many equal things are shown, 1 to 4; 1 each for two things.
        relation: what the first of two things is to the second (a key of `RELATIONS`), else "".
    """

    things: tuple[Thing, ...]
    count: int = 1
    relation: str = ""


def combination(scene: Scene) -> Combination:
    """Name the attributes that meet in a scene; no two splits share one.

    Returns:
        (kind, colour, size, count) of equal things; the unordered two (kind, colour) of a pair.
    """
    if scene.relation:
        return tuple(sorted((thing.kind, thing.colour) for thing in scene.things))
    thing = scene.things[0]
    return (thing.kind, thing.colour, thing.size, scene.count)


def split_combinations(seed: int = 0) -> dict[str, tuple[list[Combination], list[Combination]]]:
    """Share all combinations out over the splits.

    Returns:
        Split name -> (combinations of equal things, combinations of pairs), disjoint and in
        random order; what dev and test do not hold out is train's.
    """
    rng = random.Random(f"{seed}/combinations")
    groups: list[Combination] = list(product(KINDS, COLOURS, RADII, range(1, len(COUNTS) + 1)))
    looks = product(sorted(KINDS), sorted(COLOURS))
    pairs: list[Combination] = [(a, b) for a, b in combinations(looks, 2) if a[0] != b[0]]
    rng.shuffle(groups)
    rng.shuffle(pairs)
    shares = {}
    for split, (n_groups, n_pairs) in HELD_OUT.items():
        shares[split] = (groups[:n_groups], pairs[:n_pairs])
        groups, pairs = groups[n_groups:], pairs[n_pairs:]
    return {**shares, "train": (groups, pairs)}


def scenes(
    shares: tuple[list[Combination], list[Combination]], rng: random.Random
) -> Iterator[Scene]:
    """Make endless scenes, equal things and pairs in turn, going round the given combinations."""
    groups, pairs = shares
    for turn in range(sys.maxsize):
        kind, colour, size, count = groups[turn % len(groups)]
        yield Scene((Thing(kind, colour, size),), count)  # type: ignore[arg-type]
        looks = list(pairs[turn % len(pairs)])
        rng.shuffle(looks)
        things = tuple(Thing(*look, rng.choice(tuple(RADII))) for look in looks)  # type: ignore[misc]
        yield Scene(things, relation=rng.choice(tuple(RELATIONS)))


def _bodies(scene: Scene) -> tuple[str, ...]:
    """Word what is shown in four ways."""
    if scene.relation:
        first, second = (f"a {thing.size} {thing.colour} {thing.kind}" for thing in scene.things)
        inverse, first_there, second_there = RELATIONS[scene.relation]
        return (
            f"{first} {scene.relation} {second}",
            f"{first} with {second} {second_there}",
            f"{second} {inverse} {first}",
            f"{second} with {first} {first_there}",
        )
    thing, number = scene.things[0], COUNTS[scene.count - 1]
    kind, are = thing.kind, "is"
    if scene.count > 1:
        kind, are = f"{kind}{'es' if kind.endswith('s') else 's'}", "are"
    return (
        f"{number} {thing.size} {thing.colour} {kind}",
        f"{number} {thing.size} {thing.colour} {kind} on a plain background",
        f"{number} {thing.colour} {kind} that {are} {thing.size}",
        f"{number} {thing.colour} {kind} of {thing.size} size",
    )


def sentences(scene: Scene) -> list[list[str]]:
    """Say everything the grammar can truly say of a scene, every attribute included.

    Returns:
        Four rows, one per opening, of four sentences each, one per body.
    """
    there = "there is " if scene.count == 1 else "there are "
    openings = ("", there, "the picture shows ", "we see ")
    return [[opening + body for body in _bodies(scene)] for opening in openings]


def captions(scene: Scene) -> tuple[str, ...]:
    """Word the five captions a picture of the scene comes with."""
    said = sentences(scene)
    return tuple(said[opening][body] for opening, body in _WORDINGS)


def is_true(scene: Scene, caption: str) -> bool:
    """Judge a caption: grammatical, and right in every attribute.

    The grammar has sixteen sentences for a scene and no more, so to be true is to be one of them.
    """
    said = " ".join(caption.lower().split())
    return any(said in row for row in sentences(scene))


def _outlines() -> dict[str, list[tuple[float, float]]]:
    """Give each kind's corners around the origin, y down, about one unit in radius."""

    def ring(radii: list[float]) -> list[tuple[float, float]]:
        turns = [2 * math.pi * i / len(radii) for i in range(len(radii))]
        return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]

    heart = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        heart.append((math.sin(t) ** 3, -y / 16))
    a, b = 0.33, 1.0  # half the width and half the length of a cross's bars
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


def _place(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """Find room for every thing.

    Returns:
        (x, y, radius) of each thing in pixels, apart from each other and inside the picture.
    """
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


def _related(
    relation: str, first: tuple[float, float, float], second: tuple[float, float, float]
) -> bool:
    """Tell whether two spots show the relation beyond doubt: one axis outweighs the other."""
    across, down = second[0] - first[0], second[1] - first[1]
    if relation == "left of":
        return across > 2 * abs(down)
    return down > 2 * abs(across)


def draw(scene: Scene, rng: random.Random, colours: Mapping[str, Colour] = COLOURS) -> Image.Image:
    """Draw a scene with random places, turns, tints and background.

    Args:
        scene: what to show.
        rng: decides all that the captions do not mention.
        colours: name of a colour -> red, green, blue, each 0 to 255.

    Returns:
        A palette picture of `SIZE` x `SIZE` pixels and at most 16 colours.
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
        # Things never touch, so adding two layers of palette indices keeps both.
        indices = ImageChops.add(indices, mask.reduce(_SUPERSAMPLING).point(shades))
        tint = [min(255, max(0, c + rng.uniform(-14, 14))) for c in colours[thing.colour]]
        for level in range(1, _LEVELS + 1):
            mix = zip(background, tint, strict=True)
            palette += [round(back + (front - back) * level / _LEVELS) for back, front in mix]
    picture = Image.frombytes("P", indices.size, indices.tobytes())
    picture.putpalette(palette)
    return picture


def generate(folder: Path, seed: int = 0) -> None:
    """Draw the bundled data set; the same seed gives the same captions and pixels.

    Args:
        folder: where `captions.jsonl` and `images/` go; made when missing.
        seed: of combinations, scenes and pictures; 0 is the bundled set.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shares = split_combinations(seed)
    lines = []
    for split, pictures in SPLITS.items():
        endless = scenes(shares[split], random.Random(f"{seed}/{split}"))
        for number, scene in zip(range(pictures), endless, strict=False):
            image_id = f"{split}-{number:04d}"
            # A stream of its own lets any one picture be redrawn without the others.
            picture = draw(scene, random.Random(f"{seed}/{image_id}"))
            picture.save(folder / "images" / f"{image_id}.png", optimize=True)
            record = {
                "file_name": f"images/{image_id}.png",
                "split": split,
                "captions": captions(scene),
                "scene": asdict(scene),
            }
            lines.append(json.dumps(record) + "\n")
    (folder / INDEX).write_text("".join(lines), encoding="utf-8", newline="\n")


def load(root: Path) -> Dataset:
    """Read a folder that `generate` made.

    Args:
        root: folder with `captions.jsonl` and the pictures it names.

    Returns:
        The examples whose pictures exist, the others as problems, and the judge of captions.

    Raises:
        DataError: if the folder is not one of drawn scenes, or a record of it is damaged.
    """
    index = root / INDEX
    examples, problems, truths = [], [], {}
    for number, line in enumerate(_read_lines(index), start=1):
        example, scene = _parse(line, root, f"{index}:{number}")
        if not example.image.is_file():
            problems.append(Problem("missing image", f"{INDEX}:{number}", str(example.image)))
        elif example.image_id in truths:
            problems.append(Problem("duplicate id", f"{INDEX}:{number}", example.image_id))
        else:
            examples.append(example)
            truths[example.image_id] = scene

    def judge(image_id: str, caption: str) -> bool:
        return is_true(truths[image_id], caption)

    return Dataset(root.name, "scenes", root, tuple(examples), tuple(problems), judge)


def _read_lines(index: Path) -> list[str]:
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{index}: no drawn scenes here ({error}); draw them with"
            f" `python -m captioner.datasets.scenes {index.parent}`"
        ) from error
    if not lines:
        raise DataError(
            f"{index}: empty; redraw it with `python -m captioner.datasets.scenes {index.parent}`"
        )
    return lines


def _parse(line: str, root: Path, where: str) -> tuple[Example, Scene]:
    try:
        record = json.loads(line)
        truth = record["scene"]
        things = tuple(Thing(**thing) for thing in truth["things"])
        scene = Scene(things, truth["count"], truth["relation"])
        image = root / record["file_name"]
        example = Example(image, tuple(record["captions"]), record["split"], image.stem)
        sentences(scene)  # fails on a truth that no caption can tell
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{where}: not a record of a drawn scene ({error!r}); redraw the folder with"
            f" `python -m captioner.datasets.scenes {root}`"
        ) from error
    return example, scene


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m captioner.datasets.scenes FOLDER")
    generate(Path(sys.argv[1]))
