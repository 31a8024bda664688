"""Pointing accuracy: words that name a thing, and the places where the model looked."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from captioner.data.scenes.drawing import draw, masks
from captioner.data.scenes.grammar import parse_scene
from captioner.metrics import Thing, pointing
from captioner.text import Word, WordAttention


def thing(words: str, *cells: tuple[int, int], area: float = 1) -> Thing:
    places = np.zeros((2, 2), bool)
    for cell in cells:
        places[cell] = True
    return Thing(frozenset(words.split()), places, area)


def look(word: str, row: int, column: int, sentinel: float = 0.0) -> Word:
    places = [[0.1, 0.1], [0.1, 0.1]]
    places[row][column] = 0.2
    return Word(word, -1.0, attention=WordAttention(tuple(map(tuple, places)), sentinel))


RED = thing("red square", (0, 0), area=5)
BLUE = thing("blue circle", (1, 0), (1, 1), area=3)


def test_known_values():
    caption = [look("a", 0, 0), look("red", 0, 0), look("circle", 0, 1), look("blue", 1, 1)]
    found = pointing([(caption, [RED, BLUE])])
    assert found.words == 3  # "a" names nothing
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.chance == pytest.approx((1 / 4 + 2 / 4 + 2 / 4) / 3)
    assert found.largest_thing == pytest.approx(1 / 3)


def test_a_word_for_two_things_may_point_at_either():
    both = [thing("red square", (0, 0)), thing("red circle", (1, 1))]
    for row, column, right in ((0, 0, 1), (1, 1, 1), (0, 1, 0)):
        assert pointing([([look("red", row, column)], both)]).accuracy == right


def test_the_sentinel_is_no_place():
    assert pointing([([look("red", 0, 0, sentinel=0.9)], [RED])]).accuracy == 1


def test_what_is_not_there_and_not_seen_does_not_count():
    assert pointing([([look("green", 0, 0)], [RED])]) is None
    assert pointing([([look("red", 0, 0)], [thing("red")])]) is None
    assert pointing([([], [RED])]) is None


def test_the_masks_of_a_scene_are_its_things(tmp_path):
    scene = parse_scene(
        {
            "things": [
                {"size": "large", "colour": "red", "kind": "square"},
                {"size": "small", "colour": "blue", "kind": "circle"},
            ],
            "count": 1,
            "relation": "above",
        }
    )
    for seed in range(20):
        path = tmp_path / f"{seed}.png"
        draw(scene, random.Random(seed)).save(path)
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red, blue = masks(path)
        assert picture[red][:, 0].mean() > picture[red][:, 2].mean() + 50
        assert picture[blue][:, 2].mean() > picture[blue][:, 0].mean() + 50
        assert red.sum() > blue.sum() > 20
        assert not (red & blue).any()
        rows = np.arange(len(red))[:, None]
        assert (rows * red).sum() / red.sum() < (rows * blue).sum() / blue.sum()  # above
