"""The words of captions are drawn in fonts that have their letters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.figure import Figure
from numpy.typing import NDArray

from captioner.explanation import fonts
from captioner.explanation.fonts import OWN, advice, families, missing
from captioner.explanation.panels import Block, Panel, draw_panels, wrapped

DOG, MADE = "狗", "Made Sans"


def make_font(path: Path, letters: str) -> None:
    """Write a font whose letters are black squares."""
    pen = TTGlyphPen(None)
    corners = ((0, 0), (0, 800), (800, 800), (800, 0))
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": MADE, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fonts of the system; a test may add some."""
    found: list[str] = []
    own = [each for each in font_manager.fontManager.ttflist if fonts.FORMULAS in each.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    caches = (fonts._entries, fonts._family, fonts._letters)
    for cached in caches:
        cached.cache_clear()
    yield found
    for cached in caches:
        cached.cache_clear()


def test_a_letter_comes_from_an_installed_font(installed: list[str], tmp_path: Path) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    make_font(tmp_path / "made.ttf", DOG)
    installed += [str(tmp_path / "damaged.ttf"), str(tmp_path / "made.ttf")]
    assert families(f"a {DOG}") == [OWN, MADE]
    assert families("a dog, кот, كلب") == [OWN]
    assert missing(f"a {DOG}\u200d") == set()
    assert missing(f"{DOG}ข") == {"ข"}
    panels = [Panel(DOG, np.zeros((2, 2)), "")]
    picture = np.full((8, 8, 3), 255, np.uint8)
    blocks = [Block("", "", panels, "weights")]
    drawn = [drawing(draw_panels(picture, caption, blocks, 1.0))[:40] for caption in (DOG * 3, "x")]
    black = [int((each < 50).all(2).sum()) for each in drawn]
    assert black[0] - black[1] > 3 * 10 * 10  # three squares of more than 10 pixels


def test_what_no_font_has_is_said_with_what_to_install(installed: list[str]) -> None:
    assert advice(missing("a dog")) == ""
    assert advice(missing(f"{DOG}が")) == (
        f"no installed font has が {DOG} (Han, Hiragana), so boxes are drawn; install Noto Sans "
        f"CJK (Debian, Ubuntu: fonts-noto-cjk), then draw again"
    )
    both = advice(missing(f"{DOG}สุนัขวิ่งบนสนามหญ้า"))
    assert " ... (Han, Thai)" in both and "\n" not in both
    assert "fonts-noto-cjk) and Noto Sans (Debian, Ubuntu: fonts-noto-core)" in both


def drawing(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def test_hebrew_is_drawn_from_the_right() -> None:
    def ink(text: str) -> NDArray[np.bool_]:
        figure = Figure(figsize=(1, 0.5), dpi=100)
        figure.text(0, 0.5, text, fontfamily=families(text), fontsize=20)
        return (drawing(figure) < 128).any(2)

    first, second, word = ink("א"), ink("ם"), ink("אם")
    width = int(second.nonzero()[1].max()) + 1
    assert not np.array_equal(first[:, :width], second[:, :width])
    assert np.array_equal(word[:, :width], second[:, :width])  # the last letter is the leftmost


@given(st.text(st.sampled_from("ab é\u0301狗犬ข\u0e38 "), max_size=60), st.integers(2, 12))
def test_lines_hold_every_letter_and_are_not_too_long(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert lines and "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        size = sum(2 if letter in "狗犬" else letter not in "\u0301\u0e38" for letter in line)
        assert size <= width + 1 or width < 2
    if all(len(word) <= width for word in text.split()) and text.isascii():
        assert " ".join(lines) == " ".join(text.split())


def test_a_line_ends_between_words_or_letters() -> None:
    assert wrapped("a dog on the grass", 8) == ["a dog on", "the", "grass"]
    assert wrapped("一只棕色的狗", 6) == ["一只棕", "色的狗"]
    assert wrapped("สุนัข", 2) == ["สุนั", "ข"]
    assert wrapped("", 5) == [""]
