"""What one command reads, the others read: tables as other programs write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from captioner.captioning.records import Record
from captioner.captioning.sources.tables import table_images
from captioner.captioning.writers import write_output
from captioner.data.load import load_dataset
from captioner.errors import DataError, ImageError
from captioner.scoring.systems import CaptionSet, read_hypotheses, read_references
from captioner.system.text_files import is_missing
from captioner.text import Caption

NAMES = ["1.jpg", "2.jpg", "3.jpg"]
PLAIN = ["a dog", "a sign", "two men"]


def rows(delimiter: str, *header: str, first: str = "") -> str:
    lines = [delimiter.join(header)] if header else []
    lines += [f"{name}{delimiter}{text}" for name, text in zip(NAMES, PLAIN, strict=True)]
    return first + "".join(f"{line}\r\n" for line in lines)


OBJECTS = [{"image": n, "caption": c} for n, c in zip(NAMES, PLAIN, strict=True)]
LINES = "".join(json.dumps(row) + "\n" for row in OBJECTS)
TABLES = {
    "excel.csv": rows(";", "Image", "Caption", first="\ufeffsep=;\r\n"),
    "quoted.csv": rows("\t", '"File Name"', '"Caption Text"', first='"sep=\t"\n'),
    "empty columns.csv": "image,caption,,\n" + rows(",").replace("\r\n", ",,\r\n"),
    "windows.CSV": rows(",", "ImagePath", "Description"),
    "index.csv": ",url,caption\n"
    + "".join(f"{i},{row}" for i, row in enumerate(rows(",").splitlines(keepends=True))),
    "headless.csv": rows(","),
    "semicolons.csv": rows(";"),
    "headless.tsv": rows("\t"),
    "tokens.tsv": rows("\t").replace(".jpg", ".jpg#0"),
    "headless.txt": rows(",") + "\r\n",
    "renamed.txt": rows(",", "image", "caption"),
    "list.JSON": json.dumps(OBJECTS),
    "bom.json": "\ufeff" + json.dumps(OBJECTS, indent=1),
    "lines.json": LINES,
    "lines.JSONL": LINES,
    "commas.jsonl": LINES.replace("}\n", "},\n"),
    "commas.json": LINES.replace("}\n", "},\n"),
    "list.jsonl": json.dumps(OBJECTS, indent=1),
    "colons.txt": rows(": "),
    "colons.csv": rows(": "),
    "map.json": json.dumps(dict(zip(NAMES, PLAIN, strict=True))),
    "kohya.json": json.dumps({n: {"caption": c} for n, c in zip(NAMES, PLAIN, strict=True)}),
    "textcaps.json": json.dumps(
        {
            "dataset_name": "textcaps",
            "data": [
                {"image_id": n[0], "image_path": f"train/{n}", "caption_str": c}
                for n, c in zip(NAMES, PLAIN, strict=True)
            ],
        }
    ),
}


def pairs(found: CaptionSet) -> list[tuple[str, tuple[str, ...]]]:
    return [(image.file, image.captions) for image in found.images]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_alike_by_every_command(pictures: Path, name: str) -> None:
    file = pictures / name
    file.write_text(TABLES[name], encoding="utf-8", newline="")
    expected = [(name, (text,)) for name, text in zip(NAMES, PLAIN, strict=True)]
    dataset = load_dataset(file, holdout=0)
    assert dataset.problems == ()
    assert [(e.image.name, e.captions) for e in dataset.examples] == expected
    assert pairs(read_hypotheses(file)) == expected
    assert pairs(read_references([file])) == expected
    if file.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        assert [Path(i.name).name for i in table_images(str(file))] == NAMES


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("n_best", [1, 2])
def test_what_caption_writes_can_be_trained_on(pictures: Path, format: str, n_best: int) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    said = ["a dog, brown", '"stop" says a sign', "-a man\u2028b"]
    other = Caption("a cat", -2.0, -0.7, finished=True)
    records = [
        Record(f"images/{name}", (Caption(text, -1.5, -0.5, finished=True), other))
        for name, text in zip(NAMES, said, strict=True)
    ]
    endings = (".tsv", ".txt") if format == "text" else (f".{format}",)
    for ending in endings:
        output = pictures / f"out{ending}"
        write_output(records, output, format, n_best=n_best)
        (pictures / "errors.jsonl").write_text('{"file_name": "0.jpg", "error": "empty file"}\n')
        for root in (output, pictures):
            dataset = load_dataset(root, holdout=0)
            assert [(e.image.name, e.captions) for e in dataset.examples] == [
                (name, (text,)) for name, text in zip(NAMES, said, strict=True)
            ]
            assert dataset.problems == ()
            assert bool(dataset.notes) == (format == "text" and n_best > 1)
        output.unlink()
        (pictures / "errors.jsonl").unlink()


def test_numbered_columns_hold_the_captions_of_an_image(pictures: Path) -> None:
    file = pictures / "x.csv"
    file.write_text("image,caption_1,Caption 2\n1.jpg,a dog,a brown dog\n2.jpg,a cat,\n")
    dataset = load_dataset(file, holdout=0)
    expected = [("1.jpg", ("a dog", "a brown dog")), ("2.jpg", ("a cat",))]
    assert [(e.image.name, e.captions) for e in dataset.examples] == expected
    assert dataset.problems == ()
    assert "columns 'caption_1', 'Caption 2'" in dataset.notes[0]
    assert pairs(read_references([file])) == expected
    only = load_dataset(file, holdout=0, caption_column="caption_1")
    assert [e.captions for e in only.examples] == [("a dog",), ("a cat",)]


@pytest.mark.parametrize("folder", ["", "annotations/"])
def test_a_folder_of_json_lists_is_a_data_set(pictures: Path, folder: str) -> None:
    (pictures / "annotations").mkdir()
    for split, part in (("train", OBJECTS[:2]), ("val", OBJECTS[2:])):
        (pictures / f"{folder}x_{split}.json").write_text(json.dumps(part))
    (pictures / "config.json").write_text('{"a": 1}')
    dataset = load_dataset(pictures)
    assert dataset.format == "jsonl"
    assert dataset.splits == {"train": 2, "dev": 1}
    assert len(read_references([pictures]).images) == 3
    (pictures / "captions.csv").write_text("image,caption\n1.jpg,a dog\n")
    assert load_dataset(pictures, holdout=0).format == "csv"


EMPTY = ["nan", "NaN", "null", "None", "N/A", "<NA>", "#NAME?", " ", "..."]


@pytest.mark.parametrize("word", EMPTY)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
def test_words_of_empty_cells_are_no_captions(pictures: Path, word: str, ending: str) -> None:
    file = pictures / f"captions.{ending}"
    captions = dict(zip(NAMES, ["a dog", word, "nan and a sign"], strict=True))
    lines = [f"{name},{text}\n" for name, text in captions.items()]
    objects = [json.dumps({"image": n, "caption": c}) + "\n" for n, c in captions.items()]
    file.write_text("".join(objects if ending == "jsonl" else ["image,caption\n", *lines]))
    dataset = load_dataset(pictures, holdout=0)
    assert [e.captions[0] for e in dataset.examples] == ["a dog", "nan and a sign"]
    first = dataset.problems[0]
    assert (first.kind, first.detail) == ("empty caption", f"2.jpg {word}".strip())
    for read in (read_hypotheses, lambda path: read_references([path])):
        found = read(file)
        said = [text for image in found.images for text in image.captions]
        if word in (" ", "..."):
            assert (said[1], found.notes) == (word, ())
        else:
            assert said == ["a dog", "", "nan and a sign"]
            assert found.notes == (f"{file}: 1 captions count as empty: {word!r}",)


def test_empty_cells_of_numbers_splits_and_names() -> None:
    assert [is_missing(x) for x in (None, float("nan"), 0, 0.0, [], "no")] == [True] * 2 + [
        False
    ] * 4


def test_missing_names_splits_and_numbered_captions(pictures: Path) -> None:
    table = "image,split,caption_1,caption_2\n1.jpg,train,a dog,nan\nnan,train,a cat,a\n"
    (pictures / "captions.csv").write_text(table + "2.jpg,nan,a cat,a\n3.jpg,train,nan,nan\n")
    dataset = load_dataset(pictures, holdout=0)
    assert [(e.image.name, e.captions) for e in dataset.examples] == [("1.jpg", ("a dog",))]
    assert [(p.kind, p.where) for p in dataset.problems][:3] == [
        ("caption without image", "captions.csv:3"),
        ("malformed line", "captions.csv:4"),
        ("empty caption", "captions.csv:5"),
    ]


BESIDE = [
    ("captions.jsonl", "captions.csv"),
    ("captions.csv", "captions.tsv"),
    ("metadata.csv", "captions.csv"),
    ("captions.csv", "train.csv"),
    ("captions.txt", "captions.csv"),
    ("captions_train.json", "more.csv"),
    ("dataset_x.json", "captions.csv"),
    ("x.token.txt", "captions.jsonl"),
    ("captions.csv", "annotations/captions.json"),
    ("train.csv", "old.csv"),
]


@pytest.mark.parametrize(("kept", "left_out"), BESIDE)
def test_a_table_beside_another_is_named(pictures: Path, kept: str, left_out: str) -> None:
    image = {"id": 1, "file_name": "1.jpg"}
    karpathy = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
    contents = {
        "captions_train.json": json.dumps(
            {"images": [image], "annotations": [{"image_id": 1, "caption": "a dog"}]}
        ),
        "dataset_x.json": json.dumps({"images": [karpathy]}),
        "x.token.txt": "1.jpg#0\ta dog\n",
    }
    (pictures / "annotations").mkdir()
    for name in (kept, left_out):
        content = (
            LINES if "json" in name else rows("\t" if "tsv" in name else ",", "image", "caption")
        )
        (pictures / name).write_text(contents.get(name, content))
    for name in ("errors.jsonl", "package.json", ".hidden.csv"):
        (pictures / name).write_text("{}")
    note = f"read: {kept}; left out: {left_out}; data.root=FILE reads another"
    assert [n for n in load_dataset(pictures, holdout=0).notes if "left out" in n] == [note]
    assert f"{pictures}: {note}" in read_references([pictures]).notes
    alone = load_dataset(pictures / kept, images=pictures / "images", holdout=0)
    assert not [n for n in alone.notes if "left out" in n]


def test_tables_in_a_folder_without_a_usual_name_are_named(pictures: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (pictures / name).write_text(rows(",", "image", "caption"))
    with pytest.raises(DataError, match=r"found a.csv, b.csv; .*data.root=.*a.csv.* train and dev"):
        load_dataset(pictures)
    (pictures / "a.csv").unlink()
    (pictures / "b.csv").rename(pictures / "b.json")
    for content, says in (
        (json.dumps(OBJECTS).encode("utf-16-le"), "UTF-16"),
        (b"\n", "empty file"),
    ):
        (pictures / "b.json").write_bytes(content)
        with pytest.raises(DataError, match=rf"b.json: .*{says}"):
            load_dataset(pictures)


@pytest.mark.parametrize("name", ["captions.csv", "captions.txt", "x.token.txt", "captions.tsv"])
def test_an_empty_table_is_one_line(pictures: Path, name: str) -> None:
    (pictures / name).write_text("\n")
    with pytest.raises(DataError, match=rf"{name}: empty file\Z"):
        load_dataset(pictures)


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
NO_TEXTS = {
    "photo.png": (PNG, "an image"),
    "captions.csv": (b"\xff\xd8\xff\xe0\0\x10JFIF", "an image"),
    "clip.txt": (b"\0\0\0\x18ftypheic", "an image or a video"),
    "x.csv.gz": (gzip.compress(b"image,caption\n"), "a compressed file; unpack it"),
    "x.xlsx": (b"PK\x03\x04\x14\0", "Excel workbook; .*CSV in UTF-8"),
    "x.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel .*CSV in UTF-8"),
    "x.jsonl": (b"<!DOCTYPE html>\n<html>", "a web page"),
    "x.json": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "unmarked.csv": ("image,caption\n".encode("utf-16-le"), "if it is UTF-16, save it as UTF-8"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_file_that_is_no_text_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    content, says = NO_TEXTS[name]
    file = tmp_path / name
    file.write_bytes(content)
    for read in (load_dataset, read_hypotheses, lambda path: read_references([path])):
        with pytest.raises(DataError, match=rf"{name}: .*{says}") as caught:
            read(file)
        assert "\n" not in str(caught.value)
    if file.suffix in (".csv", ".jsonl"):
        (item,) = table_images(str(file))
        assert isinstance(item.source, ImageError)
