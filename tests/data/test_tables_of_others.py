"""What one command reads, the others read: tables as other programs write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from captioner.captioner import Caption
from captioner.captioning.records import Record
from captioner.captioning.sources.tables import table_images
from captioner.captioning.writers import write_output
from captioner.data.load import load_dataset
from captioner.errors import DataError, ImageError
from captioner.scoring.systems import CaptionSet, read_hypotheses, read_references

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
    "unicode.txt": ("image\tcaption\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
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
