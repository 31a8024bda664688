"""The system's Chromium, driven by Playwright, for the tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AXE = os.environ.get("AXE_CORE", "")  # path of axe.min.js, from the npm package axe-core
NO_AXE = "needs $AXE_CORE, the axe.min.js of the npm package axe-core"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
NO_BROWSER = "needs a browser: apt-get install chromium; pip install 'captioner[test]'"
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
)


@contextmanager
def chromium(*args: str) -> Iterator[Any]:
    """Run the system's Chromium, headless, with a fresh profile."""
    from playwright.sync_api import sync_playwright

    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, *as_root, *args]
        )
        yield browser
        browser.close()


def wait_until(page: Any, true: str) -> None:
    """Wait for an expression; the page's policy forbids Playwright's own way."""
    for _ in range(200):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(true)


def faults(page: Any) -> list[tuple[str, str, list[str]]]:
    """Return what axe-core finds: the rule, how bad it is, and where."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        (each["id"], each["impact"], [node["html"][:120] for node in each["nodes"]])
        for each in found["violations"]
    ]
