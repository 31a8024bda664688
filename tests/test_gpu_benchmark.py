"""`benchmarks/gpu.py`: runs in tiny sizes, needs only what its head names, loses nothing."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
HEAD = ast.get_docstring(ast.parse((FOLDER / "gpu.py").read_text(encoding="utf-8"))) or ""
SECTIONS = re.findall(r"^- ([\w-]+): ", HEAD, re.MULTILINE)

# Runs the script where some packages cannot be found, then says which ones it imported.
WITHOUT = """
import json, runpy, sys
from importlib.machinery import PathFinder

script, absent, said, *arguments = sys.argv[1:]
absent = set(json.loads(absent))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            return None
        return PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        if (context.name or "").lower() in absent:
            return iter(())
        return PathFinder.find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv = [script, *arguments]
sys.path[0] = script.rpartition("/")[0]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    with open(said, "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
"""


def closure(names: set[str]) -> set[str]:
    """Return the installed distributions and all that they require."""
    found: set[str] = set()
    waiting = {canonicalize_name(name) for name in names}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.add(canonicalize_name(each.name))
    return found


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], set[str], str]:
    """What a dry run finds, the distributions that it imports, and what it prints."""
    folder = tmp_path_factory.mktemp("dry")
    brought = closure({"torch", "torchvision", "numpy", "pillow"})
    allowed = brought | wheels()
    top = importlib.metadata.packages_distributions()
    of = {name: {canonicalize_name(each) for each in dists} for name, dists in top.items()}
    missing = {n: ds for n, ds in of.items() if n != "captioner" and not ds & allowed}
    absent = sorted({*missing, *(each for dists in missing.values() for each in dists)})
    said = folder / "modules.json"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, FOLDER / "gpu.py", json.dumps(absent), said, "--dry"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
        check=False,
    )
    assert (folder / "gpu.json").exists(), run.stderr
    imported = {each for name in json.loads(said.read_text()) for each in of.get(name, ())}
    findings = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    page = (folder / "gpu.md").read_text(encoding="utf-8")
    return findings, imported - brought - {"captioner"}, page


def wheels() -> set[str]:
    """The wheels that the head names."""
    listed = HEAD.partition("these wheels:")[2].partition(";")[0]
    return {canonicalize_name(name) for name in re.findall(r"[\w-]+", listed) if name != "and"}


@pytest.fixture
def gpu() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(FOLDER))
        for name in {"gpu", "gpu_table", "common", "captioning", "training"} - before:
            sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_section_runs_in_tiny_sizes(dry) -> None:
    findings, _, page = dry
    assert list(findings["sections"]) == SECTIONS
    errors = {name: each["error"] for name, each in findings["sections"].items() if each["error"]}
    assert errors == {"tests": "RuntimeError: pytest is absent: the tests did not run"}
    rows = [row for each in findings["sections"].values() for row in each["rows"]]
    assert all(row["value"] == row["value"] for row in rows if "value" in row)  # no NaN
    for name in SECTIONS:
        assert f"| **{name}** |" in page
        assert findings["sections"][name]["rows"] or name == "tests"
    assert findings["dry"]


@pytest.mark.slow
def test_the_head_names_the_wheels_that_are_needed(dry) -> None:
    assert dry[1] == wheels()


@pytest.mark.slow
def test_the_processor_agrees_with_itself(dry) -> None:
    sections = dry[0]["sections"]
    for row in sections["agreement"]["rows"]:
        if "same captions" in row["what"]:
            assert row["value"] == 100
        if "apart" in row["what"]:
            assert row["value"] == 0
    assert [row["value"] < 0.1 for row in sections["loss"]["rows"] if "apart" in row["what"]] == [
        True
    ]


def test_a_failed_section_costs_itself(gpu: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def fails(_: Any) -> None:
        raise ValueError("\n a line \n more")

    def hangs(bench: Any) -> None:
        bench.row("first", 1.0)
        while True:
            pass

    def works(bench: Any) -> None:
        bench.row("fine", 2.0, "things/s", against="| all |", ratio=0.5, at_least=0.9)

    sections = {"fails": (9, fails), "hangs": (0.5, hangs), "works": (9, works)}
    monkeypatch.setattr(gpu, "SECTIONS", {n: gpu.Section(*each) for n, each in sections.items()})
    bench = gpu.Bench(gpu.torch.device("cpu"), gpu.DRY, tmp_path)
    findings = {
        "started": gpu.time.time(),
        "seconds": 0,
        "sections": {},
        "machine": {"device": "x"},
    }
    assert not gpu.run(bench, list(sections), tmp_path, findings)
    kept = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert kept["fails"]["error"] == "ValueError: a line"
    assert kept["hangs"]["error"] == "stopped after 1 s"
    assert [row["what"] for row in kept["hangs"]["rows"]] == ["first"]
    assert kept["works"]["error"] is None
    page = (tmp_path / "gpu.md").read_text()
    assert "| fine | 2 things/s | / all / | 0.50 | at least 0.9, **missed** |" in page
    assert "| *ValueError: a line* | *failed* |" in page


def test_no_section_starts_without_time(gpu: ModuleType, tmp_path: Path) -> None:
    bench = gpu.Bench(gpu.torch.device("cpu"), gpu.DRY, tmp_path)
    started = gpu.time.time() - gpu.TOTAL
    findings = {"started": started, "seconds": 0, "sections": {}, "machine": {}}
    gpu.run(bench, ["peak", "cnn"], tmp_path, findings)
    assert {each["error"] for each in findings["sections"].values()} == {"no time left"}


def test_a_broken_device_gets_a_new_process(gpu: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def breaks(_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    sections = {"breaks": (9, breaks), "works": (9, lambda bench: bench.row("fine", 1.0))}
    monkeypatch.setattr(gpu, "SECTIONS", {n: gpu.Section(*each) for n, each in sections.items()})
    monkeypatch.setattr(gpu, "broken", lambda _: True)
    started: list[list[str]] = []
    monkeypatch.setattr(gpu.os, "execv", lambda _, command: started.append(command))
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", "--dry", "--output", str(tmp_path)])
    gpu.main()
    [command] = started
    assert command[1:] == [*gpu.sys.argv, "--go-on"]
    monkeypatch.setattr(gpu.sys, "argv", command[1:])
    assert gpu.main() == 1
    kept = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert kept["breaks"]["error"].startswith("RuntimeError: CUDA error")
    assert [row["what"] for row in kept["works"]["rows"]] == ["fine"]


def test_a_dry_run_is_not_written_to_the_docs(gpu: ModuleType, tmp_path: Path, monkeypatch) -> None:
    findings = tmp_path / "gpu.json"
    findings.write_text(json.dumps({"dry": True, "sections": {}}))
    monkeypatch.setattr(gpu.sys, "argv", ["gpu.py", "--write", str(findings)])
    with pytest.raises(SystemExit, match="of a dry run"):
        gpu.main()


def test_a_variant_without_memory_is_left_out(gpu: ModuleType, tmp_path: Path) -> None:
    def too_large() -> None:
        raise gpu.torch.OutOfMemoryError("CUDA out of memory.")

    bench = gpu.Bench(gpu.torch.device("cpu"), gpu.DRY, tmp_path)
    assert list(bench.race({"large": (too_large, 1), "small": (list, 1)})) == ["small"]


def test_operations_of_a_known_cnn(gpu: ModuleType) -> None:
    # 4.09 billion products and sums, as torchvision's page has it; less the last layer.
    assert gpu.flops_of("resnet50", 224) / 2e9 == pytest.approx(4.09, abs=0.01)


def test_learnable_captions_keep_their_form(gpu: ModuleType) -> None:
    vocabulary = gpu.Vocabulary({f"word{i}": 5 for i in range(40)}, 5)
    table = gpu.make_table(vocabulary, 4, images=300)
    ids = gpu.learnable(table.token_ids, len(vocabulary))
    special = table.token_ids < len(vocabulary.specials)
    assert (ids[special] == table.token_ids[special]).all()
    assert ((ids < len(vocabulary.specials)) == special).all()
    assert (ids != vocabulary.pad_id).sum(1).eq(table.lengths).all()
    followers: dict[int, set[int]] = {}
    for row, length in zip(ids.tolist(), table.lengths.tolist(), strict=True):
        for word, after in pairwise(row[1 : length - 1]):
            followers.setdefault(word, set()).add(after)
    assert max(map(len, followers.values())) == 3


def test_results_hold_what_the_script_writes(gpu: ModuleType, tmp_path: Path) -> None:
    table = importlib.import_module("gpu_table")
    findings = json.loads(table.KEPT.read_text()) if table.KEPT.exists() else None
    page = table.RESULTS.read_text(encoding="utf-8")
    assert table.between_markers(page) == table.docs_section(findings)
    row = {"what": "a", "value": 1234.5, "low": 1000.0, "high": 2000.0, "unit": "images/s"}
    measured = {"machine": {"device": "H200"}, "seconds": 100.0, "sections": {
        "cnn": {"rows": [row], "seconds": 1.0, "peak_mib": 2.0, "error": None}
    }}  # fmt: skip
    copy = tmp_path / "results.md"
    copy.write_text(page, encoding="utf-8")
    table.write_docs(measured, copy)
    written = copy.read_text(encoding="utf-8")
    assert "| a | 1,234 images/s (1,000 to 2,000) |" in table.between_markers(written)
    assert "nmeasured" not in table.between_markers(written)
    table.write_docs(findings, copy)
    assert copy.read_text(encoding="utf-8") == page
