"""The page "How a caption is written" shows what the bundled model does."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "learn" / "captions.md"
PICTURES = ROOT / "docs" / "learn" / "walk"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        script("draw_walk").main(folder)
        sys.modules.pop("pictures", None)
    return folder


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(path: Path) -> list[str]:
    tree = ElementTree.parse(path)
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_the_pictures_are_those_that_the_script_draws(drawn: Path) -> None:
    names = sorted(path.name for path in PICTURES.iterdir())
    assert names == sorted(path.name for path in drawn.iterdir())
    for name in names:
        for stored, now in zip(texts(PICTURES / name), texts(drawn / name), strict=True):
            number = re.compile(r"-?\d+\.\d+")
            assert number.sub("", stored) == number.sub("", now)
            for before, after in zip(number.findall(stored), number.findall(now), strict=True):
                # Other processors round differently, and improbable words most.
                assert float(after) == pytest.approx(float(before), abs=0.004, rel=0.02)


def test_the_page_shows_every_picture_in_both_themes() -> None:
    shown = re.findall(r"\]\(walk/(\S+)\.svg#only-(light|dark)\)", PAGE.read_text(encoding="utf-8"))
    assert all(name.endswith(f"-{theme}") for name, theme in shown)
    assert sorted(f"{name}.svg" for name, _ in shown) == sorted(
        path.name for path in PICTURES.iterdir()
    )


def test_the_numbers_in_the_prose_are_those_of_the_pictures() -> None:
    prose = PAGE.read_text(encoding="utf-8")
    section = prose.partition("## The beam")[2].partition("Longer captions")[0]
    seen = {number for text in texts(PICTURES / "beam-light.svg") for number in text.split()}
    numbers = re.findall(r"-\d\.\d\d", section)
    assert len(numbers) >= 4 and set(numbers) <= seen


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert (results.failed, results.attempted) == (0, 7)
