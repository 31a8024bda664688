"""What a scene holds, and everything that can truly be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captioner.system.foreign import excerpt

KINDS = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "large")
COUNTS = ("a", "two", "three", "four")
# What the first of two things is to the second -> the second to the first, and both as trailers.
RELATIONS = {
    "left of": ("right of", "on its left", "on its right"),
    "above": ("below", "above it", "below it"),
}

# (opening, body) of the five captions each picture comes with, out of all its true sentences.
# An opening settles which of two things is named first: a learner that had to work it out from
# the colour it has just said would learn the pairs by heart instead.
_WORDINGS = ((0, 0), (0, 1), (1, 0), (2, 2), (3, 3))


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


def parse_scene(fields: Mapping[str, Any]) -> Scene:
    """Read a scene back from its fields.

    Raises:
        ValueError: if no caption could tell it: a field is missing, unknown or out of range.
    """
    try:
        things = tuple(Thing(**thing) for thing in fields["things"])
        scene = Scene(things, fields["count"], fields["relation"])
        named = all(
            thing.kind in KINDS and thing.colour in COLOURS and thing.size in SIZES
            for thing in things
        )
        pair = len(things) == 2 and scene.relation in RELATIONS and scene.count == 1
        counted = isinstance(scene.count, int) and 1 <= scene.count <= len(COUNTS)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no scene: {excerpt(error)}") from error
    if not (named and counted and (pair or (len(things) == 1 and scene.relation == ""))):
        raise ValueError("no caption could tell this scene")
    return scene


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
