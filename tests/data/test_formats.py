"""Every format, healthy: what is on disk comes out as examples, with nothing to complain about."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.cli import main
from captioner.config import DataConfig
from captioner.data.dataset import Dataset
from captioner.data.load import FORMATS, load_dataset
from captioner.errors import DataError

import toys


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def dump(path: Path, document: object) -> Path:
    return write(path, json.dumps(document))


def clean(root: Path, **options: object) -> Dataset:
    dataset = load_dataset(root, **{"holdout": 0, **options})  # type: ignore[arg-type]
    assert dataset.problems == ()
    return dataset


def content(dataset: Dataset) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(e.image_id, e.image.name, e.split, e.captions) for e in dataset.examples]


AB = [("a.jpg", "a.jpg", "train", ("A dog .", "A cat .")), ("b.jpg", "b.jpg", "dev", ("B, b",))]


@pytest.mark.parametrize("folder", ["images", "Images", "Flicker8k_Dataset", "."])
def test_flickr_tokens(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / folder, "a.jpg", "b.jpg")
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA dog .", "b.jpg#0\tB, b", "a.jpg#1\tA cat .")
    write(tmp_path / "Flickr8k.lemma.token.txt", "a.jpg#0\ta dog be .")
    write(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg")
    write(tmp_path / "Flickr_8k.devImages.txt", "b.jpg", "")
    dataset = clean(tmp_path)
    assert dataset.format == "flickr"
    assert content(dataset) == AB
    assert dataset.notes == ()
    assert dataset.examples[0].image == tmp_path / folder / "a.jpg"


@pytest.mark.parametrize("header", [[], ["image,caption"], ['"image_name","caption"']])
def test_flickr_table(tmp_path: Path, header: list[str]) -> None:
    touch(tmp_path / "Images", "a.jpg", "b.jpg", "c.jpg")
    write(
        tmp_path / "captions.txt",
        *header,
        "a.jpg,A dog .",
        'a.jpg,"He said ""no"" , twice ."',
        "b.jpg,no quotes, but commas",
        '"c.jpg","quoted"',
        'c.jpg,"Stop" says a sign',
    )
    assert [(e.image_id, e.split, e.captions) for e in clean(tmp_path).examples] == [
        ("a.jpg", "train", ("A dog .", 'He said "no" , twice .')),
        ("b.jpg", "train", ("no quotes, but commas",)),
        ("c.jpg", "train", ("quoted", '"Stop" says a sign')),
    ]


def test_flickr30k(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "flickr30k_images", "a.jpg")
    write(
        tmp_path / "one" / "results.csv",
        "image_name| comment_number| comment",
        "a.jpg| 0| A dog , brown | old .",
        'a.jpg| 1| " Hi " .',
    )
    one = clean(tmp_path / "one")
    assert one.format == "flickr"
    assert one.examples[0].captions == ("A dog , brown | old .", '" Hi " .')

    touch(tmp_path / "two" / "images", "a.jpg")
    write(tmp_path / "two" / "results_20130124.token", "a.jpg#0\tA dog .")
    assert clean(tmp_path / "two").examples[0].captions == ("A dog .",)


def test_flickr_says_what_no_list_names(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg")
    write(tmp_path / "x.token.txt", "a.jpg#0\tA", "b.jpg#0\tB", "b.jpg#1\tB", "c.jpg#0\tC")
    write(tmp_path / "x.trainImages.txt", "a.jpg")
    dataset = clean(tmp_path)
    assert [e.image_id for e in dataset.examples] == ["a.jpg"]
    assert dataset.notes == ("2 captioned images are in no split list; left out (first: b.jpg)",)


def karpathy(**extra: object) -> dict[str, object]:
    return {
        "images": [
            {"filename": "a.jpg", "split": "train", "imgid": 0, "sentences": [{"raw": " A dog. "}]},
            {
                "filename": "b.jpg",
                "split": "restval",
                "imgid": 1,
                "sentences": [{"tokens": ["b", "it", "is"]}, {"raw": None, "tokens": ["b"]}],
            },
            {"filename": "c.jpg", "split": "val", "imgid": 2, "sentences": [{"raw": "C", **extra}]},
        ],
        "dataset": "flickr8k",
    }


@pytest.mark.parametrize("restval", [False, True])
def test_karpathy(tmp_path: Path, restval: bool) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    file = dump(tmp_path / "dataset_flickr8k.json", karpathy())
    for root in (tmp_path, file):
        dataset = clean(root, restval=restval)
        assert dataset.format == "karpathy"
        assert content(dataset) == [
            ("a.jpg", "a.jpg", "train", ("A dog.",)),
            ("b.jpg", "b.jpg", "train" if restval else "restval", ("b it is", "b")),
            ("c.jpg", "c.jpg", "dev", ("C",)),
        ]
        assert any("1 restval" in note for note in dataset.notes) is not restval


def test_karpathy_coco_ids_and_folders(tmp_path: Path) -> None:
    document = karpathy()
    for number, image in enumerate(document["images"]):  # type: ignore[arg-type]
        image |= {"cocoid": 100 + number, "filepath": "val2014"}
    touch(tmp_path / "val2014", "a.jpg", "b.jpg", "c.jpg")
    dataset = clean(dump(tmp_path / "dataset_coco.json", document))
    assert [e.image_id for e in dataset.examples] == ["100", "101", "102"]
    assert dataset.examples[0].image == tmp_path / "val2014" / "a.jpg"


def coco(first_id: int, *names: str) -> dict[str, object]:
    ids = list(enumerate(names, start=first_id))
    return {
        "info": {},
        "annotations": [
            {"id": 10 * number + k, "image_id": number, "caption": f"{name} {k}"}
            for k in (0, 1)
            for number, name in ids
        ],
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in ids],
    }


@pytest.mark.parametrize("pictures", [".", "images"])
def test_coco_folder(tmp_path: Path, pictures: str) -> None:
    dump(tmp_path / "annotations" / "captions_train2017.json", coco(391895, "a", "b"))
    dump(tmp_path / "annotations" / "captions_val2017.json", coco(7, "c"))
    touch(tmp_path / pictures, "train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg")
    dataset = clean(tmp_path)
    assert dataset.format == "coco"
    assert content(dataset) == [
        ("391895", "a.jpg", "train", ("a 0", "a 1")),
        ("391896", "b.jpg", "train", ("b 0", "b 1")),
        ("7", "c.jpg", "dev", ("c 0", "c 1")),
    ]


def test_coco_file(tmp_path: Path) -> None:
    file = dump(tmp_path / "annotations" / "captions_val2014.json", coco(1, "a"))
    touch(tmp_path / "val2014", "a.jpg")
    assert clean(file).splits == {"dev": 1}
    other = dump(tmp_path / "mine.json", coco(1, "a"))
    dataset = clean(other, images=tmp_path / "val2014")
    assert dataset.splits == {"train": 1}
    assert "mine.json names no split" in dataset.notes[0]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("x.csv", ","), ("x.csv", ";"), ("x.tsv", "\t"), ("x.csv", "|")]
)
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    touch(tmp_path, "a.jpg", "pictures/b.jpg")
    rows = [
        ("split", "Filename", "caption", "age"),
        ("train", "a.jpg", f"A dog{delimiter} brown", "1"),
        ("validation", str(tmp_path / "pictures" / "b.jpg"), '"B"\nb', "2"),
        ("train", "a.jpg", "A cat", "3"),
    ]
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    for root in (tmp_path, tmp_path / name):
        dataset = clean(root)
        assert dataset.format == "csv"
        assert [(e.image.name, e.split, e.captions) for e in dataset.examples] == [
            ("a.jpg", "train", (f"A dog{delimiter} brown", "A cat")),
            ("b.jpg", "dev", ('"B"\nb',)),
        ]


def test_csv_named_columns_ids_and_lists(tmp_path: Path) -> None:
    touch(tmp_path / "pictures", "a.jpg", "b.jpg")
    file = write(
        tmp_path / "x.csv",
        "image_id,file,photo,text,says,part",
        'one,?,a.jpg,?,"[""A"", ""dog""]",training',
        'two,?,b.jpg,?,"[""B]",mine',
        f'two,?,b.jpg,?,"[""C"",{"[" * 50_000}]",mine',
    )
    options = {"image_column": "photo", "caption_column": "says", "split_column": "part"}
    dataset = clean(file, images=tmp_path / "pictures", **options)
    assert content(dataset) == [
        ("one", "a.jpg", "train", ("A", "dog")),
        ("two", "b.jpg", "mine", ('["B]', f'["C",{"[" * 50_000}]')),
    ]


def test_csv_folder_with_one_file_per_split(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    for name, image in (("train", "a"), ("val", "b"), ("test", "c")):
        write(tmp_path / f"{name}.csv", "image,caption", f"{image}.jpg,{image}")
    assert clean(tmp_path).splits == {"train": 1, "dev": 1, "test": 1}


def test_jsonl(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    rows: list[dict[str, object]] = [
        {"file_name": "a.jpg", "text": ["A dog .", "A cat ."]},
        {"file_name": "b.jpg", "text": "B\u2028b", "split": "val"},
        {"text": "C", "file_name": "b.jpg", "split": "val"},
    ]
    write(tmp_path / "metadata.jsonl", *(json.dumps({"split": "train", **row}) for row in rows))
    for root in (tmp_path, tmp_path / "metadata.jsonl"):
        dataset = clean(root)
        assert dataset.format == "jsonl"
        assert content(dataset) == [AB[0], ("b.jpg", "b.jpg", "dev", ("B\u2028b", "C"))]


def test_jsonl_hugging_face_folders_per_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        touch(tmp_path / split, "1.jpg")
        row = {"file_name": "1.jpg", "text": split}
        write(tmp_path / split / "metadata.jsonl", json.dumps(row, ensure_ascii=False))
    assert content(clean(tmp_path)) == [
        ("train/1.jpg", "1.jpg", "train", ("train",)),
        ("validation/1.jpg", "1.jpg", "dev", ("validation",)),
    ]
    assert clean(tmp_path / "validation").splits == {"dev": 1}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("x.token.txt", ["a.jpg#0\tÄ dog", "a.jpg#1\tcat"]),
        ("captions.txt", ["image,caption", "a.jpg,Ä dog", "a.jpg,cat"]),
        ("x.csv", ["image,caption", "a.jpg,Ä dog", "", "a.jpg,cat"]),
        (
            "x.jsonl",
            [
                '{"image": "a.jpg",  "caption": "Ä dog"}',
                '{"image":"a.jpg","text":1,"caption":"cat"}',
            ],
        ),
    ],
)
def test_bom_and_line_endings(
    tmp_path: Path, name: str, lines: Iterable[str], bom: str, ending: str
) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes((bom + "".join(line + ending for line in lines)).encode())
    assert clean(tmp_path).examples[0].captions == ("Ä dog", "cat")


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).filter(
    lambda text: bool(text.strip()) and not text.startswith('["')
)
TEXT = TEXT.map(lambda text: f"{text[:1]}x{text[1:]}")  # a caption has a letter or a digit


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=st.lists(TEXT, min_size=1, max_size=5),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_csv_round_trip(
    tmp_path: Path, captions: list[str], delimiter: str, quoting: csv._QuotingType
) -> None:
    touch(tmp_path, "a.jpg")
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerows([("image", "caption"), *(("a.jpg", text) for text in captions)])
    assert clean(tmp_path).examples[0].captions == tuple(text.strip() for text in captions)


def test_scenes_are_told_from_other_jsonl(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "captions.jsonl", '{"file_name": "a.jpg", "captions": ["A"]}')
    assert clean(tmp_path).format == "jsonl"
    with pytest.raises(DataError, match="a folder with drawn scenes"):
        clean(tmp_path, format="scenes")
    thing = {"kind": "star", "colour": "red", "size": "small"}
    scene = {"things": [thing], "count": 1, "relation": ""}
    row = {"file_name": "a.jpg", "split": "dev", "captions": ["a small red star"], "scene": scene}
    dump(tmp_path / "captions.jsonl", row)
    dataset = clean(tmp_path)
    assert dataset.format == "scenes"
    assert dataset.judge is not None
    assert dataset.judge("a", "a small red star")
    assert not dataset.judge("a", "a large red star")


def test_the_config_names_every_format_that_can_be_read() -> None:
    named = get_args(DataConfig.model_fields["format"].annotation)
    assert sorted(named) == sorted(["auto", *FORMATS])


@pytest.mark.parametrize(
    "cell",
    [
        str(["a dog", "a man's dog"]),  # pandas
        str(("a dog", "a man's dog")),
        "['a dog'\n \"a man's dog\"]",  # NumPy
        json.dumps(["a dog", "a man's dog"]),
    ],
)
def test_csv_lists_as_other_tools_write_them(tmp_path: Path, cell: str) -> None:
    touch(tmp_path, "a.jpg")
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "captions"], ["a.jpg", cell]])
    assert clean(tmp_path).examples[0].captions == ("a dog", "a man's dog")


@pytest.mark.parametrize("column", ["Split", "SPLIT", "partition", "Set", "phase"])
@pytest.mark.parametrize("test", ["test", "Testing", "test_set", "Test2017", "testset"])
def test_a_split_column_of_any_name_is_obeyed(tmp_path: Path, column: str, test: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = ["a.jpg,A,train", "b.jpg,B,Valid", f"c.jpg,C,{test}"]
    write(tmp_path / "x.csv", f"Image,Caption,{column}", *rows)
    dataset = clean(tmp_path)
    assert [example.split for example in dataset.examples] == ["train", "dev", "test"]
    assert bool(dataset.notes) is (column.lower() != "split")


def test_an_id_column_that_numbers_captions_is_no_image_id(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(9)]
    touch(tmp_path, *names)
    for ids in ([0, 1, 2], [f"{n}" for n in range(27)]):
        rows = [f"{name},{ids[(3 * n + k) % len(ids)]},C{k}"
                for n, name in enumerate(names) for k in range(3)]  # fmt: skip
        write(tmp_path / "x.csv", "image,id,caption", *rows)
        dataset = clean(tmp_path)
        assert [e.image_id for e in dataset.examples] == names
        assert {e.captions for e in dataset.examples} == {("C0", "C1", "C2")}
        assert "'id' does not identify images" in dataset.notes[0]


def test_only_sub_folders_name_a_split(tmp_path: Path) -> None:
    touch(tmp_path / "dev", "a.jpg")
    write(tmp_path / "dev/metadata.csv", "file_name,text", "a.jpg,A")
    assert clean(tmp_path / "dev").splits == clean(tmp_path / "dev/metadata.csv").splits
    assert clean(tmp_path / "dev").splits == {"train": 1}
    assert clean(tmp_path).splits == {"dev": 1}


def test_tables_with_a_split_in_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "captions_train.csv", "image,caption", "a.jpg,A")
    write(tmp_path / "captions_Test.csv", "image,caption", "b.jpg,B")
    write(tmp_path / "._captions_Test.csv", "macOS")
    assert clean(tmp_path).splits == {"train": 1, "test": 1}


def test_hugging_face_dataset_infos_are_no_karpathy_split(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a.jpg", "._a.jpg")
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "a.jpg", "text": "A"}')
    dump(tmp_path / "dataset_infos.json", {"default": {"features": {"images": 1}}})
    assert clean(tmp_path).splits == {"train": 1}


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("images\\IMG_0.JPG", "images/IMG_0.JPG"),
        ("img_0.jpg", "images/IMG_0.JPG"),
        ("caf\u00e9.jpg", "images/cafe\u0301.jpg"),
        ("val2014/a.jpg", "images/a.jpg"),
        ("Val2014\\A.JPG", "images/val2014/a.jpg"),
        ("a", "images/a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
    ],
)
def test_names_of_other_systems(tmp_path: Path, written: str, on_disk: str) -> None:
    touch(tmp_path, on_disk, "images/other.jpg")
    write(tmp_path / "x.csv", "image,caption", f"{written},A")
    dataset = clean(tmp_path / "x.csv")
    assert dataset.examples[0].image == tmp_path / on_disk
    assert "1 images have another spelling or folder on disk" in dataset.notes[0]


def test_a_file_is_never_taken_for_two_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "c.jpg", "B.jpg", "b.JPG")
    rows = ["x/a.jpg,A", "y/a.jpg,A", "C.jpg,C", "c.jpg,C", "b.jpg,B", "z.jpg,Z"]
    write(tmp_path / "x.csv", "image,caption", *rows)
    dataset = load_dataset(tmp_path / "x.csv", holdout=0)
    assert [e.image_id for e in dataset.examples] == ["c.jpg"]


def test_excel_names_the_delimiter_first(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "x.csv", "sep=;", "image;caption", "a.jpg;A, a; or b".replace("; ", " "))
    assert clean(tmp_path).examples[0].captions == ("A, a or b",)


def test_coco_passes_over_results_and_images_without_annotations(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    dump(tmp_path / "annotations/captions_train2017.json", coco(1, "a"))
    dump(tmp_path / "annotations/captions_val2017_x_results.json", [{"image_id": 1}])
    dump(tmp_path / "annotations/captions_test2017.json", {"images": [{"id": 9}]})
    dataset = clean(tmp_path)
    assert dataset.splits == {"train": 1}
    assert len(dataset.notes) == 2
    assert all("holds no annotations" in note for note in dataset.notes)


def test_vizwiz_leaves_out_rejected_captions(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a.jpg")
    document = coco(1, "a")
    good = {"image_id": 1, "caption": "good", "is_precanned": False, "is_rejected": False}
    document["annotations"] = [good, good | {"is_rejected": True}, good | {"is_precanned": True}]
    dump(tmp_path / "annotations/train.json", document)
    dataset = clean(tmp_path)
    assert [e.captions for e in dataset.examples] == [("good",)]
    assert "2 rejected or precanned captions" in dataset.notes[0]


def test_captions_txt_with_tabs(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.jpg", "b.jpg")
    write(tmp_path / "captions.txt", "a.jpg\tA dog, outdoors", "b.jpg\tB", "a.jpg\tA")
    captions = [e.captions for e in clean(tmp_path).examples]
    assert captions == [("A dog, outdoors", "A"), ("B",)]


def test_flickr_archives_side_by_side(tmp_path: Path) -> None:
    touch(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg")
    texts = tmp_path / "Flickr8k_text"
    write(texts / "Flickr8k.token.txt", "a.jpg#0\tA", "b.jpg#0\tB")
    write(texts / "._Flickr8k.token.txt", "macOS")
    write(texts / "Flickr_8k.trainImages.txt", "a.jpg")
    write(texts / "Flickr_8k.devImages.txt", "b.jpg")
    for root in (tmp_path, texts):
        assert clean(root).splits == {"train": 1, "dev": 1}


def test_json_list_of_objects(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    rows = [{"image": "a.jpg", "caption": "A"}, {"image": "b.jpg", "caption": ["B", "C"]}]
    dataset = clean(dump(tmp_path / "coco_karpathy_val.json", rows))
    assert [(e.split, e.captions) for e in dataset.examples] == [
        ("dev", ("A",)),
        ("dev", ("B", "C")),
    ]


def test_the_only_json_of_a_folder_may_have_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    dump(tmp_path / "nocaps.json", coco(1, "a"))
    assert clean(tmp_path).format == "coco"
    write(tmp_path / "captions.csv", "image,caption", "a.jpg,A")
    assert clean(tmp_path).format == "csv"


def test_a_space_may_follow_the_delimiter(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "x.csv", "image, caption", 'a.jpg, "A dog, brown"')
    assert clean(tmp_path).examples[0].captions == ("A dog, brown",)


def test_texts_beside_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "train/b.png", "val/deep/c.JPG", "d.jpg", "d.png"):
        touch(tmp_path, name)
    write(tmp_path / "a.txt", "A dog.", "", "A cat.")
    write(tmp_path / "a.caption", "An animal.")
    write(tmp_path / "train" / "b.txt", "A boy.")
    write(tmp_path / "val" / "deep" / "c.caption", "A girl.")
    write(tmp_path / "d.txt", "A tree.")
    write(tmp_path / "notes.txt", "buy film")
    write(tmp_path / "._a.txt", "hidden")
    dataset = load_dataset(tmp_path, holdout=0)
    assert dataset.format == "sidecars"
    assert {e.image_id: (e.split, sorted(e.captions)) for e in dataset.examples} == {
        "a.jpg": ("train", ["A cat.", "A dog.", "An animal."]),
        "d.jpg": ("train", ["A tree."]),
        "train/b.png": ("train", ["A boy."]),
        "val/deep/c.JPG": ("dev", ["A girl."]),
    }
    assert [(p.kind, p.where) for p in dataset.problems] == [("image without captions", "d.png")]
    assert "1 text(s) without an image of their name: notes.txt" in dataset.notes


def test_texts_that_hold_no_caption_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in "abcd"))
    write(tmp_path / "a.txt", "A dog.")
    write(tmp_path / "b.txt", "", " ")
    (tmp_path / "c.txt").write_bytes("Ein Bär".encode("utf-16-le"))
    (tmp_path / "d.txt").write_bytes(b"Ein B\xe4r\n")
    dataset = load_dataset(tmp_path, holdout=0)
    assert [e.image_id for e in dataset.examples] == ["a.jpg"]
    kinds = [(p.kind, p.where) for p in dataset.problems]
    assert ("image without captions", "b.txt") in kinds
    assert ("not UTF-8", "c.txt") in kinds
    assert ("not UTF-8", "d.txt:1") in kinds
    assert "UTF-16" in next(p.detail for p in dataset.problems if p.where == "c.txt")


def test_texts_that_captioner_wrote_are_read(tmp_path: Path) -> None:
    toys.captioner().save(tmp_path / "model")
    folder = tmp_path / "in"
    pictures = [toys.draw(folder / f"{colour}.png", colour) for colour in toys.COLOURS]
    command = ["caption", str(folder), "--model", str(tmp_path / "model"), "--format", "txt"]
    assert CliRunner().invoke(main, command).exit_code == 0
    found = {e.image: e.captions for e in load_dataset(folder, holdout=0).examples}
    texts = {path: path.with_suffix(".txt").read_text(encoding="utf-8") for path in pictures}
    assert len(found) > 2  # the toy writes some empty captions
    assert found == {path: (text.strip(),) for path, text in texts.items() if text.strip()}


def test_a_table_is_read_before_the_texts(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "a.txt", "A cat.")
    write(tmp_path / "captions.csv", "image,caption", "a.jpg,A dog.")
    assert load_dataset(tmp_path, holdout=0).examples[0].captions == ("A dog.",)
