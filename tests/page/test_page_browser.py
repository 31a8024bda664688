"""The page in a real browser, on a toy server: Debian's Chromium, driven by Playwright.

apt-get install chromium && pip install 'captioner[test]'
PAGE_SCREENSHOTS=shots pytest tests/page/test_page_browser.py    # keeps the pictures
"""

import io
import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from captioner.config import bundled

from browser import AXE, CHROMIUM, NO_AXE, NO_BROWSER, chromium, faults
from page_toys import OTHERS, SENTENCES, toy_server

expect = pytest.importorskip("playwright.sync_api", reason=NO_BROWSER).expect
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER), pytest.mark.slow]

SENTENCE = SENTENCES["toys"]
WORDS = SENTENCE.split()
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
FILE = """([bytes, name, type]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(bytes)], name, { type }));
    return data;
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium(*FAKE_CAMERA) as running:
        yield running


@pytest.fixture(scope="module")
def server():
    with toy_server() as toy:
        yield toy


@pytest.fixture
def toy(server):
    server.asked.clear()
    server.failures.clear()
    server.slow_files.clear()
    server.halves.clear()
    server.token, server.slow, server.no_maps = "", 0.0, ""
    return server


@pytest.fixture
def open_page(browser, toy):
    """`open_page(fragment="", **context)` -> page; other servers and errors are refused."""
    contexts, troubles = [], []

    def open_(fragment="", **options):
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url[:80]))
        page.goto(toy.address + fragment)
        expect(page.locator("#beam_size")).to_have_value("3")
        return page

    yield open_
    for context in contexts:
        context.close()
    # The console names the status of an answer that is an error.
    own = rf"{toy.address}|blob:{toy.address}|data:image/png"
    expected = f"{own}|Failed to load resource|Canvas2D: Multiple readback"
    assert [trouble for trouble in troubles if not re.match(expected, trouble)] == []


@pytest.fixture
def page(open_page):
    return open_page()


def settled(page):
    """Wait for the caption, then for maps and trace."""
    page.wait_for_selector(".word")
    page.wait_for_selector("#beam svg", state="attached")
    return page


def take_example(page, name="dog"):
    page.click(f".example[data-name='{name}.jpg']")
    return settled(page)


def caption(page):
    return " ".join(page.locator(".word:not(.end) .text").all_text_contents())


def jpeg(size=(64, 48), colour="red", **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", **options)
    return file.getvalue()


def as_file(page, content, name="red.jpg", kind="image/jpeg"):
    return page.evaluate_handle(FILE, [[*content], name, kind])


def paste(page, data):
    page.evaluate(
        """(clipboardData) => document.body.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        data,
    )


def test_an_example_is_captioned_word_by_word(page, toy):
    take_example(page)
    assert caption(page) == SENTENCE
    assert page.locator(".word").count() == len(WORDS) + 1  # the end
    assert page.text_content("#announce") == f"Caption: {SENTENCE}."
    assert page.get_attribute("#image", "alt") == SENTENCE
    first, second = (query for query, _ in toy.asked)
    assert "maps" not in first  # fast
    assert second == first | {"maps": ["attention"], "trace": ["true"]}
    sent = {body for _, body in toy.asked}
    assert sent == {bundled("data/pictures/dog.jpg").read_bytes()}  # small: as it is


def test_words_arrive_one_after_another_unless_motion_is_reduced(open_page):
    moving = take_example(open_page(reduced_motion="no-preference"))
    delays = moving.locator(".word").evaluate_all(
        "all => all.map(word => parseFloat(getComputedStyle(word).animationDelay))"
    )
    assert delays == pytest.approx([0.11 * place for place in range(len(WORDS) + 1)])
    still = take_example(open_page())
    names = still.locator("*").evaluate_all(
        "all => all.map(e => getComputedStyle(e).animationName)"
    )
    assert {*names} == {"none"}


def test_a_dropped_picture_is_captioned(page, toy):
    content = jpeg()
    data = as_file(page, content)
    page.dispatch_event("#caption", "dragenter", {"dataTransfer": data})
    assert page.locator("#drop-here").is_visible()
    page.dispatch_event("#caption", "drop", {"dataTransfer": data})
    settled(page)
    assert not page.locator("#drop-here").is_visible()
    assert toy.asked[0][1] == content


def test_a_dropped_link_is_not_followed(page, toy):
    data = page.evaluate_handle(
        """() => { const data = new DataTransfer();
            data.setData("text/uri-list", "http://example.com/a.jpg"); return data; }"""
    )
    page.dispatch_event("#frame", "drop", {"dataTransfer": data})
    assert "links are not followed" in page.text_content("#trouble")
    assert toy.asked == []


def test_a_pasted_picture_is_captioned(page, toy):
    content = jpeg(colour="blue")
    paste(page, as_file(page, content, "image.png"))
    settled(page)
    assert toy.asked[0][1] == content
    paste(page, page.evaluate_handle("() => new DataTransfer()"))
    assert "no picture on the clipboard" in page.text_content("#trouble")
    assert caption(page) == SENTENCE


def test_a_chosen_file_is_captioned(page, toy, tmp_path):
    path = tmp_path / "red.jpg"
    path.write_bytes(jpeg())
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(path)
    settled(page)
    assert toy.asked[0][1] == path.read_bytes()


def test_the_camera_takes_a_picture(page, toy):
    page.click("#camera")
    expect(page.locator("#video")).to_have_js_property("paused", False)
    page.click("#take")
    settled(page)
    assert Image.open(io.BytesIO(toy.asked[0][1])).format == "JPEG"
    assert not page.locator("#camera-dialog").is_visible()
    assert page.evaluate("document.getElementById('video').srcObject.active") is False


def test_a_phone_opens_its_camera(open_page):
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    with page.expect_file_chooser() as chooser:
        page.click("#camera")
    assert chooser.value.element.get_attribute("capture") == "environment"


def test_48_megapixels_are_scaled_and_upright(page, toy, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    path = tmp_path / "phone.jpg"
    picture = Image.new("RGB", (8000, 6000), "blue")
    picture.paste("red", (0, 0, 8000, 3000))  # the right half, once upright
    picture.save(path, exif=exif)
    page.set_input_files("#file", path)
    settled(page)
    sent = Image.open(io.BytesIO(toy.asked[0][1]))
    assert sent.width * sent.height <= 1_510_000
    assert sent.height / sent.width == pytest.approx(8 / 6, abs=0.01)
    red, _, blue = sent.convert("RGB").getpixel((sent.width - 50, sent.height // 2))
    assert red > 200
    assert blue < 60
    shown = page.evaluate("[image.naturalWidth, image.naturalHeight]")
    assert shown == list(sent.size)


def test_a_words_probability_is_its_shade_and_a_number_on_focus(page):
    take_example(page)
    sure, unsure = page.locator(".word").nth(0), page.locator(".word").nth(4)
    shades = [word.evaluate("w => getComputedStyle(w).backgroundColor") for word in (sure, unsure)]
    opacity = [float(re.split(r"[/,] ?", shade)[-1].rstrip(")")) for shade in shades]
    assert opacity[0] < 0.05
    assert opacity[1] > 0.4
    page.mouse.move(0, 0)
    number = unsure.locator(".chance")
    assert number.text_content() == "12%"
    assert number.evaluate("n => getComputedStyle(n).opacity") == "0"
    unsure.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert number.evaluate("n => getComputedStyle(n).opacity") == "1"


def overlay(page, x, y):
    """The map's opacity at a place, 0 to 1, each from 0 to 1."""
    return page.evaluate(
        """([x, y]) => { const map = document.getElementById("map");
            return map.getContext("2d").getImageData(x * map.width, y * map.height, 1, 1).data[3]
                / 255; }""",
        [x, y],
    )


def test_a_chosen_word_has_its_map_and_alternatives(page):
    take_example(page)
    assert page.locator("#map").is_hidden()
    page.locator(".word").nth(2).click()
    assert page.locator("#map").is_visible()
    # The crop shows the middle 3/4 of the width: the spot lies at 0.125 + 0.75 * 4.17 / 7.
    assert overlay(page, 0.57, 0.62) < overlay(page, 0.25, 0.1) - 0.2
    assert overlay(page, 0.03, 0.6) == pytest.approx(overlay(page, 0.98, 0.1), abs=0.02)
    boxes = [page.locator(each).bounding_box() for each in ("#map", "#image")]
    assert boxes[0] == boxes[1]
    panel = page.locator("#word")
    assert panel.locator("h3").text_content() == "dog 86%"
    assert "given the picture and a brown" in panel.text_content()
    assert "75% of its attention" in panel.text_content()
    texts = panel.locator(".alternatives .text").all_text_contents()
    assert texts == ["dog", *OTHERS["toys"][:4], "end of the sentence"]
    chances = panel.locator(".alternatives .chance").all_text_contents()
    assert chances == ["86%", "7.0%", "3.5%", "1.8%", "0.9%", "0.4%"]
    assert "dog, 86%. Strongest" in page.text_content("#announce")
    page.locator(".word").nth(2).click()
    assert page.locator("#map").is_hidden()
    page.locator(".word").first.click()  # its spot lies at 0.29; 0.1 is outside the crop
    assert overlay(page, 0.1, 0.36) == pytest.approx(0.6, abs=0.01)
    assert overlay(page, 0.29, 0.36) < 0.4


def test_an_alternative_writes_the_sentence_on(page, toy):
    take_example(page)
    page.locator(".word").nth(2).click()
    toy.asked.clear()
    page.get_by_role("button", name="Write on with cat").click()
    expect(page.locator(".word").nth(2)).to_contain_text("cat")
    assert toy.asked[0][0]["start"] == ["a brown cat"]
    assert caption(page) == "a brown cat runs through the tall grass"
    assert page.text_content("#forced q") == "a brown cat"
    assert page.input_value("#start") == "a brown cat"
    fresh = page.locator(".word").evaluate_all("all => all.map(w => w.matches('.fresh'))")
    assert fresh == [False, False] + [True] * 7
    page.click("#free")
    expect(page.locator(".word").nth(2)).to_contain_text("dog")
    assert page.locator("#forced").is_hidden()


def test_a_start_is_spelt_as_the_caption_is(page):
    """Words get spaces between them; characters and pieces of words do not."""
    starts = page.evaluate(
        """async () => {
            const { textWith } = await import("/page/words.js");
            const start = (caption, texts, place, other) =>
                textWith(caption, texts.map((text) => ({ text })), place, other);
            return [
                start("a dog", ["a", "dog"], 0, "two"),
                start("a dog", ["a", "dog"], 1, "cat"),
                start("it isn't red", ["it", "is", "n't", "red"], 2, "not"),
                start("it isn't red", ["it", "is", "n't", "red"], 3, "big"),
                start("两只狗", ["两", "只", "狗"], 2, "猫"),
                start("a skateboard", ["a", "skate", "board"], 2, "r"),
                start("a dog", ["a", " ", "d", "o", "g"], 2, "c"),
            ];
        }"""
    )
    assert starts == ["two", "a cat", "it is not", "it isn't big", "两只猫", "a skater", "a c"]


def test_a_model_without_maps_has_a_trace_all_the_same(page, toy):
    toy.no_maps = "maps: the CNN has no places"
    take_example(page)
    page.locator(".word").nth(1).click()
    expect(page.locator("#word")).to_contain_text("There is no map: maps: the CNN has no places")
    assert page.locator("#map").is_hidden()
    assert page.locator("#trouble").text_content() == ""


def test_the_n_best_captions_have_scores_and_the_chosen_one_a_mark(page):
    take_example(page)
    rows = page.locator("#best tbody tr")
    assert rows.count() == 3  # as many as the beam is wide
    assert "chosen" in rows.nth(0).text_content()
    assert page.locator("#best [aria-current]").count() == 1
    cells = [rows.nth(i).locator("td").all_text_contents() for i in range(3)]
    assert [row[2] for row in cells] == ["−0.90", "−1.11", "−1.32"]
    assert cells[1][1] == "a brown dog runs through the tall white"
    assert rows.nth(1).locator(".same").text_content() == "a brown dog runs through the tall"


def test_the_beam_is_a_tree_over_time(page, toy):
    take_example(page)
    page.click("#tab-beam")
    nodes = page.locator("#beam .node")
    steps = len(WORDS) + 1
    assert nodes.count() == 6 * steps
    assert page.locator("#beam .node.chosen").count() == steps
    assert page.locator("#beam .node.cut").count() == 3 * steps
    x, y = (nodes.evaluate_all(f"all => all.map(n => n.getBBox().{side})") for side in ("x", "y"))
    assert len({*x}) == steps
    assert len({*y}) == 6
    grey, ink = (
        page.locator(f"#beam .node.{kind} text").first.evaluate("t => getComputedStyle(t).fill")
        for kind in ("cut", "kept")
    )
    assert grey != ink
    nodes.locator("rect").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")  # the start has no sentence
    assert "white — last word 0.8%, score −0.90, kept." in page.text_content("#beam .readout")
    page.locator("#beam-step").fill("2")
    hidden = page.locator("#beam .node").evaluate_all(
        "all => all.filter(n => getComputedStyle(n).visibility === 'hidden').length"
    )
    assert hidden == 6 * (steps - 2)
    toy.asked.clear()
    page.keyboard.press("Home")
    nodes.nth(2).locator("rect").press("Enter")
    expect(page.locator(".word").first).to_contain_text("white")
    assert toy.asked[0][0]["start"] == ["white"]


def test_a_wide_beam_shows_its_best_first(page):
    take_example(page)
    page.click("#tab-settings")
    page.fill("#beam_size", "12")
    page.click("text=Write again")
    settled(page)
    page.click("#tab-beam")
    nodes, steps = page.locator("#beam .node"), len(WORDS) + 1
    expect(page.locator("#beam .node.chosen")).to_have_count(steps)
    assert 6 * steps <= nodes.count() < 24 * steps
    page.click(f"text=Show all {24 * steps}")
    assert nodes.count() == 24 * steps
    page.click("text=Show the best only")
    assert nodes.count() < 24 * steps


def test_the_hidden_state_through_time(page):
    take_example(page)
    page.click("#tab-state")
    state = page.locator("#state svg")
    assert state.locator(".column").count() == len(WORDS) + 2  # the image first, the end last
    labels = state.locator(".column .label").all_text_contents()
    assert labels[:4] == ["image", "a", "brown", "dog"]
    assert "Heat map of 48 units over 10 times" in state.get_attribute("aria-label")
    assert state.locator(".bar").count() == 10 + 9  # norms, influences
    sizes = state.locator(".heat").evaluate(
        "image => new Promise((done) => { const i = new Image(); i.src = image.href.baseVal;"
        " i.onload = () => done([i.naturalWidth, i.naturalHeight]); })"
    )
    assert sizes == [10, 48]
    state.locator(".column").nth(3).locator(".label").click(force=True)
    assert page.locator(".word[aria-pressed=true] .text").text_content() == "dog"
    assert state.locator(".column.chosen .label").text_content() == "dog"
    box = state.locator(".heat").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 2)
    assert "Unit 0 from the image: 0.00" in page.text_content("#state .readout")
    page.locator("#state summary").click()
    assert page.locator("#state tbody tr").count() == 10


def test_settings_are_sent_and_explained(page, toy):
    take_example(page)
    page.click("#tab-settings")
    toy.asked.clear()
    page.fill("#beam_size", "5")
    page.fill("#length_penalty", "0")
    page.fill("#start", "a photo of")
    page.fill("#forbid", "dog, grass")
    page.click("text=Write again")
    expect(page.locator("#best tbody tr")).to_have_count(5)
    assert toy.asked[0][0] == {
        "beam_size": ["5"],
        "length_penalty": ["0"],
        "start": ["a photo of"],
        "forbid": ["dog", "grass"],
        "n_best": ["5"],
        "words": ["5"],
    }
    assert "forbid=grass" in page.text_content("#request")
    assert caption(page).startswith("a photo of")
    toy.asked.clear()
    page.check("input[value=sample]")
    assert page.locator("#beam_size").is_hidden()
    page.fill("#temperature", "0.5")
    page.keyboard.press("Enter")
    expect(page.locator("#request")).to_contain_text("temperature=0.5")
    expect(page.locator("#caption")).to_have_attribute("aria-busy", "false")
    asked = toy.asked[0][0]
    assert (asked["search"], asked["temperature"]) == (["sample"], ["0.5"])
    assert not asked.keys() & {"beam_size", "length_penalty"}
    page.select_option("#maps", "gradient")
    page.click("text=Write again")
    expect(page.locator("#caption")).to_have_attribute("aria-busy", "false")
    page.locator(".word").first.click()
    expect(page.locator("#word")).to_contain_text("Orange places")
    assert toy.asked[-1][0]["maps"] == ["gradient"]
    page.click("text=The model's own settings")
    assert page.input_value("#beam_size") == "3"
    links = page.locator(".meaning").evaluate_all("all => all.map(a => a.href)")
    assert len(links) == 10
    page.goto(links[0])
    ids = {*page.locator("dt").evaluate_all("all => all.map(e => e.id)")}
    assert {link.partition("#")[2] for link in links} <= ids


def test_an_invalid_setting_is_not_sent(page, toy):
    take_example(page)
    page.click("#tab-settings")
    toy.asked.clear()
    page.fill("#beam_size", "0")
    page.click("text=Write again")
    assert page.evaluate("document.activeElement.id") == "beam_size"
    page.click("#tab-best")
    page.click(".example[data-name='beach.jpg']")
    expect(page.locator("#beam_size")).to_be_focused()  # on the tab where it is seen
    assert toy.asked == []


def test_another_model_has_its_own_settings_and_captions(page, toy):
    take_example(page)
    page.select_option("#model", "arabic")
    expect(page.locator(".word").first).to_contain_text("كلب")
    assert toy.asked[-1][0]["model"] == ["arabic"]


def test_right_to_left_captions_run_from_the_right(page):
    take_example(page)
    page.select_option("#model", "arabic")
    expect(page.locator(".word").first).to_contain_text("كلب")
    left = page.locator(".word").evaluate_all("all => all.map(w => w.getBoundingClientRect().left)")
    assert left[0] > left[1] > left[2]
    page.locator(".word").nth(1).click()
    page.keyboard.press("ArrowLeft")  # onwards
    assert page.locator(".word[aria-pressed=true]").evaluate("w => w.matches(':nth-child(3)')")
    assert page.locator("#word h3").evaluate("h => getComputedStyle(h).direction") == "rtl"
    chance = page.locator("#word h3 small")
    assert chance.evaluate("h => getComputedStyle(h).direction") == "ltr"


def test_a_caption_that_is_a_script_is_shown_and_not_run(page):
    take_example(page)
    page.select_option("#model", "hostile")
    expect(page.locator(".word").first).to_contain_text("<script>")
    for tab in ("best", "beam", "state", "settings"):
        page.click(f"#tab-{tab}")
    assert caption(page) == SENTENCES["hostile"]
    assert page.evaluate("window.hacked") is None
    assert page.locator("#words img, #best img, #beam script").count() == 0


def test_an_error_is_one_sentence_beside_the_picture_which_stays(page, toy):
    take_example(page)
    shown = page.get_attribute("#image", "src")
    toy.failures.append((503, {"error": "busy: no caption after 30 s; try again"}))
    page.click("#tab-settings")
    page.click("text=Write again")
    trouble = page.get_by_role("alert")
    trouble.get_by_text("Busy: no caption after 30 s; try again.").wait_for()
    assert page.get_attribute("#image", "src") == shown
    assert caption(page) == SENTENCE
    trouble.get_by_role("button", name="Try again").click()
    expect(trouble).to_have_text("")


def test_a_file_that_is_no_picture_leaves_the_last_one(page, toy):
    take_example(page)
    toy.asked.clear()
    page.dispatch_event(
        "#frame", "drop", {"dataTransfer": as_file(page, b"hello", "notes.txt", "text/plain")}
    )
    page.get_by_role("alert").get_by_text("“notes.txt” is not a picture").wait_for()
    assert toy.asked == []
    assert caption(page) == SENTENCE
    toy.failures.append((415, {"error": "image: broken"}))  # only the server can say
    page.dispatch_event("#frame", "drop", {"dataTransfer": as_file(page, b"broken")})
    page.get_by_role("alert").get_by_text("“red.jpg”: broken.").wait_for()
    assert page.get_by_role("button", name="Try again").count() == 0  # it stays broken
    assert page.locator("#picture").is_visible()
    assert caption(page) == SENTENCE


def test_the_words_of_one_picture_are_never_beside_another(page, toy):
    take_example(page)
    page.locator(".word").nth(2).click()
    toy.failures.append((422, {"error": "image: damaged"}))
    page.click(".example[data-name='beach.jpg']")
    page.get_by_role("alert").get_by_text("“beach.jpg”: damaged.").wait_for()
    for part in ("#words", "#result", "#legend", "#map"):
        assert page.locator(part).is_hidden(), part
    assert page.locator("#guide").is_visible()
    for tab in ("best", "beam", "state"):
        page.click(f"#tab-{tab}")
        expect(page.locator(f"#{tab}")).to_have_text("There is no caption of this picture yet.")
    page.set_viewport_size({"width": 900, "height": 900})  # draws the map anew, if there is one
    page.keyboard.press("Escape")
    assert page.locator("#map").is_hidden()
    take_example(page, "skier")
    assert caption(page) == SENTENCE


def test_a_server_that_is_gone_is_said(page):
    page.route("**/v1/caption*", lambda route: route.abort())
    page.click(".example[data-name='dog.jpg']")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    assert page.locator("#image").is_visible()
    assert page.get_by_role("button", name="Try again").count() == 1


def test_the_newest_picture_wins(page, toy):
    toy.slow = 0.3
    page.click(".example[data-name='dog.jpg']")
    expect(page.locator("#caption")).to_have_attribute("aria-busy", "true")
    toy.slow = 0.0
    take_example(page, "beach")
    page.wait_for_timeout(400)
    assert "blob:" in page.get_attribute("#image", "src")
    assert toy.asked[-1][1] == bundled("data/pictures/beach.jpg").read_bytes()
    assert page.get_by_role("alert").text_content() == ""


def test_the_newest_picture_wins_though_its_file_comes_first(page, toy):
    toy.slow_files["/page/dog.jpg"] = 0.5
    page.click(".example[data-name='dog.jpg']")
    take_example(page, "beach")
    page.wait_for_timeout(800)
    beach = bundled("data/pictures/beach.jpg").read_bytes()
    assert {body for _, body in toy.asked} == {beach}


def test_an_answer_is_dropped_while_it_comes_in(page, toy):
    toy.halves.append(1)
    page.click(".example[data-name='dog.jpg']")
    page.locator(".word").first.click()  # the answer with the maps is on its way
    page.wait_for_timeout(200)
    page.evaluate(
        """() => { window.said = []; new MutationObserver(() => said.push(trouble.textContent))
            .observe(trouble, { childList: true }); }"""
    )
    # A picture of another shape resizes the frame, which draws the map anew.
    page.dispatch_event("#frame", "drop", {"dataTransfer": as_file(page, jpeg((48, 96)))})
    expect(page.locator("#image")).to_have_js_property("naturalWidth", 48)
    settled(page)
    page.locator(".word").first.click()
    assert page.locator("#map").is_visible()
    assert {*page.evaluate("said")} <= {""}
    assert caption(page) == SENTENCE


def test_an_answer_that_ends_too_early_is_said(page, toy):
    toy.halves.append(-0.1)
    page.click(".example[data-name='dog.jpg']")
    page.get_by_role("alert").get_by_text("The answer ended too early").wait_for()
    assert caption(page) == SENTENCE
    page.get_by_role("button", name="Try again").click()
    settled(page)
    expect(page.get_by_role("alert")).to_have_text("")


def test_a_token_is_asked_for_once(open_page, toy, browser):
    toy.token = "secret"
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.goto(toy.address)
    page.locator("#token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("This is not the token").wait_for()
    page.locator("#token").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#beam_size")).to_have_value("3")
    take_example(page)
    page.context.close()
    linked = open_page("#token=secret")
    assert "secret" not in linked.url
    take_example(linked)


def test_works_from_the_keyboard(page):
    stops = []
    for _ in range(10):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert stops[:6] == ["skip", "model", "theme", "choose", "camera", "example"]
    page.locator(".example").first.press("Enter")
    settled(page)
    page.locator(".word").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("#word h3").text_content() == "grass 78%"
    page.keyboard.press("ArrowLeft")  # the choice follows
    assert page.locator("#word h3").text_content() == "tall 33%"
    page.keyboard.press("Escape")
    assert page.locator("#map").is_hidden()
    page.locator("#tab-best").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#beam").is_visible()
    assert page.locator("#best").is_hidden()


def test_speaks_to_screen_readers(page):
    take_example(page)
    page.locator(".word").nth(2).click()
    assert (
        page.get_by_role("toolbar", name="Words of the caption")
        .get_by_role("button", name="dog 86%", pressed=True)
        .is_visible()
    )
    for tab in ("N-best", "Beam", "Hidden state", "Settings"):
        page.get_by_role("tab", name=tab).click()
        assert page.get_by_role("tabpanel", name=tab).is_visible()
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.locator("#announce").get_attribute("role") == "status"


def test_play_chooses_one_word_after_another(page):
    page.clock.install()
    take_example(page)
    page.click("#play")
    for word in WORDS[:3]:
        page.clock.run_for(900 if word != WORDS[0] else 1)
        assert page.locator(".word[aria-pressed=true] .text").text_content() == word
    page.click("#play")
    page.clock.run_for(2000)
    assert page.locator(".word[aria-pressed=true] .text").text_content() == WORDS[2]


def test_the_result_is_taken_away(open_page, toy):
    page = open_page(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    take_example(page)
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == SENTENCE
    with page.expect_download() as download:
        page.click("#json")
    assert download.value.suggested_filename == "dog.json"
    value = json.loads(Path(download.value.path()).read_text())
    assert (value["file_name"], value["caption"]) == ("dog.jpg", SENTENCE)
    assert value["words"][0]["map"]
    page.locator(".word").nth(2).click()
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "dog-dog.png"
    with (
        Image.open(download.value.path()) as saved,
        Image.open(io.BytesIO(toy.asked[0][1])) as sent,
    ):
        assert saved.width == sent.width == 640
        assert saved.height > sent.height
        # Lit where the word came from, dimmed elsewhere.
        differ = [
            sum(abs(a - b) for a, b in zip(saved.getpixel(at)[:3], sent.getpixel(at), strict=True))
            for at in ((20, 300), (600, 440))
        ]
        assert min(differ) > 60


def test_follows_the_system_theme_until_told_otherwise(open_page):
    def brightness(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light, dark = (open_page(color_scheme=scheme) for scheme in ("light", "dark"))
    assert brightness(light) > 700
    assert brightness(dark) < 100
    dark.click("#theme")
    assert dark.text_content("#theme") == "Theme: light"
    assert brightness(dark) > 700
    dark.reload()
    assert brightness(dark) > 700


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375, 320])
def test_looks(open_page, tmp_path, theme, width):
    """Leaves screenshots in $PAGE_SCREENSHOTS; nothing is wider than the window."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS", tmp_path))
    phone = {"is_mobile": True, "has_touch": True} if width < 500 else {}
    page = open_page(viewport={"width": width, "height": 1200}, color_scheme=theme, **phone)
    assert page.get_by_text("Tap to choose a picture").is_visible() == bool(phone)
    page.screenshot(path=folder / f"page-{theme}-{width}-empty.png")
    take_example(page)
    page.locator(".word").nth(2).click()
    for tab in ("best", "beam", "state", "settings"):
        page.click(f"#tab-{tab}")
        page.evaluate("window.scrollTo(0, 0)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        path = folder / f"page-{theme}-{width}-{tab}.png"
        page.screenshot(path=path)
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 22)) > 1000


@pytest.mark.skipif(not AXE, reason=NO_AXE)
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_fault(open_page, toy, theme, width):
    page = open_page(viewport={"width": width, "height": 1000}, color_scheme=theme)
    assert faults(page) == []
    take_example(page)
    page.locator(".word").nth(4).click()
    for tab in ("best", "beam", "state", "settings"):
        page.click(f"#tab-{tab}")
        page.locator("details:visible").evaluate_all("all => all.forEach(d => { d.open = true; })")
        assert faults(page) == []
    toy.failures.append((503, {"error": "busy"}))
    page.click("text=Write again")
    page.get_by_role("alert").get_by_text("busy").wait_for()
    assert faults(page) == []
    page.goto(f"{toy.address}settings.html#beam_size")
    assert faults(page) == []
