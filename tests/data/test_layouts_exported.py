"""Every published layout, written as JSON Lines by `captioner data --export`, comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioner.data.dataset import Dataset
from captioner.data.load import load_dataset
from captioner.images.decode import read_file
from captioner.inspection.export import export

from layouts import LAYOUTS, Layout


def content(dataset: Dataset) -> list[tuple[str, str, tuple[str, ...], bytes]]:
    return [(e.image_id, e.split, e.captions, read_file(e.image)) for e in dataset.examples]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_comes_back(layout: Layout, tmp_path: Path) -> None:
    layout.make(tmp_path / "data")
    root = tmp_path / "data" / layout.root
    dataset = load_dataset(root, holdout=0, **dict(layout.set))  # type: ignore[arg-type]
    export(dataset, tmp_path / "all.jsonl")
    again = load_dataset(tmp_path / "all.jsonl", holdout=0)
    assert again.problems == ()
    assert content(again) == content(dataset)
