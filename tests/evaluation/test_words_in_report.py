"""The report shows each word's probability and its alternatives, without JavaScript too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from captioner.data.dataset import Example
from captioner.evaluation.report import write_report
from captioner.evaluation.report.word_marks import LEVELS, least_confident, marks_of
from captioner.metrics import calibration
from captioner.text import Caption, Word

from browser import CHROMIUM, NO_BROWSER, chromium
from report_toys import evaluation, model_folder, vocabulary

WORDS = (
    Word("it", -0.1, (("he", -2.5), ("<eos>", -4.0))),
    Word("is", -0.5),
    Word("n't", -1.0, (("<b>", -1.2),)),
    Word("(", -3.0),
    Word("red", -0.2),
    Word(")", -0.2),
    Word("<eos>", -0.7, (("dog", -1.0),)),
)
CAPTION = Caption("it isn't (red)", sum(word.log_prob for word in WORDS), -1.0, True, WORDS)


def test_marks_spell_the_caption() -> None:
    marks = marks_of(CAPTION)
    assert "".join(mark.gap + mark.text for mark in marks) == CAPTION.text
    assert [mark.level for mark in marks[:4]] == ["sure", "likely", "open", "unsure"]
    assert marks[0].hints == ["it: 90.5%", "he: 8.2%", "end: 1.8%"]
    assert (marks[-1].text, marks[-1].hints[0]) == ("", "end of the caption: 49.7%")
    assert marks_of(Caption("a dog", -1.0, -1.0, True)) == []


def test_the_least_confident_come_first_and_once() -> None:
    surer = replace(CAPTION, text="it isn't", words=WORDS[:3], log_prob=-0.3)
    found = least_confident([surer, CAPTION, CAPTION, Caption("a dog", -1.0, -1.0, True)])
    assert [confidence for confidence, _ in found] == [CAPTION.confidence, surer.confidence]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "1.png")
    examples = [Example(tmp_path / "1.png", ("it is red",), "dev", str(n)) for n in (1, 2)]
    result = evaluation(tmp_path, examples, [[CAPTION], [CAPTION]])
    found = calibration([CAPTION, CAPTION], result.table.references)
    result = replace(result, calibration=found)
    return write_report(result, vocabulary(result), model=model_folder(tmp_path))


def test_the_page_has_chart_table_and_captions_without_script(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    before_script = page[: page.index('<script type="application/json"')]
    assert "Expected calibration error" in before_script
    listed = before_script[before_script.index('class="least-confident"') :]
    for level in [*(name for _, name in LEVELS), "open end"]:
        assert f'class="word {level}" tabindex="0"' in listed or level == "open end"
    assert "&lt;b&gt;: 30.1%" in listed
    assert "<b>:" not in page
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["rows"]
    assert [word[1] for word in rows[0]["words"]] == ["it", "is", "n't", "(", "red", ")", ""]


def test_a_report_without_words_has_no_such_section(tmp_path: Path) -> None:
    example = Example(tmp_path / "1.png", ("a dog",), "dev", "1")
    result = evaluation(tmp_path, [example], [[Caption("a dog", -1.0, -1.0, True)]])
    page = write_report(result, vocabulary(result), model=model_folder(tmp_path))
    assert "Word probabilities" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason=NO_BROWSER)
def test_a_word_shows_its_alternatives_to_mouse_and_keyboard(report: Path) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(report.as_uri())
        title = page.locator("#cards .card h3").first
        assert title.inner_text() == CAPTION.text
        tip = title.locator(".tip").first
        assert not tip.is_visible()
        title.locator(".word").first.hover()
        assert tip.inner_text().splitlines() == ["it: 90.5%", "he: 8.2%", "end: 1.8%"]
        page.mouse.move(0, 0)
        assert not tip.is_visible()
        page.locator("#cards .card").first.focus()
        page.keyboard.press("Tab")
        assert tip.is_visible()
        page.keyboard.press("Tab")
        assert not tip.is_visible()
        page.locator("#cards .card").nth(1).focus()
        assert title.locator(".word[tabindex='0']").count() == 0
        plain = browser.new_page(java_script_enabled=False)
        plain.goto(report.as_uri())
        plain.locator(".least-confident .word").first.focus()
        assert plain.locator(".least-confident .tip").first.is_visible()
