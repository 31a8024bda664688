"""Fonts for the words of captions: the one of matplotlib lacks Chinese, Thai and other scripts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from fontTools.unicodedata import script, script_name

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

OWN = "DejaVu Sans"  # comes with matplotlib
BOXES = "Last Resort"  # comes with matplotlib, and draws a box for every letter
FORMULAS = "mpl-data"  # folder of the fonts of matplotlib; most are for formulas
CJK = {"Hani", "Hira", "Kana", "Hang", "Bopo"}  # scripts
MOST = 10  # letters in a message


def families(text: str) -> list[str]:
    """Return the names of fonts that have the letters of a text, for matplotlib, best first.

    A letter that no installed font has is left out; `missing` returns it.
    """
    found = [name for letter in sorted({*text}) if (name := _family(letter))]
    return [OWN, *dict.fromkeys(name for name in found if name != OWN)]


def missing(text: str) -> set[str]:
    """Return the letters that no installed font has."""
    return {letter for letter in text if _family(letter) is None}


def advice(letters: Iterable[str]) -> str:
    """Return one line on letters that no font has, and what to install; empty without any."""
    if not (lacking := sorted(letters)):
        return ""
    scripts = sorted({script(letter) for letter in lacking})
    packages = [
        *(["Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"] if CJK.intersection(scripts) else []),
        *(["Noto Sans (Debian, Ubuntu: fonts-noto-core)"] if {*scripts} - CJK else []),
    ]
    names = ", ".join(map(script_name, scripts))
    some = " ".join(lacking[:MOST]) + (" ..." if len(lacking) > MOST else "")
    return (
        f"no installed font has {some} ({names}), so boxes are drawn; install "
        f"{' and '.join(packages)}, then draw again"
    )


@cache
def _family(letter: str) -> str | None:
    """Return the family that draws a letter; None: no font has it. White space needs none."""
    if unicodedata.category(letter)[0] in "ZC":
        return OWN
    every = (entry.name for entry in _entries() if ord(letter) in _letters(entry))
    return next(every, None)


@cache
def _letters(entry: FontEntry) -> frozenset[int]:
    from matplotlib.font_manager import FontPath, get_font

    with suppress(OSError, RuntimeError):
        return frozenset(get_font(FontPath(entry.fname, entry.index)).get_charmap())
    return frozenset()


@cache
def _entries() -> list[FontEntry]:
    """Return every upright font, that of matplotlib first; then Noto, then others."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # The list of matplotlib is of the day when it was first imported.
    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted({*findSystemFonts()} - known):
        with suppress(Exception):  # whatever a damaged font raises
            fontManager.addfont(path)
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]

    def rank(entry: FontEntry) -> tuple[bool, bool, bool, bool, int, str, str]:
        name, thick = entry.name, abs(int(entry.weight) - 400)
        kinds = name != OWN, FORMULAS in entry.fname, not name.startswith("Noto Sans")
        return *kinds, "sans" not in name.lower(), thick, name, entry.fname

    return sorted((entry for entry in upright if not entry.name.startswith(BOXES)), key=rank)
