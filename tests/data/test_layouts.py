"""Every published layout in miniature: read whole; broken, each fault is counted or one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.cli import main
from captioner.data.dataset import Dataset, describe
from captioner.data.load import FORMATS, load_dataset
from captioner.errors import DataError

import layouts
import toys
from layouts import LAYOUTS, Layout, dump, lines, picture, text

ALL = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def load(layout: Layout, folder: Path) -> Dataset:
    return load_dataset(folder / layout.root, holdout=0, **dict(layout.set))  # type: ignore[arg-type]


def splits(dataset: Dataset) -> dict[str, tuple[int, int]]:
    counts = {}
    for split, images in dataset.splits.items():
        captions = sum(len(e.captions) for e in dataset.examples if e.split == split)
        counts[split] = (images, captions)
    return counts


@ALL
def test_a_layout_is_read_whole(layout: Layout, tmp_path: Path) -> None:
    layout.make(tmp_path)
    dataset = load(layout, tmp_path)
    assert (dataset.format, splits(dataset)) == (layout.format, layout.splits)
    assert dataset.problems == ()
    assert all(example.image.is_file() for example in dataset.examples)  # type: ignore[union-attr]
    ids = [example.image_id for example in dataset.examples]
    assert len({*ids}) == len(ids)


@ALL
def test_a_missing_image_is_counted(layout: Layout, tmp_path: Path) -> None:
    layout.make(tmp_path)
    gone = load(layout, tmp_path).examples[0]
    assert isinstance(gone.image, Path)
    gone.image.unlink()
    dataset = load(layout, tmp_path)
    if layout.format == "sidecars":  # a text without an image
        assert any("without an image of their name" in note for note in dataset.notes)
    else:
        assert "missing image" in [problem.kind for problem in dataset.problems]
    assert gone.image_id not in [example.image_id for example in dataset.examples]
    assert len(dataset.examples) == sum(images for images, _ in layout.splits.values()) - 1


@ALL
def test_an_image_that_is_copied_gets_no_caption(layout: Layout, tmp_path: Path) -> None:
    """An image without a caption is never given that of another."""
    layout.make(tmp_path)
    image = load(layout, tmp_path).examples[0].image
    assert isinstance(image, Path)
    shutil.copy(image, image.with_name("stranger.jpg"))
    dataset = load(layout, tmp_path)
    assert splits(dataset) == layout.splits
    assert "stranger.jpg" not in [Path(str(e.image)).name for e in dataset.examples]


@ALL
@pytest.mark.parametrize("damage", [b"", b"\0\1\2\3" * 50, b"<html>no</html>", b"{", b"\xff" * 99])
def test_damaged_annotations_are_one_line_or_counted(
    layout: Layout, damage: bytes, tmp_path: Path
) -> None:
    layout.make(tmp_path)
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        if file.suffix in (".jpg", ".png"):
            continue
        before = file.read_bytes()
        file.write_bytes(damage)
        try:
            dataset = load(layout, tmp_path)
            lost = splits(dataset) != layout.splits
            assert not lost or dataset.problems or dataset.notes, file
        except DataError as error:
            assert str(tmp_path) in str(error) or file.name in str(error)
            assert len(str(error).split("\n")[0]) < 1000
        file.write_bytes(before)


@ALL
def test_a_layout_can_be_trained_from(layout: Layout, tmp_path: Path) -> None:
    layout.make(tmp_path)
    shown = describe(load(layout, tmp_path))
    for split, (images, captions) in layout.splits.items():
        assert [split, str(images), str(captions)] in [row.split() for row in shown.split("\n")]


def problems(root: Path, **options: str) -> list[tuple[str, str]]:
    dataset = load_dataset(root, holdout=0, **options)  # type: ignore[arg-type]
    return [(problem.kind, problem.where) for problem in dataset.problems]


@pytest.mark.parametrize("make", [layouts.conceptual, layouts.conceptual12m])
def test_a_table_of_urls_says_how_to_download(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    for root in (tmp_path, next(tmp_path.iterdir())):
        with pytest.raises(DataError, match=r"\.tsv: names its images by URL, .* img2dataset"):
            load_dataset(root)


def test_a_table_of_urls_is_read_if_the_images_are_there(tmp_path: Path) -> None:
    layouts.conceptual(tmp_path)
    layouts.pictures(tmp_path / "images", [f"{n}.jpg" for n in range(5)])
    dataset = load_dataset(tmp_path / "Train_GCC-training.tsv", holdout=0)
    assert [e.captions for e in dataset.examples] == [(each,) for each in layouts.SENTENCES]


def test_multi30k_joins_lines(tmp_path: Path) -> None:
    layouts.multi30k(tmp_path)
    english, german = (load_dataset(tmp_path, caption_column=c, holdout=0) for c in ("en", "de"))
    assert [e.captions for e in english.split("train")] == [(s,) for s in layouts.SENTENCES[:3]]
    assert [e.captions for e in german.split("train")] == [(s,) for s in layouts.GERMAN[:3]]
    with pytest.raises(DataError, match=r"captions in de, en; choose one, .*caption_column=de"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match=r"no captions in 'fr'; holds captions in de, en"):
        load_dataset(tmp_path, caption_column="fr")


def test_multi30k_broken(tmp_path: Path) -> None:
    layouts.multi30k_flat(tmp_path)
    lines(tmp_path / "train.de", ["Ein Hund.", "", "..."])
    lines(tmp_path / "train_images.txt", ["1000092795.jpg", "1000092796.jpg", "gone.jpg#7"])
    assert problems(tmp_path) == [
        ("empty caption", "train.de:2"),
        ("empty caption", "train.de:3"),
        ("image without captions", "train_images.txt:2"),
        ("image without captions", "train_images.txt:3"),
        ("missing image", "train_images.txt:3"),
    ]
    lines(tmp_path / "train.de", ["Ein Hund."])
    with pytest.raises(DataError, match=r"train.de: 1 lines, but .*train_images.txt has 3"):
        load_dataset(tmp_path)
    (tmp_path / "train.de").rename(tmp_path / "train.de.gz")
    with pytest.raises(DataError, match=r"train.de.gz: compressed; unpack it: gunzip"):
        load_dataset(tmp_path)


def test_multi30k_tests_stay_apart(tmp_path: Path) -> None:
    layouts.multi30k(tmp_path)
    part = tmp_path / "data/task1"
    lines(
        part / "image_splits/test_2017_mscoco.txt", ["COCO_val2014_1.jpg#8", "COCO_val2014_1.jpg#9"]
    )
    lines(part / "raw/test_2017_mscoco.en", ["A bus.", "A red bus."])
    picture(tmp_path / "flickr30k-images/COCO_val2014_1.jpg")
    dataset = load_dataset(tmp_path, caption_column="en", holdout=0, strict=True)
    assert splits(dataset)["test"] == (1, 1)
    assert splits(dataset)["test_2017_mscoco"] == (1, 2)
    assert "test is test_2016_flickr; splits of their own: test_2017_mscoco" in dataset.notes


def test_kohya_broken(tmp_path: Path) -> None:
    layouts.pictures(tmp_path, ["a.png", "b.png", "c.png", "x/d.png", "y/d.png"])
    rows = {
        "a": {"caption": "A dog."},
        "C:\\train\\b.png": {"caption": ["A cat.", ""], "tags": "cat"},
        "c": {"tags": ["cat", "smile"]},
        "d": {"caption": "Which one?"},
        "x/d": {"caption": "This one."},
        "gone": {"caption": "Gone."},
        "odd": 5,
    }
    dump(tmp_path / "meta_cap.json", rows)
    assert problems(tmp_path) == [
        ("empty caption", "meta_cap.json: C:\\train\\b.png"),
        ("duplicate id", "meta_cap.json: d"),
        ("malformed line", "meta_cap.json: odd"),
        ("image without captions", "meta_cap.json: c"),
        ("missing image", "meta_cap.json: gone"),
    ]
    dataset = load_dataset(tmp_path, holdout=0)
    assert [(e.image_id, e.captions) for e in dataset.examples] == [
        ("a.png", ("A dog.",)),
        ("b.png", ("A cat.",)),
        ("x/d.png", ("This one.",)),
    ]
    assert "1 images have tags and no caption; data.caption_column=tags" in dataset.notes[0]
    tags = load_dataset(tmp_path, holdout=0, caption_column="tags")
    assert [(e.image_id, e.captions) for e in tags.examples] == [
        ("b.png", ("cat",)),
        ("c.png", ("cat, smile",)),
    ]


def test_a_folder_of_texts_does_not_look_beside_itself(tmp_path: Path) -> None:
    layouts.kohya(tmp_path)
    text(tmp_path / "img/00000.txt", "A text of its own.\n")
    dataset = load_dataset(tmp_path / "img", holdout=0)
    assert dataset.format == "sidecars"
    assert [e.captions for e in dataset.examples] == [("A text of its own.",)]


def test_images_of_one_name_in_two_splits_are_not_confused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / f"{split}_images/1.jpg")
        lines(tmp_path / f"{split}.csv", ["image_id,caption,image", f"{split},A {split}.,1.jpg"])
    dataset = load_dataset(tmp_path, holdout=0, strict=True)
    assert [Path(str(e.image)).parent.name for e in dataset.examples] == [
        "train_images",
        "val_images",
    ]
    (tmp_path / "train_images/1.jpg").rename(tmp_path / "train_images/2.jpg")
    (tmp_path / "other_test").mkdir()
    shutil.copy(tmp_path / "val_images/1.jpg", tmp_path / "other_test/1.jpg")
    kinds = [problem.kind for problem in load_dataset(tmp_path, holdout=0).problems]
    assert "missing image" in kinds  # two folders of other splits hold a 1.jpg


@pytest.mark.parametrize("name", ["nocaps_test_image_info.json", "x.json"])
def test_images_without_captions_say_how_to_caption_them(name: str, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}]
    file = dump(tmp_path / name, {"info": {}, "images": images})
    with pytest.raises(DataError, match=r"holds no captions to learn from; .*captioner caption"):
        load_dataset(file)


@pytest.mark.parametrize("form", ["txt", "caption"])
@pytest.mark.parametrize(
    "options", [[], ["--template", "sks style, {caption}"], ["--style", "sentence"]]
)
def test_texts_that_captioner_wrote_come_back(
    form: str, options: list[str], tmp_path: Path
) -> None:
    toys.captioner().save(tmp_path / "model")
    folder = tmp_path / "in"
    shown = [toys.draw(folder / f"deep/{colour}.png", colour) for colour in toys.COLOURS]
    model = ["--model", str(tmp_path / "model")]
    command = ["caption", str(folder), "--recursive", *model, *options, "--format"]
    assert CliRunner().invoke(main, [*command, form]).exit_code == 0
    told = CliRunner().invoke(main, [*command, "jsonl"])
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    written = {Path(row["file_name"]): row["caption"] for row in rows if row["caption"]}
    found = {e.image: e.captions for e in load_dataset(folder, holdout=0).examples}
    assert len(found) > 2
    assert {*found} <= {*shown}
    assert found == {path: (caption,) for path, caption in written.items()}


def test_the_page_of_layouts_says_what_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/formats.md").read_text()
    rows = re.findall(r"^\| (.+?) \| `(\w+)` \| `captioner data (.+?)` \| (.+?) \|$", page, re.M)
    said = {name: (format, command, counts) for name, format, command, counts in rows}
    for layout in LAYOUTS:
        format, command, counts = said[layout.name]
        assert format == layout.format
        each = [
            f"{split} {images}, {captions}" for split, (images, captions) in layout.splits.items()
        ]
        assert counts == "; ".join(each)
        assert [part for part in command.split() if part.startswith("data.")] == [
            f"data.{name}={value}" for name, value in layout.set
        ]
        assert layout.root == "." or command.endswith(f"/{layout.root}")
    assert len(rows) == len(LAYOUTS) + 3  # the last three are not of tests/layouts.py
    assert {format for format, _, _ in said.values()} == {*FORMATS} - {"scenes"}


@pytest.mark.parametrize(
    ("file", "content", "captions"),
    [
        (
            "meta_cap.json",
            '{"a": {"caption": "a dog"}, "b": {"caption": "b", "caption": "x"}, "a": {}}',
            [("a dog",), ("b",)],
        ),
        (
            "captions.json",
            '{"a.jpg": "a dog", "b.jpg": ["b", "c"], "a.jpg": "x"}',
            [("a dog",), ("b", "c")],
        ),
        (
            "captions.jsonl",
            '{"image": "a.jpg", "text": "a dog", "text": "x"}\n{"image": "b.jpg", "text": "b"}\n',
            [("a dog",), ("b",)],
        ),
        (
            "captions_train.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1,'
            ' "caption": "a dog"}], "annotations": []}',
            [("a dog",)],
        ),
        (
            "dataset_x.json",
            '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}],'
            ' "sentences": []}]}',
            [("a dog",)],
        ),
    ],
    ids=["kohya", "map", "lines", "coco", "karpathy"],
)
def test_a_key_that_repeats_is_counted_and_the_first_is_read(
    file: str, content: str, captions: list[tuple[str, ...]], tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    (tmp_path / file).write_text(content)
    dataset = load_dataset(tmp_path, holdout=0)
    assert [example.captions for example in dataset.examples] == captions
    repeated = [p for p in dataset.problems if p.kind == "duplicate id"]
    assert len(repeated) == content.count('"x"') + content.count(": {}") + content.count(": []")
    assert all("again; the first value is read" in problem.detail for problem in repeated)
    assert all(problem.where.startswith(file) for problem in repeated)
