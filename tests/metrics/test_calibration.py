"""Calibration: stated probabilities against what references hold."""

from __future__ import annotations

import math

import pytest

from captioner.metrics import calibration
from captioner.text import Caption, Word, tokenize


def caption(*words: tuple[str, float], finished: bool = True) -> Caption:
    spelled = [Word(text, math.log(probability)) for text, probability in words]
    end = [Word("<eos>", math.log(0.01))] * finished
    text = " ".join(text for text, _ in words)
    return Caption(text, -1.0, -1.0, finished, (*spelled, *end))


def test_known_values() -> None:
    captions = [
        caption(("a", 0.95), ("dog", 0.35), ("(", 0.31)),
        caption(("a", 1.0), ("cat", 0.38), finished=False),
    ]
    references = [[tokenize("A dog (big)."), tokenize("the dog")], [tokenize("a horse")]]
    found = calibration(captions, references)
    assert [(each.low, each.words) for each in found.bins] == [(0.3, 3), (0.9, 2)]
    assert [each.held for each in found.bins] == [pytest.approx(2 / 3), 1.0]
    assert [each.stated for each in found.bins] == [
        pytest.approx((0.35 + 0.31 + 0.38) / 3),
        pytest.approx(0.975),
    ]
    assert found.words == 5  # the end token of the first does not count
    error = 3 / 5 * abs(1.04 / 3 - 2 / 3) + 2 / 5 * 0.025
    assert found.error == pytest.approx(error)


def test_right_probabilities_have_no_error() -> None:
    captions = [caption(*[("dog", 0.25)] * 4)] * 4
    references = [[["dog"]], [["cat"]], [["a"]], [[]]]
    assert calibration(captions, references).error == pytest.approx(0)


def test_without_words_there_is_nothing_to_say() -> None:
    assert calibration([], []) is None
    assert calibration([caption()], [[["dog"]]]) is None
    assert calibration([Caption("a dog", -1.0, -1.0, True)], [[["dog"]]]) is None
