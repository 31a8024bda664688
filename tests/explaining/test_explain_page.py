"""The page of `captioner explain`: one file, whose words open in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw

from captioner.captioner import Captioner
from captioner.encoder.preprocess import Preprocess
from captioner.explaining.html_page import write_page
from captioner.page.one_file import joined
from captioner.system.ownership import owns

import toys
from browser import AXE, CHROMIUM, NO_AXE, NO_BROWSER, chromium, faults, wait_until

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)

CAPTION = "a red square in the middle"
SEEN = (1 / 6, 0.0, 5 / 6, 1.0)


def written(path: Path, captioner: Captioner, name: str = "photo.jpg", **how: Any) -> str:
    picture = draw(3, (96, 64))
    found = captioner.explain(picture, CAPTION, **how)
    write_page(found, picture, SEEN, path, name=name, model="toy")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explained.html"
    written(path, toys.captioner(toys.encoder(grid=3), attention="spatial"))
    return path


def test_the_page_holds_all_and_its_policy_allows_no_more(looking: Path) -> None:
    text = looking.read_text(encoding="utf-8")
    assert owns(looking, "explanation")
    assert set(re.findall(r"https?://[\w.-]+", text)) <= {"http://www.w3.org"}
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    policy = re.search(r'Policy" content="([^"]+)', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_numbers_are_those_of_the_explanation(looking: Path) -> None:
    captioner = toys.captioner(toys.encoder(grid=3), attention="spatial")
    found = captioner.explain(draw(3, (96, 64)), CAPTION)
    text = looking.read_text(encoding="utf-8")
    answers = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [answer["map_source"] for answer in answers] == ["gradient", "attention"]
    for answer in answers:
        assert answer["image"]["seen"] == pytest.approx(SEEN, abs=1e-3)
        assert [word["text"] for word in answer["words"]] == [*CAPTION.split(), ""]
        assert answer["words"][-1]["end"] is True
    for word, places, one, other in zip(
        found.caption.words, found.maps, *(answer["words"] for answer in answers), strict=True
    ):
        assert one["log_prob"] == pytest.approx(word.log_prob, rel=1e-3)
        assert len(one["alternatives"]) == len(word.alternatives) == 4
        assert sum(map(sum, one["map"])) == pytest.approx(places.sum().item(), abs=1e-3)
        assert other["sentinel"] == pytest.approx(word.attention.sentinel, rel=1e-3)


def test_names_cannot_run_as_code(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\x1b</title>.jpg"
    text = written(tmp_path / "x.html", toys.captioner(), name=name)
    assert "<script>alert" not in text and "\x1b" not in text


def test_modules_become_one_script_without_imports() -> None:
    script = joined("explain")
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    order = re.findall(r"^const module_(\w+) = ", script, re.MULTILINE)
    assert order[-1] == "explain" and len(order) == len(set(order))
    assert order.index("element") < order.index("words") < order.index("word")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    contexts, troubles = [], []

    def visit(path: Path, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console", lambda line: troubles.append(line.text) if line.type == "error" else None
        )
        page.on(
            "request",
            lambda each: (
                None if each.url.startswith(("file:", "data:")) else troubles.append(each.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


PAINTED = """() => {
    const map = document.getElementById("map");
    const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
    return pixels.filter((value, i) => i % 4 === 3 && value).length / (pixels.length / 4);
}"""


@needs_browser
@pytest.mark.slow
def test_a_word_opens_with_its_map_and_its_alternatives(looking: Path, open_page: Any) -> None:
    page = open_page(looking)
    words = page.locator("#words .word")
    assert words.count() == len(CAPTION.split()) + 1
    assert page.locator('.word[aria-pressed="true"]').count() == 1  # one is open at first
    page.keyboard.press("Escape")
    words.nth(1).click()
    assert page.locator("#word h3").inner_text().startswith("red")
    assert page.locator("#word .alternatives .row").count() == 5
    assert page.locator("#word button").count() == 0  # there is no model to write on
    assert "nats" in page.locator("#word").inner_text()
    wait_until(page, f"({PAINTED})() > 0.1")
    page.keyboard.press("ArrowRight")
    assert page.locator("#word h3").inner_text().startswith("square")
    page.keyboard.press("Escape")
    assert page.locator('.word[aria-pressed="true"]').count() == 0
    assert page.locator("#map").is_hidden()


@needs_browser
@pytest.mark.slow
def test_attention_is_another_map_of_the_same_words(looking: Path, open_page: Any) -> None:
    page = open_page(looking)
    page.keyboard.press("Escape")
    page.locator("#words .word").nth(1).click()
    page.get_by_label("attention").check()
    assert "attention" in page.locator("#word").inner_text()
    assert "nats" not in page.locator("#word").inner_text()
    assert page.locator("#word h3").inner_text().startswith("red")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_fits_and_works_without_scripts(
    tmp_path: Path, open_page: Any, width: int
) -> None:
    written(tmp_path / "x.html", toys.captioner(), method="occlusion", name="n" * 200)
    for scripts in (True, False):
        page = open_page(
            tmp_path / "x.html",
            java_script_enabled=scripts,
            viewport={"width": width, "height": 800},
        )
        page.get_by_text("All words").click()
        assert page.locator("tbody tr").count() == len(CAPTION.split()) + 1
        assert page.get_by_label("attention").count() == 0
        if scripts:
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of a caption that was searched for, and how it was written."""
    path, captioner = tmp_path_factory.mktemp("trace") / "explained.html", toys.captioner()
    picture, options = draw(3, (96, 64)), captioner.settings(beam_size=4)
    found, trace = captioner.explain(picture, None, options), captioner.trace(picture, beam_size=4)
    how: dict[str, Any] = {"trace": trace, "options": options}
    write_page(found, picture, SEEN, path, name="photo.jpg", model="toy", **how)
    return path, trace.to_json()


def test_a_page_holds_how_its_caption_was_written(
    searched: tuple[Path, dict[str, Any]], looking: Path
) -> None:
    path, trace = searched
    found = re.search(r'id="trace">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found
    assert json.loads(found[1]) == {"trace": trace, "settings": {"search": "beam", "beam_size": 4}}
    assert 'id="trace"' not in looking.read_text(encoding="utf-8")  # its caption was given


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1200])
def test_the_beam_and_the_hidden_state_are_drawn(
    searched: tuple[Path, dict[str, Any]], open_page: Any, width: int
) -> None:
    path, trace = searched
    page = open_page(path, viewport={"width": width, "height": 800})
    assert page.locator("#beam .node.chosen").count() == len(trace["beam"]["chosen"])
    assert "4 best sentences" in page.locator("#beam .note").inner_text()
    assert "write on" not in page.locator("#beam").inner_text()  # there is no model
    page.locator("#beam .node.chosen rect").first.focus()
    page.keyboard.press("Enter")
    assert "on the way to the chosen caption" in page.locator("#beam .readout").inner_text()
    columns = page.locator("#state .column")
    assert columns.count() == len(trace["state"]["norms"])
    page.locator("#words .word").nth(1).click()
    assert page.locator("#state .column.chosen").get_attribute("data-time") == "2"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not AXE, reason=NO_AXE)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_axe_finds_no_fault(
    searched: tuple[Path, dict[str, Any]], looking: Path, open_page: Any, scheme: str, width: int
) -> None:
    for path in (looking, searched[0]):
        page = open_page(path, viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert faults(page) == []  # with a word open
        page.get_by_text("All words").click()
        page.locator("details:visible").evaluate_all("all => all.forEach(d => { d.open = true; })")
        assert faults(page) == []
        page.keyboard.press("Escape")
        assert faults(page) == []


def test_a_crop_is_a_box_in_the_picture() -> None:
    assert Preprocess(64, 64).seen(96, 64) == pytest.approx(SEEN)
