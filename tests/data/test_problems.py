"""Every kind of damage, in every format: counted with file and line, never dropped or raised."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.data.dataset import describe
from captioner.data.formats.collect import Pictures
from captioner.data.load import load_dataset
from captioner.errors import DataError


def problems(root: Path) -> list[tuple[str, str]]:
    return [(p.kind, p.where) for p in load_dataset(root, holdout=0).problems]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_flickr(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg", "mute.jpg", "unnamed.png", "notes.txt")
    (tmp_path / "x.token.txt").write_bytes(
        b"a.jpg#0\tA dog\n"
        b"a.jpg#1\t  \n"  # 2
        b"a.jpg#2\tcaf\xe9\n"  # 3
        b"a.jpg without tab\n"  # 4
        b"a.jpg#0\tagain\n"  # 5
        b"gone.jpg#0\tGone\n"
        b"#0\tnobody's\n"  # 7
        b"b.jpg#0\tA cat\n"
        b"stranger.jpg#0\tS\n"
    )
    (tmp_path / "x.trainImages.txt").write_bytes(b"a.jpg\ngone.jpg\nmute.jpg\na.jpg\n\xff.jpg\n")
    (tmp_path / "x.devImages.txt").write_bytes(b"b.jpg\na.jpg\n")
    (tmp_path / "x.testImages.txt").write_bytes(b"")
    assert problems(tmp_path) == [
        ("duplicate id", "x.trainImages.txt:4"),
        ("not UTF-8", "x.trainImages.txt:5"),
        ("duplicate id", "x.devImages.txt:2"),
        ("empty caption", "x.token.txt:2"),
        ("not UTF-8", "x.token.txt:3"),
        ("malformed line", "x.token.txt:4"),
        ("duplicate id", "x.token.txt:5"),
        ("caption without image", "x.token.txt:7"),
        ("missing image", "x.trainImages.txt:2"),
        ("image without captions", "x.trainImages.txt:3"),
        ("image without captions", "images/unnamed.png"),
        ("empty split", "x.testImages.txt"),
    ]
    dataset = load_dataset(tmp_path, holdout=0)
    kept = [(e.image_id, e.split, e.captions) for e in dataset.examples]
    assert kept == [("a.jpg", "train", ("A dog",)), ("b.jpg", "dev", ("A cat",))]
    assert "1 captioned images" in dataset.notes[0]


def test_flickr_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "captions.txt").write_bytes(
        b"image,caption\n"
        b"a.jpg,A dog\n"
        b'a.jpg,"An open quote\n'  # must not swallow the rest
        b"b.jpg\n"  # 4
        b'b.jpg,"A, cat"\n'
        b"b.jpg,\n"  # 6
        b",nobody's\n"  # 7
        b"b.jpg,caf\xe9\n"  # 8
    )
    assert problems(tmp_path) == [
        ("malformed line", "captions.txt:4"),
        ("empty caption", "captions.txt:6"),
        ("caption without image", "captions.txt:7"),
        ("not UTF-8", "captions.txt:8"),
    ]
    captions = [e.captions for e in load_dataset(tmp_path, holdout=0).examples]
    assert captions == [("A dog", '"An open quote'), ("A, cat",)]


def test_karpathy(tmp_path: Path) -> None:
    def image(name: object, *sentences: object, **more: object) -> dict[str, object]:
        return {"filename": name, "split": "train", "sentences": list(sentences), **more}

    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    images = [
        image(
            "a.jpg", {"raw": "A"}, {"raw": ""}, {"raw": 5}, "bare", {"tokens": ["x", 1]}, imgid=1
        ),
        image("b.jpg"),
        image("gone.jpg", {"raw": "G"}, split="test"),
        image("a.jpg", {"raw": "again"}, imgid=2),
        image("c.jpg", {"raw": "again"}, imgid=1),
        image(None, {"raw": "N"}),
        "no object",
        image("d.jpg", {"raw": "half an emoji \ud83d"}, {"raw": "D"}, imgid=[]),
        image("lost.jpg", {"raw": "L"}, split="test"),
    ]
    file = tmp_path / "dataset_x.json"
    file.write_text(json.dumps({"images": images}))
    place = "dataset_x.json: images"
    assert problems(file) == [
        ("empty caption", f"{place}[0].sentences[1]"),
        ("malformed line", f"{place}[0].sentences[2]"),
        ("malformed line", f"{place}[0].sentences[3]"),
        ("malformed line", f"{place}[0].sentences[4]"),
        ("duplicate id", f"{place}[3]"),
        ("duplicate id", f"{place}[4]"),
        ("malformed line", f"{place}[5]"),
        ("malformed line", f"{place}[6]"),
        ("not UTF-8", f"{place}[7].sentences[0]"),
        ("image without captions", f"{place}[1]"),
        ("missing image", f"{place}[2]"),
        ("missing image", f"{place}[8]"),
        ("empty split", f"{place}[2]"),
    ]


def test_coco(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    images = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": 2, "file_name": "b.jpg"},
        {"id": 1, "file_name": "c.jpg"},
        {"id": 4, "file_name": "gone.jpg"},
        {"id": None, "file_name": "c.jpg"},
    ]
    annotations = [
        {"id": 1, "image_id": 1, "caption": "A dog"},
        {"id": 2, "image_id": 1, "caption": " \n"},
        {"id": 3, "image_id": 9, "caption": "nobody's"},
        {"id": 1, "image_id": 1, "caption": "same annotation id"},
        {"id": 5, "image_id": 4, "caption": "G"},
        {"id": 6, "image_id": 1},
        {"id": 7, "image_id": 1, "caption": ["A"]},
    ]
    document = {"images": images, "annotations": annotations}
    (tmp_path / "captions_train.json").write_text(json.dumps(document))
    empty = {"images": [], "annotations": []}
    (tmp_path / "captions_val.json").write_text(json.dumps(empty))
    place = "captions_train.json:"
    assert problems(tmp_path) == [
        ("duplicate id", f"{place} images[2]"),
        ("malformed line", f"{place} images[4]"),
        ("empty caption", f"{place} annotations[1]"),
        ("caption without image", f"{place} annotations[2]"),
        ("duplicate id", f"{place} annotations[3]"),
        ("malformed line", f"{place} annotations[5]"),
        ("malformed line", f"{place} annotations[6]"),
        ("image without captions", f"{place} images[1]"),
        ("missing image", f"{place} images[3]"),
        ("empty split", "captions_val.json"),
    ]


def test_bytes_that_are_not_utf8_cost_one_caption_of_a_json_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "captions_val.json").write_bytes(
        b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": ['
        b'{"image_id": 1, "caption": "caf\xe9"}, {"image_id": 1, "caption": "caf\xc3\xa9"}]}'
    )
    assert problems(tmp_path) == [("not UTF-8", "captions_val.json: annotations[0]")]
    assert load_dataset(tmp_path).examples[0].captions == ("café",)


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg", "unnamed.jpg")
    (tmp_path / "data.csv").write_bytes(
        b"id,image,caption,split\n"
        b"1,a.jpg,A dog,train\n"
        b'1,a.jpg,"two\nlines",train\n'
        b"1,a.jpg,,train\n"  # 5
        b"4,,nobody's,train\n"  # 6
        b"1,a.jpg,A dog, brown,train\n"  # 7
        b"1,a.jpg,leak,test\n"  # 8
        b"7,gone.jpg,G,train\n"  # 9
        b"1,b.jpg,B,train\n"  # 10
        b"8,c.jpg,caf\xe9,train\n"  # 11
        b"8,c.jpg,C,\n"  # 12
    )
    assert problems(tmp_path) == [
        ("empty caption", "data.csv:5"),
        ("caption without image", "data.csv:6"),
        ("malformed line", "data.csv:7"),
        ("duplicate id", "data.csv:8"),
        ("duplicate id", "data.csv:10"),
        ("not UTF-8", "data.csv:11"),
        ("malformed line", "data.csv:12"),
        ("missing image", "data.csv:9"),
        *(("image without captions", f"images/{name}.jpg") for name in ("b", "c", "unnamed")),
    ]
    assert load_dataset(tmp_path).examples[0].captions == ("A dog", "two\nlines")
    details = {p.where: p.detail for p in load_dataset(tmp_path).problems}
    assert details["data.csv:12"] == "image 'c.jpg': has no split"
    # A single file is a data set of its own: pictures it does not name are none of its business.
    assert not any(where.startswith("images") for _, where in problems(tmp_path / "data.csv"))


def test_jsonl(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "unnamed.jpg")
    (tmp_path / "metadata.jsonl").write_bytes(
        b'{"file_name": "a.jpg", "text": ["A", "", null, 3]}\n'  # 1, 1, 1
        b'{"file_name": "b.jpg", "text": []}\n'  # 2
        b'{"file_name": "gone.jpg", "text": "G"}\n'  # 3
        b'{"file_name": "a.jpg", "text": \n'  # 4
        b'["a.jpg", "A"]\n'  # 5
        b'{"text": "nobody\'s"}\n'  # 6
        b'{"file_name": {"path": "a.jpg"}, "text": "A"}\n'  # 7
        b'{"file_name": "a.jpg", "text": "caf\xe9"}\n'  # 8
        b'{"file_name": "\\ud83d.jpg", "text": "A"}\n' + b"[" * 100_000  # 9  # 10
    )
    at = "metadata.jsonl:{}".format
    assert problems(tmp_path) == [
        ("empty caption", at(1)),
        ("empty caption", at(1)),
        ("malformed line", at(1)),
        ("malformed line", at(4)),
        ("malformed line", at(5)),
        ("caption without image", at(6)),
        ("malformed line", at(7)),
        ("not UTF-8", at(8)),
        ("not UTF-8", at(9)),
        ("malformed line", at(10)),
        ("image without captions", at(2)),
        ("missing image", at(3)),
        ("image without captions", "unnamed.jpg"),
    ]
    assert problems(tmp_path / "metadata.jsonl") == problems(tmp_path)[:-1]


def test_strict_lists_ten_problems_and_their_number(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    rows = ["image,caption", "a.jpg,A", *(f"gone{n}.jpg,G" for n in range(12))]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path, strict=True)
    lines = str(caught.value).splitlines()
    assert "12 problems" in lines[0]
    assert lines[1].startswith("  x.csv:3: missing image: no gone0.jpg in ")
    assert len(lines) == 12
    assert lines[-1] == "  ..."

    (tmp_path / "x.csv").write_text("image,caption\na.jpg,A\n")
    assert load_dataset(tmp_path, strict=True).notes, "the note on the held-out share is no problem"


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("x.jsonl", b'{"image": "a.jpg", "caption": 3}', ""),
        ("x.csv", b"image,caption\ngone.jpg,A\n", "data.images names the folder of the images"),
        ("x.csv", b"image,caption\na.jpg,caf\xe9\n", "save the file as UTF-8"),
    ],
)
def test_a_data_set_without_images_gives_the_advice_that_fits(
    tmp_path: Path, name: str, text: bytes, advice: str
) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    advices = ("data.images names the folder of the images", "save the file as UTF-8")
    assert [given for given in advices if given in str(caught.value)] == (
        [advice] if advice else []
    )


def test_a_row_says_which_of_its_cells_is_wrong(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    rows: list[tuple[object, object]] = [("a.jpg", "train"), ({"bytes": "x" * 999}, "train")]
    rows += [("a.jpg", None), ("a.jpg", 3)]
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"image": i, "caption": "A", "split": s}) + "\n" for i, s in rows)
    )
    image, none, number = [p.detail for p in load_dataset(tmp_path, holdout=0).problems]
    assert image.startswith("the image is not a file name: {'bytes': 'xxx")
    assert len(image) < 100
    assert none == "image 'a.jpg': has no split"
    assert number == "image 'a.jpg': split 3 is not text"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"images": [\n  1,, 2]}', "x.json: not valid JSON: .* line 2 column 5"),
        ("x.json", "[" * 100_000, "x.json: not valid JSON"),
        ("x.json", "[1]", "x.json: neither COCO captions"),
        ("x.json", '{"images": {}, "annotations": []}', "x.json: neither COCO captions"),
        ("dataset_x.json", '{"images": 3}', "dataset_x.json: not a Karpathy split"),
        ("x.csv", "", "x.csv: empty file"),
        ("x.csv", "image,caption,caption\n", "x.csv: two columns have the same name"),
        ("x.csv", "subject,caption\n", "no known image column.*columns: 'subject', 'caption'"),
        ("x.jsonl", "3\n", "x.jsonl: no JSON object"),
        ("x.jsonl", '{"image": "a.jpg", "words": "A"}', "x.jsonl: no known caption column"),
        ("captions.txt", "", "captions.txt: empty file"),
        ("x.csv", "image,caption\ngone.jpg,G\n", "no usable image.*missing image at x.csv:2"),
        (
            "readme.md",
            "hello",
            "(?s)no data set of a known format; expected one of.*coco: .*csv: a .csv",
        ),
    ],
)
def test_whole_file_disasters(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / name if name == "x.json" else tmp_path)


def test_other_disasters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"'xml' is none of: auto, scenes, .*karpathy"):
        load_dataset(tmp_path, format="xml")
    for name in ("flickr", "karpathy", "coco", "csv", "jsonl"):
        with pytest.raises(DataError, match="expected"):
            load_dataset(tmp_path, format=name)
    file = tmp_path / "x.csv"
    file.write_text("image,caption\na.jpg,A\n", encoding="utf-16-le")
    with pytest.raises(DataError, match=r"x.csv: .* if it is UTF-16"):
        load_dataset(file)
    file.write_text("image,caption\na.jpg,A\n")
    for column in ("image_column", "caption_column", "split_column"):
        with pytest.raises(DataError, match=rf"no column 'nope' .*{column}.*'image', 'caption'"):
            load_dataset(file, **{column: "nope"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such image folder"):
        load_dataset(file, images=tmp_path / "nowhere")
    for name in ("dataset_a.json", "dataset_b.json"):
        (tmp_path / name).write_text('{"images": []}')
    with pytest.raises(DataError, match=r"found dataset_a.json, dataset_b.json; name the file"):
        load_dataset(tmp_path)


def test_table_counts_everything(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "x.csv").write_text(
        "image,caption,split\na.jpg,A,train\na.jpg,B,train\nb.jpg,,dev\nb.jpg,B,dev\nb.jpg,,dev\n"
    )
    dataset = load_dataset(tmp_path / "x.csv")
    rows = [line.split() for line in describe(dataset, [("vocabulary", "3 words")]).splitlines()]
    assert rows[1:6] == [
        ["images", "captions"],
        ["train", "1", "2"],
        ["dev", "1", "1"],
        ["total", "2", "3"],
        ["vocabulary", "3", "words"],
    ]
    assert " ".join(rows[6]) == "skipped 2 empty caption (first at x.csv:4: b.jpg)"
    assert len(rows) == 7


def test_pictures_are_listed_and_never_asked_for_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    listed = []
    scandir = __import__("os").scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(path) or scandir(path))
    pictures = Pictures([tmp_path / "nowhere", tmp_path])
    assert pictures.find("a.jpg") == tmp_path / "a.jpg"
    assert pictures.find(str(tmp_path / "b.jpg")) == tmp_path / "b.jpg"
    for name in ("gone.jpg", "folder.jpg", "dangling.jpg", "a\0b/c.jpg", "x" * 9999 + "/a.jpg"):
        assert pictures.find(name) is None
    assert pictures.unnamed() == [tmp_path / "c.jpg"]
    assert listed.count(str(tmp_path)) == 1


NAMES = ["a.jpg", "a.jpg#0", "", "train", "\ud83d", "images", "sentences", "raw", "tokens", "split"]
NAMES += ["filename", "filepath", "imgid", "cocoid", "annotations", "id", "image_id", "file_name"]
NAMES += ["caption", "text", "image"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(NAMES),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES), inner),
)
ENTRY = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(NAMES[6:], JSON) | {"sentences": st.lists(JSON)}
)
DOCUMENT = st.fixed_dictionaries({"images": st.lists(ENTRY), "annotations": st.lists(ENTRY)})
LINES = st.lists(
    st.sampled_from([b"a.jpg", b"image", b"caption", b",", b"\t", b"#0", b'"', b"\n", b"\r", b"|"])
    | st.binary(max_size=3)
).map(b"".join)
ANY = st.one_of(
    (JSON | DOCUMENT).map(json.dumps).map(str.encode),
    st.lists(ENTRY).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    LINES,
    LINES.map(lambda lines: b"image,caption\n" + lines),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ANY, format=st.sampled_from(["flickr", "karpathy", "coco", "csv", "jsonl"]))
def test_any_content_gives_examples_or_one_clear_error(
    tmp_path: Path, content: bytes, format: str
) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "x.trainImages.txt").write_bytes(content)
    try:
        dataset = load_dataset(tmp_path / "file", format=format)
    except DataError as error:
        assert str(error).startswith(str(tmp_path))
        return
    for example in dataset.examples:
        assert example.image == tmp_path / "a.jpg"
        assert example.captions
        assert all(caption == caption.strip() != "" for caption in example.captions)
    describe(dataset).encode()


@pytest.mark.parametrize("name", ["captions.txt", "metadata.csv", "captions.jsonl"])
def test_a_pipe_among_the_annotations_is_not_waited_for(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"not a regular file|no data set of a known format"):
        load_dataset(tmp_path)


def test_a_pipe_among_the_pictures_is_a_missing_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,A dog\npipe.jpg,A cat\n")
    assert ("missing image", "captions.csv:3") in problems(tmp_path)
