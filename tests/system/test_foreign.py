"""Whatever a file holds, a message shows it short, on one line, and without control characters."""

from __future__ import annotations

import pickle
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import CaptionerError, ConfigError
from captioner.system.foreign import LIMIT, MAX_LINE, MAX_LINES, excerpt, message, plain

ANY_TEXT = st.text(st.characters(), max_size=50)  # surrogates and control characters as well
HOSTILE = ["\x1b[31m", "\x9b31m", "\u202e", "\u2066", "\u2028", "\u2029", "\x85", "\x7f", "\udcff"]
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.binary() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner) | st.tuples(inner, inner),
)


def printable(text: str) -> bool:
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return not any(unicodedata.category(character) in hidden for character in text)


@given(VALUES, st.integers(10, 400))
def test_of_any_value_an_excerpt_is_short_and_printable(value: object, limit: int) -> None:
    for text in (excerpt(value, limit), plain(value, limit)):
        assert len(text) <= limit
        assert printable(text)


@given(st.recursive(st.none() | st.integers() | ANY_TEXT, st.lists, max_leaves=4))
def test_a_small_value_is_shown_whole_as_repr_writes_it(value: object) -> None:
    assert excerpt(value, 10_000) == repr(value)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_terminal_obeys_is_written_as_an_escape(hostile: str) -> None:
    escape = hostile[0].encode("unicode_escape").decode()
    for text in (plain(f"a{hostile}b"), excerpt(f"a{hostile}b"), excerpt([{f"a{hostile}": 1}])):
        assert escape in text
        assert printable(text)


def test_of_a_long_text_both_ends_are_shown() -> None:
    text = plain("begin " + "x" * 1000 + " end")
    assert len(text) == LIMIT
    assert text.startswith("begin x") and text.endswith("x end") and "..." in text
    assert excerpt("y" * 1000) == "'" + "y" * (LIMIT - 4) + "..."


def test_a_huge_value_costs_no_more_than_what_is_shown_of_it() -> None:
    nest: list[object] = []
    for _ in range(100_000):
        nest = [nest]
    endless: dict[str, object] = {}
    endless["self"] = endless
    began = time.process_time()
    for value in (b"\xff" * 60_000_000, "\x1b" * 60_000_000, nest, endless, 10**100_000):
        assert len(excerpt(value)) <= LIMIT
    assert time.process_time() - began < 1
    while nest:  # else its end is a recursion of C
        nest = nest[0]  # type: ignore[assignment]


def test_a_message_keeps_its_lines_and_bounds_them() -> None:
    assert message("two mistakes:\n  first\n  second") == "two mistakes:\n  first\n  second"
    assert message("a\x1bb\tc\r\nd") == "a\\x1bb\\tc\\r\nd"
    long = message("\n".join(["x" * 5000] * 10_090))
    lines = long.split("\n")
    assert len(lines) == MAX_LINES
    assert max(map(len, lines)) == MAX_LINE
    assert lines[-1] == "... and 9,991 more"


@given(ANY_TEXT, st.sampled_from([1, 99, 100, 101, 5000]))
def test_a_message_made_fit_twice_is_the_same(text: str, times: int) -> None:
    once = message(f"{text}\n" * times)
    assert message(once) == once


@given(ANY_TEXT, st.lists(ANY_TEXT, max_size=3))
def test_an_error_has_the_lines_it_was_given_and_no_others(text: str, lines: list[str]) -> None:
    error = ConfigError(text, *lines)
    assert str(error).count("\n") == len(lines)
    assert printable(str(error).replace("\n", ""))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_error_of_ours_is_fit_to_be_printed() -> None:
    error = CaptionerError(f"a\x9b\u202e.json: {'x' * 10_000}")
    assert printable(str(error)) and len(str(error)) == MAX_LINE
