"""Images inside tables: Parquet files, and what the library `datasets` saves and caches."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from captioner.captioning.sources import list_images
from captioner.cli import main
from captioner.config import Config
from captioner.data.dataset import Dataset, describe
from captioner.data.formats import parquet as parquet_format
from captioner.data.load import load_dataset
from captioner.errors import DataError, ImageError
from captioner.images.content import ALWAYS_ALLOWED, Content
from captioner.images.decode import read_file
from captioner.training.run import train

import toys
from image_rows import CAPTIONS, Rows, content, png, rows, struct

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, rows: Rows, schema: Any = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **how)
    return path


def clean(root: Path | str, **options: Any) -> Dataset:
    dataset = load_dataset(root, **{"holdout": 0, **options})
    assert dataset.problems == ()
    return dataset


def problems(dataset: Dataset) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in dataset.problems]


TWO = [("1.png", "train", ("picture 1",), png(1)), ("2.png", "dev", ("picture 2",), png(2))]


@pytest.mark.parametrize(
    ("train", "dev"),
    [
        ("train.parquet", "val.parquet"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("en/train-0.parquet", "en/dev-0.PARQUET"),
    ],
)
def test_a_folder_of_shards_has_splits_from_names(tmp_path: Path, train: str, dev: str) -> None:
    write(tmp_path / train, rows(1))
    write(tmp_path / dev, rows(2))
    (tmp_path / "README.md").write_text("# A data set\n")
    dataset = clean(tmp_path)
    assert dataset.format == "parquet"
    assert sorted(content(dataset)) == TWO
    assert {str(example.image) for example in dataset.examples} == {
        f"{train}/1.png",
        f"{dev}/2.png",
    }


def test_a_file_has_its_splits_in_a_column_of_any_name(tmp_path: Path) -> None:
    table = [
        row | {"subset": split} for row, split in zip(rows(1, 2), ("train", "val"), strict=True)
    ]
    dataset = clean(write(tmp_path / "pictures.parquet", table))
    assert content(dataset) == TWO
    assert any("'subset' holds only names of splits" in note for note in dataset.notes)
    table = [row | {"split": row.pop("subset")} for row in table]
    assert content(clean(write(tmp_path / "b.parquet", table))) == TWO


def test_a_name_without_a_split_is_train_with_a_note(tmp_path: Path) -> None:
    dataset = clean(write(tmp_path / "pictures.parquet", rows(1, 2)))
    assert dataset.splits == {"train": 2}
    assert "pictures.parquet: its name holds no split, so its images are train" in dataset.notes


@pytest.mark.parametrize("form", CAPTIONS)
@pytest.mark.parametrize("image", ["struct", "bytes", "struct without path"])
def test_captions_and_images_in_every_form(tmp_path: Path, form: str, image: str) -> None:
    forms = {"struct": struct(1), "bytes": png(1), "struct without path": {"bytes": png(1)}}
    path = write(tmp_path / "train.parquet", [{"image": forms[image], **CAPTIONS[form]}])
    [example] = clean(path).examples
    both = form not in ("one", "text")
    assert example.captions == (("a dog", "a cat") if both else ("a dog",))
    assert read_file(example.image) == png(1)
    assert example.image_id == ("1.png" if image == "struct" else "train.parquet/row 1")


def test_the_images_of_a_file_are_captioned(tmp_path: Path) -> None:
    table = [
        {"image": struct(1), "image_id": 7},
        {"image": struct(2, "1.png"), "image_id": 8},
        {"image": struct(3), "image_id": 9},
        {"image": None, "image_id": 10},
    ]
    path = write(tmp_path / "pictures.parquet", table)
    *items, last = list_images([path])
    assert [read_file(item.source) for item in items] == [png(1), png(2), png(3)]  # type: ignore[arg-type]
    assert [item.name for item in items] == [f"{path}/{n}" for n in ("row 1", "row 2", "3.png")]
    assert [item.image_id for item in items] == ["7", "8", "9"]
    with pytest.raises(ImageError, match="no image in this row"):
        last.source.read_bytes()  # type: ignore[union-attr]
    [item] = list_images([path], image_column="x")
    assert "column 'x' (--image-column) does not exist" in str(item.source)
    path.write_bytes(path.read_bytes()[:-9])
    [item] = list_images([path])
    assert str(item.source).startswith("cannot be read as Parquet: ")


@pytest.mark.parametrize("form", ["structs", "captions in structs", "struct of lists"])
def test_captions_in_objects_are_read_from_json_lines_too(tmp_path: Path, form: str) -> None:
    toys.draw(tmp_path / "1.png", "red")
    line = json.dumps({"image": "1.png", **CAPTIONS[form]})
    (tmp_path / "train.jsonl").write_text(f"{line}\n")
    assert clean(tmp_path / "train.jsonl").examples[0].captions == ("a dog", "a cat")


def test_columns_are_named_by_options_or_chosen_by_their_content(tmp_path: Path) -> None:
    table = [{"embedding": b"1", "jpg": png(1), "note": "a cat", "caption": "a dog"}]
    path = write(tmp_path / "train.parquet", table)
    [example] = clean(path).examples
    assert (read_file(example.image), example.captions) == (png(1), ("a dog",))
    [example] = clean(path, caption_column="note", image_column="jpg").examples
    assert example.captions == ("a cat",)
    for options, message in (
        ({"image_column": "note"}, "column 'note' (data.image_column) holds no images"),
        ({"image_column": "x"}, "column 'x' (data.image_column) does not exist"),
        ({"caption_column": "x"}, "no column 'x' (data.caption_column)"),
    ):
        with pytest.raises(DataError) as caught:
            load_dataset(path, **options)  # type: ignore[arg-type]
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_sounds_are_no_images(tmp_path: Path) -> None:
    features = {"audio": {"_type": "Audio"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist([{"audio": {"bytes": b"RIFF"}, **rows(1)[0]}])
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    assert content(clean(tmp_path))[0][3] == png(1)


def test_rows_of_one_picture_are_joined_and_others_kept_apart(tmp_path: Path) -> None:
    table = [
        {"image": struct(1), "caption": "one"},
        {"image": struct(2), "caption": "two"},
        {"image": struct(1), "caption": "first"},
        {"image": struct(3, "2.png"), "caption": "three"},  # another picture of that name
    ]
    write(tmp_path / "train.parquet", table)
    write(tmp_path / "dev.parquet", [{"image": struct(4, "1.png"), "caption": "four"}])
    dataset = clean(tmp_path)
    assert {e.image_id: e.captions for e in dataset.examples} == {
        "1.png": ("four",),
        "train/1.png": ("one", "first"),
        "2.png": ("two",),
        "train.parquet/row 4": ("three",),
    }
    assert [read_file(e.image) for e in dataset.examples] == [png(4), png(1), png(2), png(3)]
    assert any("1 images have the id of an image in another split" in n for n in dataset.notes)


def test_ids_join_rows_and_a_column_that_is_no_id_is_left(tmp_path: Path) -> None:
    table = [
        {"image": struct(n, None), "image_id": 7 + n, "caption": f"{n} {k}"}
        for n in range(3)
        for k in "ab"
    ]
    dataset = clean(write(tmp_path / "train.parquet", table))
    assert [(e.image_id, e.captions) for e in dataset.examples] == [
        ("7", ("0 a", "0 b")),
        ("8", ("1 a", "1 b")),
        ("9", ("2 a", "2 b")),
    ]
    wrong = [{"image": png(n), "id": n // 10, "caption": f"{n}"} for n in range(20)]
    dataset = clean(write(tmp_path / "train.parquet", wrong))
    assert len(dataset.examples) == 20
    assert any(
        "gives 18 rows the id of another image, so it is not used" in n for n in dataset.notes
    )
    one = [{"image": png(n), "id": max(n, 1), "caption": f"{n}"} for n in range(20)]
    dataset = load_dataset(write(tmp_path / "train.parquet", one), holdout=0)
    assert problems(dataset) == [("duplicate id", "train.parquet: row 2")]


def test_file_names_stand_in_a_column_of_their_own(tmp_path: Path) -> None:
    table = [{"image": png(n), "filename": f"a/{n}.jpg", "caption": "a dog"} for n in range(2)]
    dataset = clean(write(tmp_path / "train.parquet", table))
    assert [(e.image_id, str(e.image)) for e in dataset.examples] == [
        ("0.jpg", "train.parquet/0.jpg"),
        ("1.jpg", "train.parquet/1.jpg"),
    ]


def test_paths_instead_of_images_go_on_to_work(tmp_path: Path) -> None:
    toys.draw(tmp_path / "1.png", "red")
    path = write(tmp_path / "train.parquet", [{"image": "1.png", "caption": "a dog"}])
    for root in (path, tmp_path):
        dataset = clean(root)
        assert (dataset.format, dataset.examples[0].image) == ("jsonl", tmp_path / "1.png")
    # to_parquet of `datasets` writes structs with a path alone
    alone = [{"image": {"bytes": None, "path": str(tmp_path / "1.png")}, "caption": "a dog"}]
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "caption": pa.string()}
    )
    path = write(tmp_path / "train.parquet", alone, schema)
    assert clean(path).examples[0].image == tmp_path / "1.png"
    [item] = list_images([path])
    assert item.source == tmp_path / "1.png"


def test_images_are_read_one_by_one_and_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", rows(*range(300)), row_group_size=100)
    images = [example.image for example in clean(path).examples]
    order = np.random.default_rng(0).permutation(300)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_file, images)) == [png(n) for n in range(300)]
        assert list(pool.map(read_file, [images[n] for n in order])) == [png(n) for n in order]
    assert all(isinstance(image, Content) and image.size > len(png(0)) / 2 for image in images)
    assert pickle.loads(pickle.dumps(images[7])).read_bytes() == png(7)
    assert len({*images}) == 300
    reader = parquet_format._reader(*images[0].table._key("image"))  # type: ignore[union-attr]
    assert len(reader._kept) <= parquet_format._KEPT


def test_in_order_every_row_group_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "train.parquet", rows(*range(300)), row_group_size=100)
    images = [example.image for example in clean(path).examples]
    opened = []
    usual = parquet_format._Reader._open

    def open_group(self: Any, group: int) -> None:
        opened.append(group)
        usual(self, group)

    monkeypatch.setattr(parquet_format._Reader, "_open", open_group)
    for index in [1, 0, *range(2, 98), 100, 98, 99, *range(101, 300)]:  # as threads do
        assert read_file(images[index]) == png(index)
    assert opened == [0, 1, 2]
    assert read_file(images[0]) == png(0)
    assert opened == [0, 1, 2, 0]


def test_a_replaced_file_is_opened_again(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", rows(1))
    image = clean(path).examples[0].image
    assert read_file(image) == png(1)
    write(path, rows(22, 23))
    assert read_file(image) == png(22)


def test_broken_rows_are_counted_and_the_others_read(tmp_path: Path) -> None:
    table = [
        {"image": None, "caption": "null image"},
        {"image": {"bytes": b"", "path": "e.png"}, "caption": "empty bytes"},
        {"image": struct(3), "caption": None},
        {"image": struct(4), "caption": "..."},
        {"image": struct(5), "caption": "a dog"},
        {"image": {"bytes": None, "path": "../no.png"}, "caption": "no such file"},
        {"image": {"bytes": b"<html>", "path": "h.png"}, "caption": "a page"},
    ]
    dataset = load_dataset(write(tmp_path / "train.parquet", table), holdout=0)
    assert sorted(problems(dataset)) == [
        ("empty caption", "train.parquet: row 3"),
        ("empty caption", "train.parquet: row 4"),
        ("image without captions", "train.parquet: row 3"),
        ("image without captions", "train.parquet: row 4"),
        ("missing image", "train.parquet: row 1"),
        ("missing image", "train.parquet: row 6"),
    ]
    assert [e.image_id for e in dataset.examples] == ["e.png", "5.png", "h.png"]
    with pytest.raises(DataError, match="6 problems in strict mode"):
        load_dataset(tmp_path, strict=True)


def test_wrong_types_are_counted(tmp_path: Path) -> None:
    numbers = [{"image": struct(1), "caption": 5}]
    with pytest.raises(DataError, match="the caption is not text: 5"):
        load_dataset(write(tmp_path / "train.parquet", numbers))
    mixed = [{"image": struct(1), "caption": [5]}, {"image": struct(2), "caption": [6]}]
    mixed = [row | {"text": "a dog"} for row in mixed]
    dataset = clean(write(tmp_path / "train.parquet", mixed), caption_column="text")
    assert len(dataset.examples) == 2
    objects = [{"image": struct(1), "caption": {"words": "a dog"}}]
    with pytest.raises(DataError, match=r"the caption is not text: \{'words'"):
        load_dataset(write(tmp_path / "train.parquet", objects))
    splits = [
        {"image": struct(n), "caption": "a dog", "split": s} for n, s in ((1, "train"), (2, None))
    ]
    dataset = load_dataset(write(tmp_path / "train.parquet", splits), holdout=0)
    assert problems(dataset) == [("malformed line", "train.parquet: row 2")]


def test_text_that_is_not_utf8_costs_one_caption(tmp_path: Path) -> None:
    raw = pa.array([b"a dog", b"a d\xf6g", b"a cat"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    images = pa.array([png(n) for n in range(3)])
    pq.write_table(pa.table({"image": images, "caption": text}), tmp_path / "train.parquet")
    dataset = load_dataset(tmp_path, holdout=0)
    assert [e.captions for e in dataset.examples] == [("a dog",), ("a cat",)]
    assert ("not UTF-8", "train.parquet: row 2") in problems(dataset)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"image": struct(1), "title": "a dog"}], "no known caption column"),
        ([{"a": png(1), "b": png(2), "caption": "a dog"}], "several columns of bytes"),
    ],
)
def test_a_missing_column_is_one_line(tmp_path: Path, table: Rows, message: str) -> None:
    path = write(tmp_path / "train.parquet", table)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert "columns: " in str(caught.value) and "\n" not in str(caught.value)
    write(tmp_path / "dev.parquet", rows(2))
    dataset = load_dataset(tmp_path, holdout=0)
    assert problems(dataset) == [("unreadable file", "train.parquet")]
    assert message in dataset.problems[0].detail


def test_addresses_instead_of_images_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "data/train.parquet", [{"url": "http://x/1.jpg", "caption": "a dog"}])
    with pytest.raises(DataError, match="'url' holds addresses, which img2dataset downloads"):
        load_dataset(tmp_path)


def test_several_data_sets_are_named(tmp_path: Path) -> None:
    for language in ("de", "en"):
        write(tmp_path / language / "train-0.parquet", rows(1))
    with pytest.raises(DataError, match=r"several data sets: de, en; name one, as data.root=.*/de"):
        load_dataset(tmp_path)
    assert clean(tmp_path / "en").splits == {"train": 1}


@pytest.mark.parametrize("kept", [0, 3, 0.3, 0.9, -1])
def test_a_truncated_file_is_one_problem(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "train-00000-of-00002.parquet", rows(1, 2))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    for root in (path, tmp_path):
        with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
            load_dataset(root)
        assert "\n" not in str(caught.value)
    write(tmp_path / "train-00001-of-00002.parquet", rows(3))
    dataset = load_dataset(tmp_path, holdout=0)
    assert problems(dataset) == [("unreadable file", path.name)]
    assert [e.image_id for e in dataset.examples] == ["3.png"]
    assert "1 unreadable file (first at train-00000-of-00002.parquet: " in describe(dataset)


def test_damage_in_the_middle_costs_the_images_there(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", rows(*range(150)), row_group_size=50)
    images = [example.image for example in clean(path).examples]
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(bytes(20))
    errors = {}
    for number, image in enumerate(images):
        try:
            assert read_file(image) == png(number)
        except ImageError as error:
            errors[number] = error
    assert [*errors] == [*range(50, 100)]
    assert {error.kind for error in errors.values()} == {"damaged"}
    assert all("damaged in the Parquet file: " in str(error) for error in errors.values())


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    table = [{"image": bytes(ALWAYS_ALLOWED // 2), "caption": f"a dog {n}"} for n in range(4)]
    how: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "row_group_size": 2}
    path = write(tmp_path / "train.parquet", table[:2] + rows_of_bytes(1, 2) + table[2:], **how)
    examples = clean(path).examples
    for index in (0, 1, 2, 0, 4, 3, 5):
        if index in (2, 3):
            assert read_file(examples[index].image) == png(index - 1)
            continue
        with pytest.raises(ImageError, match="decompression bomb") as caught:
            read_file(examples[index].image)
        assert caught.value.kind == "too_large"


def rows_of_bytes(*seeds: int) -> Rows:
    return [{"image": png(seed), "caption": f"picture {seed}"} for seed in seeds]


def test_an_image_above_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "train.parquet", rows_of_bytes(1))
    [example] = clean(path).examples
    monkeypatch.setattr("captioner.images.decode.MAX_BYTES", len(png(1)) - 1)
    with pytest.raises(ImageError, match="more than the limit"):
        example.image.read_bytes()
    monkeypatch.setattr("captioner.images.decode.MAX_BYTES", len(png(1)))
    assert example.image.read_bytes() == png(1)


def test_without_the_library_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data" / "train.parquet", rows(1))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    for root in (tmp_path, tmp_path / "data/train.parquet", tmp_path / "saved", "hf:o/n"):
        with pytest.raises(DataError, match=r"pip install 'captioner\[data\]'") as caught:
            load_dataset(root)
        assert "\n" not in str(caught.value)
    done = CliRunner().invoke(main, ["caption", str(tmp_path / "data/train.parquet"), "--dry-run"])
    assert "pip install 'captioner[data]'" in done.output and "Traceback" not in done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, bytes]]:
    """A config, and the files of a model that was trained on a folder of pictures."""
    folder = tmp_path_factory.mktemp("folder")
    config = toys.config(folder, epochs=2)
    return config, files_of_model(config, folder)


def files_of_model(config: Config, folder: Path) -> dict[str, bytes]:
    with toys.inside(folder):
        train(config, folder / "run", device="cpu")
    names = ("model.safetensors", "config.json", "vocab.json")
    return {name: (folder / "run" / "model" / name).read_bytes() for name in names}


def toy_rows(root: Path) -> dict[str, Rows]:
    """Return the pictures and captions of `toys.data_set`, by split."""
    found: dict[str, dict[str, dict[str, Any]]] = {"train": {}, "dev": {}}
    with root.open(newline="") as file:
        for name, caption, split in list(csv.reader(file))[1:]:
            image = {"bytes": (root.parent / name).read_bytes(), "path": name}
            row = found[split].setdefault(name, {"image": image, "caption": []})
            row["caption"].append(caption)
    return {split: [*named.values()] for split, named in found.items()}


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_training_from_tables_and_from_a_folder_gives_equal_models(
    tmp_path: Path, trained: tuple[Config, dict[str, bytes]], form: str
) -> None:
    config, wanted = trained
    root = tmp_path / "data set"
    for split, table in toy_rows(Path(config.data.root)).items():
        if form == "parquet":
            half = len(table) // 2
            for number, part in enumerate((table[:half], table[half:])):
                name = f"{split}-{number:05}-of-00002.parquet"
                write(root / name, part, row_group_size=5)
        else:
            datasets = pytest.importorskip("datasets")
            datasets.disable_progress_bars()
            datasets.Dataset.from_list(table).save_to_disk(root / split)
            (root / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    data = config.data.model_copy(update={"root": str(root)})
    assert files_of_model(config.model_copy(update={"data": data}), tmp_path) == wanted


@pytest.mark.parametrize("kind", ["parquet", "saved", "names in parquet"])
def test_splits_that_are_numbered_have_their_names(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pictures = [None if kind.startswith("names") else struct(seed) for seed in range(4)]
    names = [f"{seed}.png" for seed in range(4)]
    for seed, name in enumerate(names):
        (tmp_path / name).write_bytes(png(seed))
    columns = {
        "image": names if kind.startswith("names") else pictures,
        "caption": ["a dog"] * 4,
        "split": [1, 0, 2, -1],
    }
    labels = datasets.ClassLabel(names=["train", "val", "test"])
    table = datasets.Dataset.from_dict(columns).cast_column("split", labels)
    if kind == "saved":
        table.save_to_disk(tmp_path / "saved")
    else:
        table.to_parquet(tmp_path / "captions.parquet")
    root = tmp_path / "saved" if kind == "saved" else tmp_path
    dataset = load_dataset(root, holdout=0)
    assert [example.split for example in dataset.examples] == ["dev", "train", "test"]
    [without] = [p for p in dataset.problems if p.kind == "malformed line"]
    assert "no split" in without.detail and "row 4" in without.where
