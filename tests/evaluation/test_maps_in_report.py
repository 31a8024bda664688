"""`captioner evaluate --explain`: each word of a card opens with its map."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import draw

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.data.dataset import Example
from captioner.evaluation.report import write_report
from captioner.evaluation.word_maps import WordMaps, maps_of_split

import toys
from browser import CHROMIUM, NO_BROWSER, chromium, wait_until
from report_toys import evaluation, model_folder, vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")


def rows_of(report: Path) -> list[dict[str, object]]:
    text = report.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    rows: list[dict[str, object]] = data["rows"]
    return rows


def test_packed_maps_keep_a_hundredth_of_the_largest_number() -> None:
    maps = torch.randn(5, 3, 4)
    step, height, width, text = WordMaps(maps, (0, 0, 1, 1)).packed()
    steps = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int8)
    found = steps.view(5, height, width) * step
    assert (height, width) == (3, 4)
    assert (found - maps).abs().max() <= maps.abs().max() / 254 + 1e-6
    flat = WordMaps(torch.zeros(2, 1, 1), (0, 0, 1, 1)).packed()
    assert base64.b64decode(flat[3]) == b"\0\0"


@pytest.fixture
def explained(tmp_path: Path) -> tuple[Path, Captioner]:
    captioner = toys.captioner(toys.encoder(grid=2), attention="spatial")
    picture = draw(0, (96, 64))
    picture.save(tmp_path / "1.png")
    names = ("1.png", "gone.png")
    examples = [Example(tmp_path / name, ("a red square",), "dev", name) for name in names]
    best = captioner.explain(picture, "a red square").caption
    result = evaluation(tmp_path, examples, [[best], [best]])
    maps = maps_of_split(captioner, result.table, result.captions)
    assert maps[1] is None
    result = replace(result, maps=maps)
    return write_report(result, vocabulary(result), model=model_folder(tmp_path)), captioner


def test_a_card_holds_the_maps_of_its_words(
    explained: tuple[Path, Captioner], tmp_path: Path
) -> None:
    report, captioner = explained
    first, gone = rows_of(report)
    found = captioner.explain(tmp_path / "1.png", "a red square")
    step, height, width, text = first["maps"]
    assert len(base64.b64decode(text)) == found.maps.numel() == 4 * height * width
    assert step == pytest.approx(found.maps.abs().max().item() / 127)
    assert first["seen"] == pytest.approx([1 / 6, 0, 5 / 6, 1])
    for word, places in zip(first["words"], found.maps, strict=True):
        assert word[3][-1] == f"the image adds {places.sum():+.2f} nats"
    assert "maps" not in gone
    assert "nats" not in str(gone["words"])


def test_maps_are_off_unless_asked_for(tmp_path: Path) -> None:
    config = toys.config(tmp_path)
    toys.captioner().save(tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--device", "cpu", "--split", "dev"]
    command += ["--data", str(config.data.root), "--output", str(tmp_path / "out")]
    for more, expected in ((["--explain"], True), ([], False)):
        done = CliRunner().invoke(main, [*command, *more])
        assert done.exit_code == 0, done.stderr
        rows = rows_of(tmp_path / "out" / "report.html")
        assert [("maps" in row) for row in rows] == [expected] * 6


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
@pytest.mark.slow
def test_a_word_opens_its_map_over_the_picture(explained: tuple[Path, Captioner]) -> None:
    report, _ = explained
    troubles: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: troubles.append(line.text))
        page.goto(report.as_uri())
        card = page.locator(".card").nth(0)
        card.scroll_into_view_if_needed()
        wait_until(page, "document.querySelector('.card img')?.naturalWidth > 0")
        words = card.locator("h3 .word")
        words.nth(1).click()
        canvas = card.locator("canvas")
        assert canvas.bounding_box() == card.locator("img").bounding_box()
        assert words.nth(1).get_attribute("aria-pressed") == "true"
        words.nth(2).press("Enter")
        pressed = [each.get_attribute("aria-pressed") for each in words.all()]
        assert pressed == ["false", "false", "true", "false"]
        words.nth(2).press("Enter")
        assert canvas.count() == 0
        other = page.locator(".card").nth(1).locator("h3 .word").nth(1)
        assert other.get_attribute("role") is None
    assert troubles == []
