"""The report in a real browser: Debian's Chromium, driven by Playwright.

apt-get install chromium && pip install 'captioner[test]'
REPORT_SCREENSHOTS=shots pytest tests/evaluation/test_report_browser.py    # keeps the pictures
"""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from captioner.data.dataset import Example
from captioner.evaluation.report import write_report

import toys
from browser import CHROMIUM, NO_BROWSER, chromium
from report_toys import caption, evaluation, scenes_report, vocabulary

pytest.importorskip("playwright.sync_api", reason=NO_BROWSER)
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER), pytest.mark.slow]

SCRIPT = "<script>window.hacked=1</script><img src=x onerror=hack()>"
CAPTIONS = [
    ("a red dog", True),
    ("a dog and a dog", True),
    ("two dogs", False),
    (SCRIPT, True),
    ("a <unk> dog", True),
]
REFERENCES = ("a red dog runs", "the dog")
CATS = ("a cat runs", "the cat")
MANY = 5000


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser):
    """`open_page(path, fragment="", **context)` -> page; no errors and no requests allowed."""
    contexts, troubles = [], []

    def open_(path, fragment="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url[:80]))
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector(".card")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [t for t in troubles if not re.match(r"file:.*report\.html|data:image/jpeg", t)] == []


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Five images, one of them broken, with a caption of each kind."""
    folder = tmp_path_factory.mktemp("few")
    names = ["red.png", "green.png", "blue.png", "<i>&.png", "broken.png"]
    colours = list(toys.COLOURS)
    examples = [
        Example(toys.draw(folder / name, colours[i]), REFERENCES if i < 3 else CATS, "dev", name)
        for i, name in enumerate(names)
    ]
    examples[4].image.write_text("no picture")
    captions = [
        [caption(text, -1.0 - i, finished=finished), caption("a cat", -9.0)]
        for i, (text, finished) in enumerate(CAPTIONS)
    ]
    result = evaluation(folder, examples, captions, train=["a red dog"])
    return write_report(result, vocabulary(result), model=folder / "model")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As many images as COCO's Karpathy splits have."""
    folder = tmp_path_factory.mktemp("many")
    image = toys.draw(folder / "red.png", "red")
    examples = [Example(image, REFERENCES * 2, "dev", str(i)) for i in range(MANY)]
    captions = [[caption(f"a red dog number {i}", -i)] for i in range(MANY)]
    result = evaluation(folder, examples, captions, resamples=2)
    return write_report(result, vocabulary(result), model=folder / "model")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return scenes_report(tmp_path_factory.mktemp("scenes"))


def shown(page):
    return page.locator(".card h3").all_text_contents()


def see_pictures(page):
    """Scroll to the gallery and wait until its first picture is decoded."""
    page.locator("#cards").evaluate("cards => cards.scrollIntoView()")
    page.wait_for_selector(".picture img")
    page.locator(".picture img").first.evaluate("image => image.decode()")


def texts(*indices):
    return [CAPTIONS[i][0] for i in indices]


def test_sorts_by_any_score_best_or_worst_first(few, open_page):
    page = open_page(few)
    assert shown(page) == texts(0, 1, 2, 3, 4)
    for key in page.locator("#sort option").evaluate_all("all => all.map(o => o.value)"):
        if not key:
            continue
        page.select_option("#sort", key)
        for order, sign in (("best", -1), ("worst", 1)):
            page.select_option("#order", order)
            if key == "log_prob":
                assert shown(page) == texts(*range(5))[::-sign]
                continue
            values = [float(v) for v in page.locator(".sorted dd").all_text_contents()]
            assert len(values) == 5
            assert values == sorted(values, reverse=sign < 0)
            assert values[0] != values[-1] or key == "bleu_4"  # no caption is that long
    assert "worst first by log-probability" in page.text_content("#count")


def test_filters_narrow_and_say_how_many_are_left(few, open_page):
    page = open_page(few)
    for flag, left in (
        ("unk", [4]),
        ("repetition", [1]),
        ("unfinished", [2]),
        ("verbatim", [0]),
    ):
        page.check(f"input[value={flag}]")
        assert shown(page) == texts(*left)
        assert page.text_content("#count") == f"{len(left)} of 5 images"
        assert page.locator(f".flags .{flag}").count() == len(left)
        page.uncheck(f"input[value={flag}]")
    page.check("input[value=unk]")
    page.check("input[value=verbatim]")
    assert shown(page) == []
    assert page.text_content("#count") == "0 of 5 images"
    assert page.get_attribute("#count", "role") == "status"


@pytest.mark.parametrize(
    ("query", "where", "left"),
    [
        ("dog", "caption", [0, 1, 4]),
        ("DOG!", "caption", [0, 1, 4]),
        ("dog*", "caption", [0, 1, 2, 4]),
        ("red dog", "caption", [0]),
        ("do", "caption", []),
        ("<unk>", "caption", [4]),
        ("  ", "caption", [0, 1, 2, 3, 4]),
        ("runs", "references", [0, 1, 2, 3, 4]),
        ("cat", "references", [3, 4]),
        ("dog cat", "references", []),
        ("REE", "name", [1]),
    ],
)
def test_searches_by_word(few, open_page, query, where, left):
    page = open_page(few)
    page.select_option("#where", where)
    page.fill("#query", query)
    assert shown(page) == texts(*left)


def test_a_caption_that_is_a_script_is_shown_and_not_run(few, open_page):
    page = open_page(few, "#open=1")
    card = page.locator(".card").nth(3)
    assert card.locator("h3").text_content() == SCRIPT
    assert card.locator(".name").text_content() == "<i>&.png"
    assert card.locator("h3 *, .name *").count() == 0
    assert page.evaluate("window.hacked") is None
    see_pictures(page)
    page.locator(".picture .missing").wait_for()
    assert page.locator(".missing").all_text_contents() == ["Image cannot be read: broken.png"]


def test_a_view_is_kept_in_the_address(few, open_page):
    page = open_page(few)
    page.fill("#query", "dog")
    page.select_option("#sort", "rouge_l")
    page.select_option("#order", "worst")
    page.check("input[value=repetition]")
    page.click("#theme")
    fragment = "#" + page.url.partition("#")[2]
    again = open_page(few, fragment)
    assert shown(again) == shown(page) == texts(1)
    assert again.text_content("#count") == "1 of 5 images, worst first by ROUGE-L"
    assert again.input_value("#query") == "dog"
    assert again.text_content("#theme") == "Theme: light"
    nonsense = open_page(few, "#sort=%3Cb%3E&in=x&order=y&flag=z&theme=q")
    assert shown(nonsense) == texts(0, 1, 2, 3, 4)
    assert nonsense.text_content("#theme") == "Theme: system"


def test_works_from_the_keyboard(few, open_page):
    page = open_page(few)

    def focused():
        return page.evaluate("document.activeElement.dataset.index ?? document.activeElement.id")

    page.keyboard.press("/")
    assert focused() == "query"
    page.keyboard.type("j/k dog")
    assert page.input_value("#query") == "j/k dog"
    page.fill("#query", "")
    page.keyboard.press("Escape")
    for key, at in (("j", "0"), ("j", "1"), ("k", "0"), ("k", "0"), ("ArrowRight", "1")):
        page.keyboard.press(key)
        assert focused() == at
    card = page.locator(".card").nth(1)
    for left_open in (2, 0):
        page.keyboard.press("Enter")
        assert card.locator("details[open]").count() == left_open
    outline = card.evaluate("card => getComputedStyle(card).outlineStyle")
    assert outline == "solid"


def test_speaks_to_screen_readers(few, open_page):
    page = open_page(few)
    see_pictures(page)
    unnamed = page.locator("input, select, button").evaluate_all(
        "all => all.filter(e => !(e.labels?.length || e.textContent.trim())).map(e => e.id)"
    )
    assert unnamed == []
    feed = page.get_by_role("feed", name="Gallery")
    cards = feed.get_by_role("article")
    assert cards.count() == 5
    assert cards.nth(1).get_attribute("aria-posinset") == "2"
    assert cards.nth(1).get_attribute("aria-setsize") == "5"
    assert feed.get_by_role("article", name="a dog and a dog").count() == 1
    assert page.locator(".picture img").first.get_attribute("alt") == REFERENCES[0]
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.locator("svg:not([aria-label])").count() == 0


def test_thousands_of_images_load_as_they_come_into_view(many, open_page):
    page = open_page(many)
    assert page.text_content("#count") == "5,000 of 5,000 images"
    see_pictures(page)
    assert 0 < page.locator(".picture img").count() < 60
    cards = page.locator(".card").count()
    assert cards < 300
    page.locator(".card").last.scroll_into_view_if_needed()
    page.wait_for_selector(f".card:nth-child({cards + 1})")
    page.wait_for_selector(f".card:nth-child({cards}) img")
    assert page.locator(".card").count() < MANY / 2
    assert page.locator(".card:not(:has(img))").count() > 0
    page.fill("#query", "4321")
    assert shown(page) == ["a red dog number 4321"]
    see_pictures(page)
    page.fill("#query", "")
    page.select_option("#sort", "log_prob")
    page.select_option("#order", "worst")
    assert shown(page)[0] == f"a red dog number {MANY - 1}"


def test_follows_the_system_theme_until_told_otherwise(scenes, open_page):
    def brightness(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light, dark = (open_page(scenes, color_scheme=scheme) for scheme in ("light", "dark"))
    assert brightness(light) > 700
    assert brightness(dark) < 100
    dark.click("#theme")
    assert brightness(dark) > 700
    dark.click("#theme")
    assert brightness(dark) < 100


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_looks(scenes, open_page, tmp_path, theme, width):
    """Leaves screenshots in $REPORT_SCREENSHOTS."""
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))
    size = {"width": width, "height": 2400}
    page = open_page(scenes, "#sort=cider_d&order=worst&open=1", viewport=size, color_scheme=theme)
    see_pictures(page)
    page.evaluate("window.scrollTo(0, 0)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.locator("main *").evaluate_all(
        f"all => all.filter(e => e.getBoundingClientRect().right > {width}).map(e => e.outerHTML)"
    )
    assert wide == []
    path = folder / f"report-{theme}-{width}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        assert picture.size == (width, 2400)
        assert len(picture.convert("RGB").getcolors(1 << 22)) > 1000
