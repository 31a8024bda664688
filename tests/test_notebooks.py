"""The notebooks are stored plain, and the docs name each. `.ci/run` runs them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.~])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)/|\b[A-Z]:\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def stripped(text: str) -> str:
    place = ROOT / "scripts" / "strip_notebooks.py"
    spec = importlib.util.spec_from_file_location("strip_notebooks", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.stripped(text)


def cells(path: Path) -> list[tuple[str, str]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in found]


def test_they_are_numbered_from_1():
    assert [path.name.partition("-")[0] for path in NOTEBOOKS] == [
        str(number) for number, _ in enumerate(NOTEBOOKS, 1)
    ]


@each_notebook
def test_it_is_valid(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@each_notebook
def test_it_is_stored_without_outputs_and_traces_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert text == stripped(text), f"run python scripts/strip_notebooks.py {path.relative_to(ROOT)}"
    assert MACHINE.findall(text) == []


@each_notebook
def test_it_has_a_title_text_and_checks(path):
    found = cells(path)
    assert found[0][0] == "markdown"
    assert found[0][1].startswith("# ")
    assert sum(kind == "markdown" for kind, _ in found) >= 5
    assert any(re.search(r"^assert ", source, re.M) for kind, source in found if kind == "code")


@each_notebook
def test_its_links_lead_somewhere(path):
    text = "\n".join(source for kind, source in cells(path) if kind == "markdown")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (path.parent / target).exists(), target


def test_the_docs_name_each_and_no_other():
    page = (ROOT / "docs" / "learn" / "notebooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w.-]+\.ipynb)` \|", page, re.M) == [p.name for p in NOTEBOOKS]


def test_ci_runs_them_before_the_tests():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 0 < script.index("--nbmake") < script.rindex("python -m pytest")


def test_what_a_machine_leaves_is_seen():
    plain = json.loads(stripped('{"cells": [], "nbformat": 4, "nbformat_minor": 5}'))
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["x"]}, "source": []}
    plain["cells"] = [cell | {"execution_count": None, "outputs": []}]
    text = json.dumps(plain, indent=1, sort_keys=True) + "\n"
    assert stripped(text) == text
    for change in (
        {"cells": [cell | {"execution_count": 1, "outputs": []}]},
        {"cells": [cell | {"execution_count": None, "outputs": [{"output_type": "stream"}]}]},
        {"cells": [plain["cells"][0] | {"metadata": {"tags": ["x"], "collapsed": True}}]},
        {"metadata": {"kernelspec": {"display_name": "venv", "name": "my-kernel"}}},
    ):
        dirty = json.dumps(plain | change, indent=1, sort_keys=True) + "\n"
        assert dirty != stripped(dirty) == text
    assert MACHINE.findall("see /home/ann/x, C:\\x; not docs/home/x, ../tmp/") == ["/home/", "C:\\"]
