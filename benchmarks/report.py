"""Time to open a report on 5,000 images in Chromium, from disk.

    python benchmarks/report.py

Writes a report with 5 references and 5 captions per image and noise images as large in bytes as
photographs. Opens it several times, each time in a new profile. The page measures the time from
the start of the navigation to the first cards, and to the end of loading (target: at most 2
seconds). Needs Chromium and Playwright; see CONTRIBUTING.md.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from common import check, describe_machine, noise_jpeg

sys.path += [str(Path(__file__).parents[1] / "tests" / room) for room in ("", "evaluation")]
from captioner.data.dataset import Example
from captioner.evaluation.report import write_report

from browser import chromium
from report_toys import caption, evaluation, vocabulary

IMAGES = 5000
PHOTOS = 50  # different images
RUNS = 5
TARGET = 2.0  # seconds

TIMES = """() => new Promise((resolve) => requestAnimationFrame(() => resolve([
    performance.getEntriesByName("gallery")[0].startTime / 1e3,
    performance.timing.loadEventEnd / 1e3 - performance.timing.navigationStart / 1e3,
])))"""


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = perf_counter()
        path = _write(folder)
        size = path.stat().st_size / 2**20
        print(f"{IMAGES:,} images, {size:.0f} MiB, written in {perf_counter() - start:.1f} s")
        opened, read = zip(*(_open(path) for _ in range(RUNS)), strict=True)
    first, whole = median(opened), median(read)
    print(f"median of {RUNS}: first cards {first:.2f} s, loaded {whole:.2f} s")
    print(describe_machine())
    return int(not check("loading time / 2 s", whole / TARGET, at_most=1))


def _write(folder: Path) -> Path:
    photos = [folder / f"{i}.jpg" for i in range(PHOTOS)]
    for i, photo in enumerate(photos):
        noise_jpeg(photo, seed=i, size=256)
    text = "a man in a red shirt number {} is standing on the beach"
    references = tuple(f"somebody in red stands on the sand of a beach {k}" for k in range(5))
    examples = [Example(photos[i % PHOTOS], references, "dev", str(i)) for i in range(IMAGES)]
    captions = [[caption(text.format(i), -k) for k in range(5)] for i in range(IMAGES)]
    result = evaluation(folder, examples, captions, resamples=2)
    return write_report(result, vocabulary(result), model=folder / "model")


def _open(path: Path) -> tuple[float, float]:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector(".card")
        first, whole = page.evaluate(TIMES)
    return first, whole


if __name__ == "__main__":
    sys.exit(main())
