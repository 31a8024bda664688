"""The content of a scene, and all its true captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from captioner.system.foreign import excerpt

KINDS = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "black")
SIZES = ("small", "large")
COUNTS = ("a", "two", "three", "four")
# Relation of the first thing to the second -> inverse relation, and both as a suffix.
RELATIONS = {
    "left of": ("right of", "on its left", "on its right"),
    "above": ("below", "above it", "below it"),
}

# (opening, body) of the five captions of each image, chosen from all its true sentences.
# The opening determines which of two things comes first. Otherwise a model would infer the order
# from the first colour and memorise the pairs.
_WORDINGS = ((0, 0), (0, 1), (1, 0), (2, 2), (3, 3))


@dataclass(frozen=True, slots=True)
class Thing:
    """The attributes of a thing in an image."""

    kind: str
    colour: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image."""

    things: tuple[Thing, ...]  # one thing, drawn `count` times, or two things with a relation
    count: int = 1  # number of equal things, 1 to 4; 1 for two things with a relation
    relation: str = ""  # of the first to the second, a key of `RELATIONS`; "" for equal things


def parse_scene(fields: Mapping[str, Any]) -> Scene:
    """Build a scene; raise a `ValueError` if a field is missing, unknown or out of range."""
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
        raise ValueError(f"not a scene: {excerpt(error)}") from error
    if not (named and counted and (pair or (len(things) == 1 and scene.relation == ""))):
        raise ValueError("not a scene: a field is out of range")
    return scene


def plural(kind: str) -> str:
    """Return the plural of a kind."""
    return f"{kind}{'es' if kind.endswith('s') else 's'}"


def _bodies(scene: Scene) -> tuple[str, ...]:
    """Return four descriptions of the scene."""
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
        kind, are = plural(kind), "are"
    return (
        f"{number} {thing.size} {thing.colour} {kind}",
        f"{number} {thing.size} {thing.colour} {kind} on a plain background",
        f"{number} {thing.colour} {kind} that {are} {thing.size}",
        f"{number} {thing.colour} {kind} of {thing.size} size",
    )


def sentences(scene: Scene) -> list[list[str]]:
    """Return all true sentences of a scene: a row per opening, with a sentence per body."""
    there = "there is " if scene.count == 1 else "there are "
    openings = ("", there, "the picture shows ", "we see ")
    return [[opening + body for body in _bodies(scene)] for opening in openings]


Sentences = Callable[[Scene], list[list[str]]]  # a row per opening, with a sentence per body


def captions(scene: Scene, say: Sentences = sentences) -> tuple[str, ...]:
    """Return the five captions of an image of the scene."""
    rows = say(scene)
    return tuple(rows[opening][body] for opening, body in _WORDINGS)


def is_true(scene: Scene, caption: str, say: Sentences = sentences) -> bool:
    """Return whether a caption is one of the scene's sixteen true sentences, up to commas."""
    text = _bare(caption)
    return any(text == _bare(sentence) for row in say(scene) for sentence in row)


def names(thing: Thing) -> frozenset[str]:
    """Return the words that name the kind or the colour of a thing."""
    return frozenset((thing.kind, plural(thing.kind), thing.colour))


def _bare(sentence: str) -> str:
    return " ".join(re.sub("[,，]", "", sentence.lower()).split())
