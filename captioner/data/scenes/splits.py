"""Assigns combinations of attributes to splits, and generates scenes of a split."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, count, product

from captioner.data.scenes import grammar
from captioner.data.scenes.grammar import Scene, Thing

HELD_OUT = {"test": (42, 100), "dev": (42, 100)}  # combinations of (equal things, pairs)

Look = tuple[str, str]  # kind, colour
Group = tuple[str, str, str, int]  # kind, colour, size, count
Pair = tuple[Look, Look]  # sorted
Allowed = tuple[list[Group], list[Pair]]


def combination(scene: Scene) -> Group | Pair:
    """Return the combination of attributes of a scene; splits have no common combination."""
    if scene.relation:
        first, second = sorted((thing.kind, thing.colour) for thing in scene.things)
        return first, second
    thing = scene.things[0]
    return thing.kind, thing.colour, thing.size, scene.count


def split_combinations(seed: int = 0) -> dict[str, Allowed]:
    """Distribute all combinations over the splits, disjoint and in random order."""
    rng = random.Random(f"{seed}/combinations")
    groups: list[Group] = list(
        product(grammar.KINDS, grammar.COLOURS, grammar.SIZES, range(1, len(grammar.COUNTS) + 1))
    )
    looks = product(sorted(grammar.KINDS), sorted(grammar.COLOURS))
    pairs: list[Pair] = [(a, b) for a, b in combinations(looks, 2) if a[0] != b[0]]
    rng.shuffle(groups)
    rng.shuffle(pairs)
    allowed = {}
    for split, (n_groups, n_pairs) in HELD_OUT.items():
        allowed[split] = (groups[:n_groups], pairs[:n_pairs])
        groups, pairs = groups[n_groups:], pairs[n_pairs:]
    return {**allowed, "train": (groups, pairs)}


def scenes(allowed: Allowed, rng: random.Random) -> Iterator[Scene]:
    """Yield scenes without end, equal things and pairs in turn, cycling through `allowed`."""
    groups, pairs = allowed
    for turn in count():
        kind, colour, size, number = groups[turn % len(groups)]
        yield Scene((Thing(kind, colour, size),), number)
        looks = list(pairs[turn % len(pairs)])
        rng.shuffle(looks)
        things = tuple(Thing(kind, colour, rng.choice(grammar.SIZES)) for kind, colour in looks)
        yield Scene(things, relation=rng.choice(tuple(grammar.RELATIONS)))
