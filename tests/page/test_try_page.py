"""The page of the site that captions a picture in the visitor's browser.

`scripts/docs` builds the site and fetches onnxruntime-web; $CAPTIONER_SITE says where it lies.
"""

import contextlib
import gzip
import os
import runpy
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import browser

SITE = Path(os.environ.get("CAPTIONER_SITE", "/nowhere"))
PICTURES = Path(__file__).parents[2] / "data" / "pictures"
pytestmark = [
    pytest.mark.skipif(not browser.CHROMIUM, reason=browser.NO_BROWSER),
    pytest.mark.skipif(
        not (SITE / "try" / "step.onnx.gz").exists(),
        reason="needs $CAPTIONER_SITE, a site that scripts/docs built with npm at hand",
    ),
]


@pytest.fixture(scope="module")
def served():
    """The site on this machine, and the requests that came."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append((self.command, self.path))

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/try.html", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(served):
    """The opened page; it may ask this server alone."""
    address, _ = served
    with browser.chromium() as chromium:
        page = chromium.new_page(viewport={"width": 1000, "height": 900})
        page.foreign = []
        page.on("request", lambda request: page.foreign.append(request.url))
        page.goto(address)
        yield page


def captioned(page):
    browser.wait_until(
        page, "['done', 'failed'].includes(document.getElementById('try').dataset.state)"
    )
    assert page.evaluate("document.getElementById('try').dataset.state") == "done", page.inner_text(
        "#try"
    )
    return page.inner_text("#try-caption")


@pytest.fixture(scope="module")
def in_python(tmp_path_factory):
    """The Python search of the same programs."""
    folder = tmp_path_factory.mktemp("programs")
    for packed in (SITE / "try").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    (folder / "captioner.json").write_bytes((SITE / "try" / "captioner.json").read_bytes())
    with contextlib.chdir(folder):
        names = runpy.run_path(str(SITE / "try" / "caption.py"), run_name="caption")
    return lambda path: names["caption"](names["read"](path))


def test_the_browser_writes_what_python_writes(page, served, in_python, tmp_path):
    address, asked = served
    for name in ("dog", "beach", "skier"):
        # Of the size that the CNN sees, so that browser and Pillow need not resize alike.
        picture = Image.open(PICTURES / f"{name}.jpg").convert("RGB").resize((224, 224))
        picture.save(tmp_path / f"{name}.png")
        page.evaluate("document.getElementById('try').dataset.state = 'busy'")
        page.set_input_files("#try-file", tmp_path / f"{name}.png")
        assert captioned(page) == in_python(tmp_path / f"{name}.png")
    assert {command for command, _ in asked} == {"GET"}, "a picture left the machine"
    home = address.removesuffix("try.html")
    assert all(url.startswith((home, "blob:", "data:")) for url in page.foreign)
    fetched = {path for _, path in asked if path.endswith(".gz")}
    assert len(fetched) == 3
    assert sum((SITE / path.lstrip("/")).stat().st_size for path in fetched) < 8e6


def test_an_example_a_broken_file_and_a_text(page, tmp_path):
    page.evaluate("document.getElementById('try').dataset.state = 'busy'")
    page.click("text=dog")
    assert "dog" in captioned(page)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    page.set_input_files("#try-file", tmp_path / "broken.png")
    browser.wait_until(page, "document.getElementById('try').dataset.state == 'failed'")
    assert "cannot read the picture" in page.inner_text("#try-status")
    (tmp_path / "notes.txt").write_text("no picture")
    page.set_input_files("#try-file", tmp_path / "notes.txt")
    browser.wait_until(
        page, "document.getElementById('try-status').textContent.includes('no picture')"
    )


@pytest.mark.skipif(not browser.AXE, reason=browser.NO_AXE)
def test_the_page_has_no_serious_fault(page):
    found = [fault for fault in browser.faults(page) if fault[1] in ("serious", "critical")]
    assert not [fault for fault in found if "try" in str(fault[2])]
