"""What `captioner data --export` writes is the same data set when it is read again."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.data.dataset import Dataset, Example
from captioner.data.formats.collect import Collector
from captioner.data.load import load_dataset
from captioner.errors import ConfigError, DataError
from captioner.images.decode import read_file
from captioner.inspection.export import export

import toys

PICTURES = {"a": "red", "b": "green", "c": "blue"}
CAPTIONS = {
    "a": ["A red  square .", 'it says "no", twice'],
    "b": ["ein grünes Quadrat"],
    "c": ["蓝色的正方形", "ש\u200fquare"],
}
SPLITS = {"a": "train", "b": "dev", "c": "test"}


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def pictures(folder: Path) -> None:
    for name, colour in PICTURES.items():
        toys.draw(folder / f"{name}.png", colour)


def flickr(root: Path) -> None:
    pictures(root / "images")
    numbered = [(name, i, text) for name in CAPTIONS for i, text in enumerate(CAPTIONS[name])]
    lines(root / "x.token.txt", *(f"{name}.png#{i}\t{text}" for name, i, text in numbered))
    for name, split in SPLITS.items():
        lines(root / f"x.{split}Images.txt", f"{name}.png")


def karpathy(root: Path) -> None:
    pictures(root / "images")
    splits = {"a": "train", "b": "restval", "c": "val"}
    images = [
        {
            "filename": f"{name}.png",
            "cocoid": 7 + i,
            "split": splits[name],
            "sentences": [{"raw": text} for text in CAPTIONS[name]],
        }
        for i, name in enumerate(CAPTIONS)
    ]
    lines(root / "dataset_x.json", json.dumps({"images": images}))


def coco(root: Path) -> None:
    for split, names in (("train2017", "ab"), ("val2017", "c")):
        for name in names:
            toys.draw(root / split / f"{name}.png", PICTURES[name])
        document = {
            "images": [{"id": ord(name), "file_name": f"{name}.png"} for name in names],
            "annotations": [
                {"id": 100 * ord(name) + i, "image_id": ord(name), "caption": text}
                for name in names
                for i, text in enumerate(CAPTIONS[name])
            ],
        }
        lines(root / "annotations" / f"captions_{split}.json", json.dumps(document))


def csv(root: Path) -> None:
    pictures(root / "pictures")
    rows = [
        f"pictures/{name}.png;id {name};{SPLITS[name]};{json.dumps(text)}"
        for name in CAPTIONS
        for text in ("one", "two , 3")
    ]
    lines(root / "x.csv", "image;image_id;split;caption", *rows)


def jsonl(root: Path) -> None:
    for name, split in SPLITS.items():
        toys.draw(root / split / "1.png", PICTURES[name])
        row = {"file_name": "1.png", "text": CAPTIONS[name]}
        lines(root / split / "metadata.jsonl", json.dumps(row))


def sidecars(root: Path) -> None:
    for name, split in SPLITS.items():
        toys.draw(root / split / "inner" / f"{name}.png", PICTURES[name])
        lines(root / split / "inner" / f"{name}.txt", *CAPTIONS[name])


def scenes(root: Path) -> None:
    toys.draw(root / "images" / "a.png", "red")
    thing = {"kind": "star", "colour": "red", "size": "small"}
    scene = {"things": [thing], "count": 1, "relation": ""}
    row = {"file_name": "images/a.png", "split": "dev", "captions": ["a star"], "scene": scene}
    lines(root / "captions.jsonl", json.dumps(row))


MAKERS: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (flickr, karpathy, coco, csv, jsonl, sidecars, scenes)
}


def content(dataset: Dataset) -> list[tuple[str, str, tuple[str, ...], bytes]]:
    return [(e.image_id, e.split, e.captions, read_file(e.image)) for e in dataset.examples]


def round_trip(dataset: Dataset, path: Path) -> list[dict[str, object]]:
    """Export, read again, and return the rows."""
    export(dataset, path)
    again = load_dataset(path)
    assert again.format == "jsonl"
    assert again.problems == ()
    assert content(again) == content(dataset)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("format", MAKERS)
def test_every_format_comes_back(tmp_path: Path, format: str) -> None:
    MAKERS[format](tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.format == format
    assert len(dataset.examples) == (1 if format == "scenes" else 3)
    rows = round_trip(dataset, tmp_path / "new" / "all.jsonl")
    assert all(str(row["file_name"]).startswith("../data/") for row in rows)


def test_a_held_out_dev_split_stays(tmp_path: Path) -> None:
    for number in range(20):
        toys.draw(tmp_path / f"{number}.png", "red")
        lines(tmp_path / f"{number}.txt", f"number {number}")
    dataset = load_dataset(tmp_path)
    assert dataset.splits == {"train": 18, "dev": 2}
    round_trip(dataset, tmp_path / "all.jsonl")


def dataset_of(*examples: Example) -> Dataset:
    return Dataset("toys", "jsonl", Path("toys"), examples, ())


def test_no_other_picture_is_found_by_a_name(tmp_path: Path) -> None:
    # `images/` beside the output is searched first.
    first = toys.draw(tmp_path / "1.png", "red")
    toys.draw(tmp_path / "images" / "1.png", "green")
    [row] = round_trip(dataset_of(Example(first, ("red",), "dev", "1")), tmp_path / "x.jsonl")
    assert row["file_name"] == str(first)


def test_links_on_the_way_are_followed(tmp_path: Path) -> None:
    picture = toys.draw(tmp_path / "far" / "away" / "1.png", "red")
    (tmp_path / "deep" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "out")
    (tmp_path / "pictures").symlink_to(picture.parent)
    example = Example(tmp_path / "pictures" / "1.png", ("red",), "dev", "1")
    [row] = round_trip(dataset_of(example), tmp_path / "link" / "x.jsonl")
    assert row["file_name"] == "../../far/away/1.png"


def test_two_ids_of_one_file_stay_two(tmp_path: Path) -> None:
    picture = toys.draw(tmp_path / "1.png", "red")
    pair = [Example(picture, (text,), split, text) for text, split in (("a", "dev"), ("b", "x"))]
    more = [Example(picture, (text,), "train", text) for text in "cd"]
    round_trip(dataset_of(*pair, *more), tmp_path / "x.jsonl")


@dataclass(frozen=True)
class Member:
    """An image in an archive."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def __str__(self) -> str:
        return f"shard.tar/{self.name}"

    def read_bytes(self) -> bytes:
        return self.data


def test_pictures_of_archives_become_files(tmp_path: Path) -> None:
    data = [
        toys.draw(tmp_path / f"{colour}.png", colour).read_bytes() for colour in ("red", "blue")
    ]
    members = [Member("1.png", data[0]), Member("no ending", data[1]), Member("2.jpg", b"broken")]
    examples = [Example(m, ("text",), "dev", m.name) for m in members]
    same = Example(members[0], ("again",), "train", "again")
    dataset = dataset_of(*examples, same)
    rows = round_trip(dataset, tmp_path / "x.jsonl")
    names = [f"x-images/{name}" for name in ("000000.png", "000001.png", "000002.jpg")]
    assert [row["file_name"] for row in rows] == [*names, "x-images/./000000.png"]
    round_trip(dataset, tmp_path / "x.jsonl")  # in place of its own
    (tmp_path / "x-images" / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"x-images: .*nothing was changed"):
        export(dataset, tmp_path / "x.jsonl")


def test_tar_shards_come_back(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    for name, split in SPLITS.items():
        with tarfile.open(tmp_path / f"{split}-0000.tar", "w") as shard:
            picture = (tmp_path / "pictures" / f"{name}.png").read_bytes()
            text = json.dumps({"caption": CAPTIONS[name][0]}).encode()
            for ending, data in (("png", picture), ("json", text)):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    shutil.rmtree(tmp_path / "pictures")
    dataset = load_dataset(tmp_path)
    assert (dataset.format, dataset.splits) == ("webdataset", {"train": 1, "dev": 1, "test": 1})
    rows = round_trip(dataset, tmp_path / "new" / "x.jsonl")
    assert [row["file_name"] for row in rows] == [f"x-images/00000{i}.png" for i in range(3)]


@pytest.mark.parametrize("format", ["parquet", "huggingface"])
def test_images_in_tables_come_back(tmp_path: Path, format: str) -> None:
    datasets = pytest.importorskip("datasets")
    data = [toys.draw(tmp_path / f"{name}.png", PICTURES[name]).read_bytes() for name in PICTURES]
    columns = {"image": [{"bytes": each, "path": None} for each in data]}
    table = datasets.Dataset.from_dict(columns | {"captions": [*CAPTIONS.values()]})
    table = table.cast_column("image", datasets.Image())
    root = tmp_path / "data"
    if format == "parquet":
        root.mkdir()
        table.to_parquet(root / "train.parquet")
    else:
        datasets.DatasetDict({"train": table}).save_to_disk(root)
    dataset = load_dataset(root)
    assert (dataset.format, dataset.splits) == (format, {"train": 1, "dev": 2})
    round_trip(dataset, tmp_path / "new" / "x.jsonl")


@pytest.mark.parametrize("field", ["image_id", "split"])
@pytest.mark.parametrize("value", ["", "nan", " None"])
def test_what_reads_as_missing_is_refused(tmp_path: Path, field: str, value: str) -> None:
    picture = toys.draw(tmp_path / "1.png", "red")
    values = {"image_id": "1", "split": "dev", field: value}
    with pytest.raises(DataError, match=r"1.png: JSON Lines cannot hold the .* missing value"):
        export(dataset_of(Example(picture, ("a",), **values)), tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_other_endings_and_foreign_files_are_refused(tmp_path: Path) -> None:
    picture = toys.draw(tmp_path / "1.png", "red")
    dataset = dataset_of(Example(picture, ("a",), "dev", "1"))
    with pytest.raises(ConfigError, match=r"must end with \.jsonl or \.ndjson"):
        export(dataset, tmp_path / "x.json")
    lines(tmp_path / "x.jsonl", '{"image": "a.jpg", "caption": "mine"}')
    with pytest.raises(ConfigError, match="not a data set that captioner wrote"):
        export(dataset, tmp_path / "x.jsonl")


@pytest.mark.skipif(os.name != "posix", reason="needs names of bytes")
def test_a_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    picture = toys.draw(folder / "1.png", "red")
    with pytest.raises(DataError, match="not UTF-8; rename its folder"):
        export(dataset_of(Example(picture, ("a",), "dev", "1")), tmp_path / "x.jsonl")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(TEXT, min_size=1, max_size=4, unique=True), captions=st.lists(TEXT), split=TEXT)
def test_any_text_comes_back_or_is_refused(
    tmp_path: Path, ids: list[str], captions: list[str], split: str
) -> None:
    collector = Collector(tmp_path, "jsonl", [tmp_path])
    for number, image_id in enumerate(ids):
        toys.draw(tmp_path / f"{number}.png", "red")
        entry = collector.add(image_id, f"{number}.png", split, "here")
        for text in ["x", *captions]:
            if entry:
                collector.caption(entry, text, "here")
    dataset = collector.dataset()
    try:
        export(dataset, tmp_path / "x.jsonl")
    except DataError as error:
        assert "missing value" in str(error)
        return
    assert content(load_dataset(tmp_path / "x.jsonl", holdout=0)) == content(dataset)
