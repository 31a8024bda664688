"""The page on the real server, with the bundled model, in a real browser."""

import pytest

from captioner.captioner import Captioner
from captioner.config import bundled

from browser import CHROMIUM, NO_BROWSER, chromium
from served import serving

expect = pytest.importorskip("playwright.sync_api", reason=NO_BROWSER).expect
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER), pytest.mark.slow]
SCENE = bundled("data/scenes/images/test-0080.png")
TOKEN = "a-secret-token"


@pytest.fixture(scope="module")
def captioner():
    return Captioner.load(bundled("models/scenes/model"))


@pytest.fixture(scope="module")
def opened(captioner):
    """The address of the page, and a browser."""
    with serving({"scenes": captioner}, token=TOKEN) as served, chromium() as browser:
        yield f"http://127.0.0.1:{served.port}/#token={TOKEN}", browser


@pytest.fixture
def page(opened):
    """The page with a caption of the scene."""
    address, browser = opened
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(address)
    expect(page.locator("#beam_size")).not_to_have_value("")
    page.set_input_files("#file", SCENE)
    page.wait_for_selector("#state svg", state="attached")
    yield page
    context.close()
    assert [trouble for trouble in troubles if "status of 400" not in trouble] == []


def words(page):
    return page.locator(".word:not(.end) .text").all_text_contents()


def test_a_scene_is_captioned_and_explained(page, captioner):
    assert " ".join(words(page)) == captioner.caption(SCENE)
    assert page.locator(".word.end").count() == 1
    page.locator(".word").nth(1).click()
    assert page.locator("#map").is_visible()
    expect(page.locator("#word")).to_contain_text("Orange places")
    assert page.locator("#word button.row").count() > 2
    chosen = page.locator("#beam .node.chosen text:first-of-type")
    assert chosen.all_text_contents() == [*words(page), "■ end"]
    assert page.locator("#state .column").count() == len(words(page)) + 2
    assert page.locator("#best tbody tr").count() > 1


def test_an_alternative_writes_the_sentence_on(page, captioner):
    page.locator(".word").nth(1).click()
    other = page.locator("#word button.row .text").first.text_content()
    first = words(page)[0]
    page.locator("#word button.row").first.click()
    expect(page.locator(".word .text").nth(1)).to_have_text(other)
    assert " ".join(words(page)) == captioner.caption(SCENE, start=f"{first} {other}")


def test_settings_and_their_mistakes(page, captioner):
    page.click("#tab-settings")
    page.fill("#start", words(page)[0])
    page.click("text=Write again")
    expect(page.locator("#forced")).to_be_visible()
    page.click("text=The model's own settings")
    expect(page.locator("#forced")).to_be_hidden()
    page.fill("#forbid", words(page)[1])
    page.click("text=Write again")
    expect(page.locator(".word .text").nth(1)).not_to_have_text(page.input_value("#forbid"))
    page.check("input[value=sample]")
    page.fill("#temperature", "0.5")
    page.click("text=Write again")
    expect(page.locator("#best")).to_contain_text("drawn at random")
    page.fill("#start", "a zebra")
    page.click("text=Write again")
    expect(page.get_by_role("alert")).to_contain_text("zebra")
    assert page.locator("#picture").is_visible()
    assert words(page)
