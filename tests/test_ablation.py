"""The statistics of `benchmarks/ablation.py`, which decide what is called a tie."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location("ablation", folder / "ablation.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))  # as where a script is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("common", None)
    return module


def row(*ciders: float) -> list[dict[str, float]]:
    return [{"bleu_1": 0.6, "bleu_4": 0.2, "cider": cider} for cider in ciders]


def test_intervals_are_those_of_students_t(ablation: ModuleType) -> None:
    # Quantiles out of any table: 4.303 for two degrees of freedom, 2.776 for four.
    assert ablation.half_width([1, 2, 3]) == pytest.approx(4.303 / math.sqrt(3))
    assert ablation.half_width([1, 2, 3, 4, 5]) == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert ablation.half_width([1]) == math.inf
    assert ablation.interval(row(0.5, 0.52, 0.54), "cider") == "0.520 ± 0.050"
    assert ablation.interval(row(0.5), "cider") == "0.500"
    assert ablation.interval([{"cider": 0.5, "cider ±": 0.02}], "cider") == "0.500 ± 0.020"


def test_differences_are_taken_seed_by_seed_and_ties_are_called_so(ablation: ModuleType) -> None:
    recipe = row(0.50, 0.52, 0.54)
    assert ablation.difference(row(0.51, 0.53, 0.55), recipe, "cider") == "+0.010 ± 0.000"
    apart = ablation.difference(row(0.50, 0.53, 0.54), recipe, "cider")
    assert apart == "+0.003 ± 0.014 (a tie)"
    rows = {"recipe": recipe, ablation.TIED: row(0.3, 0.4, 0.5)}
    changed = f"{ablation.TIED}, changed"
    table = ablation.as_table(rows | {changed: row(0.31, 0.41, 0.51)})
    assert "| +0.010 ± 0.000 |" in table.splitlines()[-1]  # what it is a change of
    one, looking = "one CNN", ablation.LOOKING
    rows = {"recipe": recipe, one: row(0.1, 0.2, 0.3), looking: row(0.2, 0.3, 0.4)}
    table = ablation.as_table(rows | {f"{looking}, changed": row(0.21, 0.31, 0.41)})
    *_, two, three = table.splitlines()
    assert "| +0.100 ± 0.000 |" in two
    assert "| +0.010 ± 0.000 |" in three


def test_a_row_without_some_seeds_has_no_differences(ablation: ModuleType) -> None:
    rows = {"recipe": row(0.5, 0.6), ablation.TIED: row(0.4, 0.5), "new": row(0.5), "none": []}
    header, _, recipe, tied, new = ablation.as_table(rows).splitlines()
    assert "| -0.100 ± 0.000 |" in tied
    assert new == "| new | 0.600 | 0.200 | 0.500 |  |  |  |  |"
    assert len({line.count("|") for line in (header, recipe, new)}) == 1
