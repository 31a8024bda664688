"""A run goes on with the very data that it learnt from, or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from captioner.errors import CheckpointError
from captioner.training.checkpoint import _checksum
from captioner.training.run import train

import toys


@pytest.fixture
def config(tmp_path):
    config = toys.config(tmp_path, epochs=1)
    train(config, tmp_path / "run", device="cpu")
    return config


def rows(folder: Path) -> list[list[str]]:
    with (folder / "captions.csv").open(newline="") as file:
        return list(csv.reader(file))


def write(folder: Path, table: list[list[str]]) -> None:
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)


def swap_lines(folder: Path, one: int, other: int) -> None:
    table = rows(folder)
    table[one], table[other] = table[other], table[one]
    write(folder, table)


def swap_pictures(folder: Path, one: str, other: str) -> None:
    contents = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / other).write_bytes(contents[0])
    (folder / one).write_bytes(contents[1])


def say_otherwise(folder: Path, line: int) -> None:
    table = rows(folder)
    words = table[line][1].split()
    table[line][1] = " ".join(reversed(words))
    write(folder, table)


def to_split(folder: Path, start: str, split: str) -> None:
    table = rows(folder)
    for row in table[1:]:
        if row[0].startswith(start):
            row[2] = split
    write(folder, table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: swap_lines(f, 1, 2), "train captions"),  # of one image
        (lambda f: say_otherwise(f, 1), "train captions"),
        (lambda f: swap_pictures(f, "train_red_0.png", "train_blue_1.png"), "train images"),
        (lambda f: toys.draw(f / "train_red_0.png", "red", 77), "train images"),
        (lambda f: (f / "train_red_0.png").unlink(), "train captions, train images"),
        (lambda f: say_otherwise(f, -1), "dev captions"),
        (lambda f: swap_pictures(f, "dev_red_5.png", "dev_blue_5.png"), "dev images"),
        (lambda f: toys.draw(f / "dev_red_5.png", "red", 77), "dev images"),
        (lambda f: to_split(f, "dev_red", "other"), "dev captions, dev images"),
        (
            lambda f: to_split(f, "train_red_0", "dev"),
            "train captions, train images, dev captions, dev images",
        ),
        # Two images with all their captions: the same data in another order.
        (lambda f: write(f, [rows(f)[0], *rows(f)[3:5], *rows(f)[1:3], *rows(f)[5:]]), "train"),
    ],
)
def test_what_changed_is_named(config, tmp_path, change, said):
    change(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()}
    with pytest.raises(CheckpointError) as caught:
        train(config, tmp_path / "run", device="cpu", resume=True)
    found = str(caught.value).replace("run (vocabulary, ", "run (")  # it follows the captions
    assert f"belongs to another run ({said}" in found
    assert str(caught.value).count(" changed)") == 1
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda f: None,
        lambda f: write(f, [*rows(f), ["train_red_0.png", "of no split that is read", "test"]]),
        lambda f: write(f, [[r[0], r[1].upper(), r[2]] if r[2] == "train" else r for r in rows(f)]),
    ],
)
def test_data_that_teaches_the_same_is_the_same(config, tmp_path, change):
    change(tmp_path)
    train(config, tmp_path / "run", device="cpu", resume=True)


def test_a_checkpoint_that_knows_nothing_of_its_data_is_refused(config, tmp_path):
    for path in (tmp_path / "run" / "checkpoints").glob("step-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        identity = json.loads(header["identity"])
        del identity["train images"]
        header["identity"] = json.dumps(identity)
        del header["checksum"]
        header["checksum"] = _checksum(tensors, header)
        save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match="another version of captioner, without train images"):
        train(config, tmp_path / "run", device="cpu", resume=True)
