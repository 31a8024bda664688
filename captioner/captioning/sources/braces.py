"""Brace expansion as in shells: `shards/{00000..00099}.tar` -> the names of 100 files."""

from __future__ import annotations

import re
from collections.abc import Iterator

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?", re.ASCII)


def expand(text: str) -> Iterator[str]:
    """Expand ranges of numbers, `{07..12}` or `{0..100..10}`, and lists, `{train,dev}`.

    Braces may be nested; the last ones change fastest. If an end of a range has leading zeros, all
    numbers are padded to the width of the longer end. Other braces stay unchanged.
    """
    for start, character in enumerate(text):
        end = _closing(text, start) if character == "{" else None
        if end and (choices := _choices(text[start + 1 : end])):
            for choice in choices:
                for rest in expand(text[end + 1 :]):
                    yield f"{text[:start]}{choice}{rest}"
            return
    yield text


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return None


def _choices(inside: str) -> Iterator[str] | None:
    if match := _RANGE.fullmatch(inside):
        return _numbers(match[1], match[2], int(match[3] or 1))
    parts = _split(inside)
    return (text for part in parts for text in expand(part)) if len(parts) > 1 else None


def _numbers(first: str, last: str, step: int) -> Iterator[str]:
    padded = any(re.match(r"-?0\d", end) for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    low, high = int(first), int(last)
    step = max(step, 1)  # a step of 0 counts as 1, as in bash
    for number in range(low, high + 1, step) if low <= high else range(low, high - 1, -step):
        yield f"{number:0{width}d}"


def _split(inside: str) -> list[str]:
    """Split at commas outside inner braces."""
    parts, depth = [""], 0
    for character in inside:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
