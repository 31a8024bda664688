"""Splits: their names, the share held out for dev, and the real Flickr8k folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.dataset import Dataset, Example, describe, split_name, typing_errors
from captioner.data.load import load_dataset
from captioner.errors import DataError


def held_out(root: Path, count: int, holdout: float = 0.05) -> set[str]:
    lines = [f"{n}.jpg,a caption\n" for n in range(count)]
    for n in range(count):
        (root / f"{n}.jpg").touch()
    (root / "x.csv").write_text("image,caption\n" + "".join(lines))
    dataset = load_dataset(root, holdout=holdout)
    assert len(dataset.examples) == count
    assert (f"{dataset.splits.get('dev', 0)} of {count} train" in "".join(dataset.notes)) == (
        holdout > 0
    )
    return {example.image_id for example in dataset.examples if example.split == "dev"}


def test_holdout_is_a_share_and_stays_when_images_come(tmp_path: Path) -> None:
    few = held_out(tmp_path, 200)
    many = held_out(tmp_path, 800)
    assert 800 * 0.05 * 0.6 < len(many) < 800 * 0.05 * 1.4
    assert few == {name for name in many if int(name.removesuffix(".jpg")) < 200}
    assert few < held_out(tmp_path, 200, holdout=0.3)
    assert held_out(tmp_path, 200, holdout=0) == set()


def test_holdout_never_touches_a_data_set_that_names_a_dev_split(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    file = tmp_path / "x.csv"
    for other in ("gone.jpg", "b.jpg"):  # a dev split without usable pictures, and with
        file.write_text(f"image,caption,split\na.jpg,A,train\n{other},B,valid\n")
        dataset = load_dataset(file, holdout=0.999)
        assert dataset.split("train")[0].image_id == "a.jpg"
        assert dataset.notes == ()
        (tmp_path / "b.jpg").touch()
    file.write_text("image,caption,split\na.jpg,A,test\n")
    assert load_dataset(file, holdout=0.999).splits == {"test": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val", "dev"),
        ("Validation", "dev"),
        (" valid ", "dev"),
        ("training", "train"),
        ("testing", "test"),
        ("TEST", "test"),
        ("PublicTest", "test"),
        ("private_test", "test"),
        ("restval", "restval"),
        ("Mine", "Mine"),
    ],
)
def test_split_names(name: str, expected: str) -> None:
    assert split_name(name) == expected


@given(st.text())
def test_split_name_of_a_split_name_is_itself(name: str) -> None:
    assert split_name(split_name(name)) == split_name(name)


def test_splits_in_the_usual_order_and_by_any_name() -> None:
    names = ["zoo", "test", "dev", "bar", "train", "dev"]
    examples = tuple(
        Example(Path(f"{n}.jpg"), ("A",), split, str(n)) for n, split in enumerate(names)
    )
    dataset = Dataset("name", "csv", Path("root"), examples, ())
    assert list(dataset.splits.items()) == [
        ("train", 1),
        ("dev", 2),
        ("test", 1),
        ("bar", 1),
        ("zoo", 1),
    ]
    assert [example.image_id for example in dataset.split("validation")] == ["2", "5"]
    with pytest.raises(DataError, match=r"root: no images in split 'nope'; .* train \(1\), dev"):
        dataset.split("nope")


@pytest.mark.data
def test_real_flickr8k() -> None:
    shared = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[3] / "shared"))
    if not (shared / "flickr8k").is_dir():
        pytest.skip("no shared/flickr8k beside the checkout; set CAPTIONER_SHARED")
    dataset = load_dataset(shared / "flickr8k", strict=True)
    assert dataset.splits == {"train": 6000, "dev": 1000}
    assert sum(len(example.captions) for example in dataset.examples) == 35_000
    first = dataset.split("train")[0]
    assert first.image_id == "2513260012_03d33305cf.jpg"
    assert first.captions[0] == "A black dog is running after a white dog in the snow ."
    rows = [line.split() for line in describe(dataset).splitlines()]
    assert ["train", "6,000", "30,000"] in rows
    assert ["skipped", "nothing"] in rows


@pytest.mark.parametrize(("count", "holdout"), [(40, 0.05), (2, 0.001), (3, 0.999)])
def test_a_holdout_leaves_neither_split_empty(tmp_path: Path, count: int, holdout: float) -> None:
    assert min(2, count - 1) <= len(held_out(tmp_path, count, holdout)) < count


def test_one_image_cannot_be_held_out(tmp_path: Path) -> None:
    assert held_out(tmp_path, 1) == set()
    with pytest.raises(DataError, match=r"data\.holdout"):
        load_dataset(tmp_path).split("dev")


def test_typing_errors_in_splits_are_named(tmp_path: Path) -> None:
    usual = [
        "train",
        "val2014",
        "test_set",
        "restval",
        "trainval",
        "minival",
        "extra",
        "fold1",
        "A",
    ]
    assert typing_errors(usual) == {}
    assert len(typing_errors(["trian", "VAILD", "tset", "vla", "traning", "tain"])) == 6
    for name in "abc":
        (tmp_path / f"{name}.jpg").touch()
    table = "image,caption,split\na.jpg,A,train\nb.jpg,B,vaild\nc.jpg,C,train\n"
    (tmp_path / "x.csv").write_text(table)
    dataset = load_dataset(tmp_path)
    assert dataset.notes[0].startswith("split 'vaild' looks like a typing error of valid; ")
    with pytest.raises(
        DataError, match=r"'vaild' looks like .*'tset' looks like a typing error of test"
    ):
        dataset.split("tset")
