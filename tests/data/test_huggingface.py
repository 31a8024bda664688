"""Data sets of the library `datasets`: saved by it, in its cache, and named on the Hub."""

from __future__ import annotations

import json
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from captioner import hub
from captioner.cli.options import name_of_results
from captioner.data.dataset import Dataset
from captioner.data.formats import huggingface
from captioner.data.load import load_dataset
from captioner.errors import DataError, ImageError
from captioner.images.decode import read_file

from image_rows import CAPTIONS, Rows, content, png, rows, struct

datasets = pytest.importorskip("datasets")

COMMIT, OTHER = "1234567890" * 4, "abcdef0123" * 4


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    datasets.disable_progress_bars()
    hub.say_once.cache_clear()


def table(rows: Rows, decode: bool = True) -> Any:
    made = datasets.Dataset.from_list(rows)
    return made.cast_column("image", datasets.Image(decode=decode)) if rows else made


def saved(folder: Path, **splits: Rows) -> Path:
    datasets.DatasetDict({name: table(each) for name, each in splits.items()}).save_to_disk(folder)
    return folder


def cached(root: Path, commit: str = COMMIT, config: str = "default", **splits: Rows) -> Path:
    """Write what the library keeps of o/MySet after it has downloaded it."""
    files = {}
    for split, each in splits.items():
        files[split] = str(root / f"{split}.parquet")
        table(each).to_parquet(files[split])
    made = datasets.load_dataset("parquet", data_files=files, cache_dir=str(root / "made"))
    first = Path(next(iter(made.values())).cache_files[0]["filename"]).parent
    folder = root / "cache" / "o___my_set" / config / "0.0.0" / commit
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(first, folder)
    for file in folder.glob("*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "my_set-")))
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"dataset_name": "my_set", "config_name": config}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def clean(root: Path | str, **options: Any) -> Dataset:
    dataset = load_dataset(root, **{"holdout": 0, **options})
    assert dataset.problems == ()
    return dataset


TWO = [("1.png", "train", ("picture 1",), png(1)), ("2.png", "dev", ("picture 2",), png(2))]


def test_a_saved_folder_of_splits(tmp_path: Path) -> None:
    dataset = clean(saved(tmp_path / "set", train=rows(1), validation=rows(2)))
    assert (dataset.format, dataset.name, content(dataset)) == ("huggingface", "set", TWO)
    assert [str(e.image) for e in dataset.examples] == ["train/1.png", "validation/2.png"]
    assert [e.image.size for e in dataset.examples] == [len(png(1)), len(png(2))]  # type: ignore[union-attr]


def test_a_saved_split_in_shards_and_another_order(tmp_path: Path) -> None:
    made = table(rows(*range(9))).select([7, 2, 5])
    made.save_to_disk(tmp_path / "train", num_shards=2)
    assert [e.image_id for e in clean(tmp_path / "train").examples] == ["7.png", "2.png", "5.png"]
    assert [read_file(e.image) for e in clean(tmp_path / "train").examples] == [
        *map(png, (7, 2, 5))
    ]


@pytest.mark.parametrize("form", CAPTIONS)
@pytest.mark.parametrize("is_feature", [True, False])
def test_captions_and_images_in_every_form(tmp_path: Path, form: str, is_feature: bool) -> None:
    made = datasets.Dataset.from_list([{"image": struct(1), **CAPTIONS[form]}])
    if is_feature:
        made = made.cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "set")
    [example] = clean(tmp_path / "set").examples
    both = form not in ("one", "text")
    assert example.captions == (("a dog", "a cat") if both else ("a dog",))
    assert read_file(example.image) == png(1)


def test_broken_rows_splits_and_files(tmp_path: Path) -> None:
    broken = [
        {"image": None, "caption": "null image"},
        {"image": struct(3), "caption": None},
        {"image": {"bytes": b"", "path": "e.png"}, "caption": "empty bytes"},
        {"image": {"bytes": None, "path": "no.png"}, "caption": "no such file"},
        *rows(5),
    ]
    folder = tmp_path / "set"
    folder.mkdir()
    for split, each in {"train": broken, "validation": rows(2), "test": rows(3)}.items():
        datasets.Dataset.from_list(each).save_to_disk(folder / split)
    splits = {"splits": ["train", "validation", "test", "extra"]}
    (folder / "dataset_dict.json").write_text(json.dumps(splits))
    arrow = next((folder / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    dataset = load_dataset(folder, holdout=0)
    assert sorted((p.kind, p.where) for p in dataset.problems) == [
        ("empty caption", "train: row 2"),
        ("image without captions", "train: row 2"),
        ("missing image", "train: row 1"),
        ("missing image", "train: row 4"),
        ("unreadable file", "extra"),
        ("unreadable file", "test"),
    ]
    assert [e.image_id for e in dataset.examples] == ["e.png", "5.png", "2.png"]
    (folder / "dataset_dict.json").write_text('{"splits": ["../set/train"]}')
    with pytest.raises(DataError, match="expected a list of names in splits"):
        load_dataset(folder)


def test_damaged_bytes_do_not_reach_outside_the_file(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows(*range(4))).save_to_disk(tmp_path / "set")
    arrow = next((tmp_path / "set").glob("*.arrow"))
    data = bytearray(arrow.read_bytes())
    ends = [*accumulate((len(png(n)) for n in range(4)), initial=0)]
    offsets = b"".join(end.to_bytes(4, "little") for end in ends)
    at = data.index(offsets) + len(offsets)
    data[at - 4 : at] = (2**31 - 1).to_bytes(4, "little")
    arrow.write_bytes(data)
    images = [e.image for e in load_dataset(tmp_path / "set", holdout=0).examples]
    assert [read_file(image) for image in images[:3]] == [*map(png, range(3))]
    with pytest.raises(ImageError, match="damaged in the Arrow file"):
        read_file(images[3])


def test_the_cache_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cached(tmp_path, train=rows(1), validation=rows(2))
    for name in ("hf:o/MySet", f"hf:o/MySet@{COMMIT}", "hf:o/MySet:default", Path("hf:o/MySet")):
        dataset = clean(name)
        assert (dataset.name, content(dataset)) == ("MySet", TWO)
    assert f"hf:o/MySet: commit {COMMIT}, from the cache" in capsys.readouterr().err
    assert content(clean(folder)) == TWO


def test_the_cache_holds_commits_and_configurations(tmp_path: Path) -> None:
    for number, commit in enumerate((OTHER, COMMIT)):
        cached(tmp_path, commit, "en", train=rows(number))
    cached(tmp_path, COMMIT, "de", train=rows(7))

    def first(name: str) -> str:
        return clean(name).examples[0].image_id

    assert first(f"hf:o/MySet@{OTHER}") == "0.png"
    assert first(f"hf:o/MySet@{COMMIT}:en") == "1.png"
    assert first("hf:o/MySet:de") == "7.png"
    with pytest.raises(DataError, match=r"has the configurations de, en; as hf:o/MySet:de"):
        load_dataset("hf:o/MySet")
    refs = tmp_path / "hub" / "datasets--o--MySet" / "refs"
    refs.mkdir(parents=True)
    (refs / "v1").write_text(OTHER)
    assert first("hf:o/MySet@v1") == "0.png"
    cached(tmp_path, COMMIT, "default", train=rows(8))
    assert first("hf:o/MySet") == "8.png"


def test_a_missing_shard_in_the_cache_is_a_problem(tmp_path: Path) -> None:
    folder = cached(tmp_path, train=rows(1), validation=rows(2))
    (folder / "my_set-train.arrow").rename(folder / "my_set-train-00001-of-00002.arrow")
    dataset = load_dataset("hf:o/MySet", holdout=0)
    assert [(p.kind, p.where) for p in dataset.problems] == [
        ("unreadable file", "my_set-train-00000-of-00002.arrow")
    ]


@pytest.mark.parametrize("name", ["hf:o/MySet@v1", "hf:o/MySet", "hf:o/n:x", f"hf:o/n@{COMMIT}"])
def test_without_network_and_cache_one_line_says_so(tmp_path: Path, name: str) -> None:
    cached(tmp_path, OTHER, "en", train=rows(1)) if "@v1" in name else None
    with pytest.raises(DataError, match="not in the cache, and no connection to http") as caught:
        load_dataset(name)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hf:", "hf:n", "hf:o/n/m", "hf:o/n@", "hf:o/n@a b", "hf:o/n:", "hf:o/n:a/b", "hf:../n"]
)
def test_a_wrong_name_is_one_line(name: str) -> None:
    with pytest.raises(DataError, match="not the name of a data set on the Hub; write hf:OWNER"):
        load_dataset(name)


class Api:
    """Stands for the Hub."""

    def dataset_info(self, repository: str, **_: object) -> object:
        assert repository == "o/MySet"
        return type("Info", (), {"sha": COMMIT})


def test_a_data_set_is_downloaded_by_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    made = datasets.DatasetDict(train=table(rows(1)), validation=table(rows(2)))

    def load(*names: object, **options: object) -> Any:
        asked.append((*names, options))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface, "hub_api", lambda _: Api())
    assert content(clean("hf:o/MySet@v1:en")) == TWO
    assert content(clean("hf:o/MySet")) == TWO
    assert asked == [
        ("o/MySet", {"revision": "v1", "name": "en"}),
        ("o/MySet", {"revision": None}),
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o" / "MySet").mkdir(parents=True)
    with pytest.raises(DataError, match="here is a folder o/MySet, which the library would read"):
        load_dataset("hf:o/MySet")


def test_another_commit_from_the_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cached(tmp_path, OTHER, train=rows(1))
    opened = datasets.Dataset.from_file(str(folder / "my_set-train.arrow"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": opened})
    monkeypatch.setattr(huggingface, "hub_api", lambda _: Api())
    with pytest.raises(DataError, match=f"commit {COMMIT} was not downloaded"):
        load_dataset("hf:o/MySet@v1")


def test_programs_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **options: object) -> Any:
        assert "trust_remote_code" not in options
        raise RuntimeError("Dataset scripts are no longer supported, but found MySet.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface, "hub_api", lambda _: Api())
    with pytest.raises(DataError, match="hf:o/MySet: failed: Dataset scripts are no longer"):
        load_dataset("hf:o/MySet")


def test_a_run_is_named_after_the_data_set() -> None:
    assert name_of_results(None, ("data.root=hf:o/MySet@refs/pr/1:en",)) == "MySet"
