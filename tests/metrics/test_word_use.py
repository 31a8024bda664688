"""The word use of captions: values counted by hand."""

import pytest

from captioner.metrics.word_use import FUNCTION_WORDS, WordUse, compare_word_use, word_use
from captioner.text import tokenize

CAPTIONS = [["a", "dog", "runs"], ["a", "dog", "runs"], ["a", "dog", "and", "a", "dog"]]
REFERENCES = [
    [["a", "dog", "runs"], ["the", "dog", "is", "fast"]],
    [["a", "cat"], ["two", "cats", "run", "run"]],
    [["two", "dogs", "in", "the", "snow"], ["snow", "and", "a", "cat"]],
]


def test_known_values():
    # Pairs: a dog, dog runs (twice each), a dog, dog and, and a, a dog.
    # Content words of two references: dog, cat, two, snow; "run" is twice in one.
    assert word_use(CAPTIONS, REFERENCES) == WordUse(
        captions=3,
        different_captions=2,
        words=4,
        distinct_1=4 / 11,
        distinct_2=4 / 8,
        content_words=4,
        content_words_used=1,
    )


def test_pairs_do_not_cross_captions():
    assert word_use([["a"], ["dog"]], [[["a"]]] * 2).distinct_2 == 0
    assert word_use([["a", "dog"], ["a", "dog"]], [[["a"]]] * 2).distinct_2 == 1 / 2


def test_first_references_are_compared_with_the_others():
    found = compare_word_use(CAPTIONS, REFERENCES)
    assert list(found) == ["captions", "first_references"]
    assert found["captions"] == word_use(CAPTIONS, REFERENCES)
    more = [
        [["a", "tree", "dog"], ["a", "cat"], ["a", "cat"], ["the", "dog"], ["dog", "cat", "tree"]]
    ]
    first = compare_word_use([["a", "tree"]], more)["first_references"]
    assert (first.words, first.content_words, first.content_words_used) == (3, 2, 1)


@pytest.mark.parametrize("captions", [[[], []], [["a"], []]])
def test_nothing_to_count_is_no_error(captions):
    found = word_use(captions, [[["a", "dog"]], [["the", "cat"]]])
    assert (found.content_words, found.content_words_used, found.distinct_2) == (0, 0, 0)
    assert found.as_text()["content_words"] == "0 of 0"
    assert compare_word_use(captions, [[["a"]], [["b"]]])["first_references"].content_words == 0


def test_text():
    assert WordUse(1000, 843, 1287, 0.02881, 0.5, 1735, 257).as_text() == {
        "captions": "843 of 1,000 different",
        "words": "1,287 different",
        "distinct_1": "0.029",
        "distinct_2": "0.500",
        "content_words": "257 of 1,735, 14.8%",
    }


def test_function_words_are_tokens():
    for text in ("can't", "won't", "it's", "they've (in) [a] {b}"):
        assert set(tokenize(text)) - {"b"} <= FUNCTION_WORDS
    assert all(tokenize(word) == [word] for word in FUNCTION_WORDS)
    assert not FUNCTION_WORDS & {"one", "two", "three", "left", "right", "together", "man", "red"}
