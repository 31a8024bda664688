"""Tar shards: members of one key are an example; whatever is wrong with them is counted."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import draw

from captioner.cli import main
from captioner.config import Config
from captioner.data.dataset import Dataset
from captioner.data.formats.webdataset import expand
from captioner.data.load import load_dataset
from captioner.errors import DataError
from captioner.images.content import Slice
from captioner.images.decode import read_file
from captioner.training.run import train

import toys

Member = tuple[str, bytes | str] | tarfile.TarInfo


def tar(path: Path, *members: Member) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(root: Path | str, **options: object) -> Dataset:
    return load_dataset(root, **{"holdout": 0, **options})  # type: ignore[arg-type]


def content(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {example.image_id: example.captions for example in dataset.examples}


def splits(dataset: Dataset) -> dict[str, str]:
    return {example.image_id: example.split for example in dataset.examples}


def problems(dataset: Dataset) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in dataset.problems]


def test_images_are_read_where_they_are(tmp_path: Path) -> None:
    shard = tar(
        tmp_path / "s" / "0.tar", ("./a/1.jpg", b"one"), ("./a/1.txt", "A dog.\n\nA cat.\n")
    )
    for root in (shard, shard.parent):
        dataset = read(root)
        assert (dataset.format, dataset.problems, dataset.notes) == ("webdataset", (), ())
        assert content(dataset) == {"a/1.jpg": ("A dog.", "A cat.")}
        [image] = [example.image for example in dataset.examples]
        assert isinstance(image, Slice) and read_file(image) == b"one"
        assert str(image) == f"{shard}/a/1.jpg"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("1.JPG", b"i"), ("1.caption", "a dog")], {"1.JPG": ("a dog",)}),
        ([("1.jpg", b"i"), ("1.text", "\ufeffa dog\r\na cat\r")], {"1.jpg": ("a dog", "a cat")}),
        ([("1.jpg", b"i"), ("1.json", '{"caption": "a\\ndog"}')], {"1.jpg": ("a\ndog",)}),
        ([("1.jpg", b"i"), ("1.json", '{"captions": ["a", "b"]}')], {"1.jpg": ("a", "b")}),
        ([("1.jpg", b"i"), ("1.json", '["a", "b"]')], {"1.jpg": ("a", "b")}),
        ([("1.txt", "a"), ("2.txt", "b"), ("2.png", b"i"), ("1.png", b"i")], {"2.png": ("b",)}),
        # img2dataset: the same caption twice, as text with its line end
        ([("1.jpg", b"i"), ("1.txt", "a\ndog"), ("1.json", '{"caption": "a\\ndog"}')], "a\ndog"),
        ([("1.jpg", b"i"), ("1.json", '{"caption": "a  dog"}'), ("1.txt", "a dog")], "a  dog"),
        # one of several captions
        ([("1.jpg", b"i"), ("1.txt", "a\nb"), ("1.json", '{"caption": "b"}')], ("a", "b")),
        ([("1.jpg", b"i"), ("1.txt", "a"), ("1.json", '{"caption": "b"}')], ("a", "b")),
        ([("1.jpg", b"i"), ("1.txt", "a"), ("1.json", '{"width": 5}')], ("a",)),
        # keys end at the first dot; names may have more
        (
            [("1.left.jpg", b"i"), ("1.right.jpg", b"j"), ("1.txt", "a")],
            {"1.left.jpg": ("a",), "1.right.jpg": ("a",)},
        ),
        ([("1.jpg", b"i"), ("1.caption.txt", "a"), ("1.json", "{}")], ("a",)),
        (
            [("v.1.jpg", b"i"), ("v.1.txt", "a"), ("v.2.jpg", b"j"), ("v.2.txt", "b")],
            {"v.1.jpg": ("a",), "v.2.jpg": ("b",)},
        ),
    ],
)  # fmt: skip
def test_captions_of_a_key(tmp_path: Path, members: list[Member], expected: object) -> None:
    dataset = read(tar(tmp_path / "0.tar", *members))
    if isinstance(expected, dict):
        assert expected.items() <= content(dataset).items()
        return
    assert content(dataset) == {"1.jpg": (expected,) if isinstance(expected, str) else expected}
    assert dataset.problems == ()


def test_a_column_names_the_field_or_the_ending(tmp_path: Path) -> None:
    shard = tar(
        tmp_path / "0.tar",
        ("1.jpg", b"i"),
        ("1.json", json.dumps({"caption": "long", "title": "a title"})),
        ("1.txt", "a text"),
        ("1.cls", "dog"),
    )
    assert content(read(shard)) == {"1.jpg": ("a text", "long")}
    assert content(read(shard, caption_column="title")) == {"1.jpg": ("a title",)}
    assert content(read(shard, caption_column="cls")) == {"1.jpg": ("dog",)}
    assert read(shard).notes == ("members that hold no captions: 1 .cls",)


def test_each_kind_of_damage_is_counted(tmp_path: Path) -> None:
    link = tarfile.TarInfo("6.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar(
        tmp_path / "0.tar",
        ("1.jpg", b"i"),
        ("1.txt", "good"),
        ("2.jpg", b"i"),  # no caption
        ("3.txt", "no picture"),
        ("4.jpg", b"i"),
        ("4.txt", b"caf\xe9\nkept"),
        ("1.txt", "again"),
        ("../5.jpg", b"i"),
        link,
        ("7.jpg", b"i"),
        ("7.json", "{"),
        ("8.jpg", b"i"),
        ("8.txt", "x" * (2**20 + 1)),
        ("9.jpg", b"i"),
        ("9.json", '{"caption": 5}'),
        ("10.jpg", b"i"),
        ("10.txt", "nan"),
        ("caf\udce9.jpg", b"i"),
        ("caf\udce9.txt", "a"),
        ("._1.jpg", b"macOS"),
        ("11.psd", b"i"),
    )
    dataset = read(tmp_path)
    assert content(dataset) == {"1.jpg": ("good",), "4.jpg": ("kept",)}
    assert problems(dataset) == [
        ("not UTF-8", "0.tar/4.txt:1"),
        ("duplicate id", "0.tar/1.txt"),
        ("refused member", "0.tar/../5.jpg"),
        ("refused member", "0.tar/6.jpg"),
        ("malformed line", "0.tar/7.json"),
        ("refused member", "0.tar/8.txt"),
        ("caption without image", "0.tar/3.txt"),
        ("malformed line", "0.tar/9.json"),
        ("empty caption", "0.tar/10.txt:1"),
        ("not UTF-8", "0.tar/caf\\udce9.jpg"),
        *(("image without captions", f"0.tar/{n}.jpg") for n in (2, 7, 8, 9, 10)),
    ]
    assert dataset.notes[0].startswith("pictures that captioner does not read: 1 .psd")
    with pytest.raises(DataError, match="15 problems in strict mode"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("keep", [1500, 3000, -1024, 200])
def test_a_truncated_shard_is_read_up_to_the_damage(tmp_path: Path, keep: int) -> None:
    whole = tar(
        tmp_path / "0.tar", *((f"{n}{e}", f"w{n}") for n in range(4) for e in (".jpg", ".txt"))
    )
    tar(tmp_path / "1.tar", ("9.jpg", b"i"), ("9.txt", "last"))
    whole.write_bytes(whole.read_bytes()[:keep] if keep > 0 else whole.read_bytes()[: 16 * 512])
    dataset = read(tmp_path)
    kept = max(0, keep) // 2048 if keep > 0 else 4
    assert list(content(dataset).values()) == [*((f"w{n}",) for n in range(kept)), ("last",)]
    [damaged] = [p for p in dataset.problems if p.kind == "unreadable file"]
    assert damaged.where == "0.tar" and "damaged archive" in damaged.detail


@pytest.mark.parametrize("ending", [".jpg", ".txt"])
def test_a_member_that_is_cut_off_is_not_read(tmp_path: Path, ending: str) -> None:
    other = {".jpg": ".txt", ".txt": ".jpg"}[ending]
    whole = tar(tmp_path / "0.tar", *pair("1"), (f"2{other}", "b"), (f"2{ending}", "a dog " * 99))
    whole.write_bytes(whole.read_bytes()[: 7 * 512 + 60])
    dataset = read(tmp_path)
    assert content(dataset) == {"1.jpg": ("caption 1",)}
    assert dataset.problems[0].kind == "unreadable file"


def test_compressed_shards_and_other_files(tmp_path: Path) -> None:
    shard = tar(tmp_path / "1.tar", ("1.jpg", b"i"), ("1.txt", "a"))
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    (tmp_path / "2.tar").write_bytes(b"no archive")
    (tmp_path / "captions.csv").write_text("image,caption\n")
    dataset = read(tmp_path)
    assert content(dataset) == {"1.jpg": ("a",)}
    assert problems(dataset) == [("unreadable file", "0.tar.gz"), ("unreadable file", "2.tar")]
    assert "unpack it: gzip -dc 0.tar.gz > 0.tar" in dataset.problems[0].detail
    assert "left out: captions.csv" in dataset.notes[0]
    with pytest.raises(DataError, match=r"gzip -dc 0\.tar\.gz > 0\.tar"):
        read(tmp_path / "0.tar.gz")


def test_tars_without_captions_are_no_data_set(tmp_path: Path) -> None:
    tar(tmp_path / "images.tar", ("1.jpg", b"i"))
    with pytest.raises(
        DataError, match=r"no captions in the first tar files \(images.tar\)"
    ) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "1.jpg").write_bytes(b"i")
    (tmp_path / "captions.csv").write_text("image,caption\n1.jpg,a dog\n")
    assert read(tmp_path).format == "csv"
    with pytest.raises(DataError, match=r"image without captions at images\.tar/1\.jpg"):
        read(tmp_path / "images.tar")


def test_named_pipes_and_commands_of_a_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a configuration starts no command; type it, as --set"):
        read("pipe:touch never.tar")
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(DataError, match="cannot be read: not a regular file"):
        read(tmp_path / "0.tar")
    assert not Path("never.tar").exists()


def pair(name: str) -> tuple[Member, Member]:
    return (f"{name}.jpg", name.encode()), (f"{name}.txt", f"caption {name}")


def test_splits_come_from_names(tmp_path: Path) -> None:
    tar(tmp_path / "a" / "train-0.tar", *pair("1"), *pair("validation/2"))
    tar(tmp_path / "a" / "val" / "0.tar", *pair("3"))
    tar(tmp_path / "a" / "x_test_0.tar", *pair("4"))
    tar(tmp_path / "a" / "other" / "0.tar", *pair("5"))
    found = {name.split("/")[-1][0]: split for name, split in splits(read(tmp_path / "a")).items()}
    assert found == {"1": "train", "2": "dev", "3": "dev", "4": "test", "5": "train"}


def test_names_that_repeat_have_their_shard(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", *pair("1"), *pair("2"))
    tar(tmp_path / "val.tar", *pair("1"))
    dataset = read(tmp_path)
    assert splits(dataset) == {
        "train.tar/1.jpg": "train",
        "train.tar/2.jpg": "train",
        "val.tar/1.jpg": "dev",
    }
    assert dataset.problems == ()


def test_patterns_name_shards_and_splits(tmp_path: Path) -> None:
    for number in range(4):
        tar(tmp_path / "s" / f"{number:03}.tar", *pair(str(number)))
    assert list(content(read(tmp_path / "s" / "{001..002}.tar"))) == ["1.jpg", "2.jpg"]
    assert list(content(read(tmp_path / "s" / "{003,000}.tar"))) == ["3.jpg", "0.jpg"]
    with pytest.raises(DataError, match=r"2 of 4 shards do not exist, first: .*004\.tar"):
        read(tmp_path / "s" / "{002..005}.tar")
    given = ("{000..001}.tar", "002.tar", "test")
    dataset = read(tmp_path / "s", splits=given)
    assert list(splits(dataset).values()) == [given[0], given[0], given[1], "train"]
    assert [e.image_id for e in dataset.split(given[0])] == ["0.jpg", "1.jpg"]
    with pytest.raises(DataError, match=r"no shard is called '009\.tar'"):
        read(tmp_path / "s", splits=["009.tar"])
    with pytest.raises(DataError, match=r"001\.tar: in two splits"):
        read(tmp_path / "s", splits=["{000..001}.tar", "{001..002}.tar"])
    tar(tmp_path / "s" / "more" / "000.tar", *pair("5"))
    with pytest.raises(DataError, match=r"2 shards are called '000\.tar'"):
        read(tmp_path / "s", splits=["000.tar"])
    assert "more/000.tar" in read(tmp_path / "s", splits=["more/000.tar"]).splits


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}{a,b}", ["2a", "2b", "1a", "1b", "0a", "0b"]),
        ("{x}{}{1..b}", ["{x}{}{1..b}"]),
        ("{a,{b,c}}", ["a", "b", "c"]),
        ("{x}{1,2}", ["{x}1", "{x}2"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert sorted(expand(pattern)) == sorted(names)
    assert expand(pattern) == names or "{b,c}" in pattern


def test_braces_have_a_limit() -> None:
    for pattern in ("{0..999999999}", "{0..99999}{0..99999}"):
        with pytest.raises(DataError, match="more than 1,000,000 shards"):
            expand(pattern)


def test_img2dataset_counts_what_it_could_not_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"caption": "a dog", "key": "000000000", "status": "success", "url": "u"}
    for number in range(2):
        key = f"{number:05}0000"
        members = [
            (f"{key}.jpg", b"i"),
            (f"{key}.txt", "a dog"),
            (f"{key}.json", json.dumps(record)),
        ]
        tar(tmp_path / f"{number:05}.tar", *members)
    stats = {"count": 3, "successes": 1, "status_dict": {"success": 1, "HTTP Error 404": 2}}
    (tmp_path / "00000_stats.json").write_text(json.dumps(stats))
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [record, record | {"status": "failed_to_download", "error_message": "timed out"}]
    for number in range(2):
        table = pyarrow.Table.from_pylist(
            [row | {"error_message": row.get("error_message")} for row in rows]
        )
        parquet.write_table(table, tmp_path / f"{number:05}.parquet")
    dataset = read(tmp_path)
    assert len(dataset.examples) == 2 and dataset.problems == ()
    assert dataset.notes == (
        "img2dataset: 3 of 5 pictures were not downloaded and are left out (2 HTTP Error 404, "
        "1 timed out)",
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    first, second = read(tmp_path).notes
    assert "failed downloads are not counted: " in first and "pip install" in first
    assert second.startswith("img2dataset: 2 of 3 pictures")


def as_shards(folder: Path, shards: Path) -> Path:
    """Pack the files of a folder of splits, each into two shards, in the order of their names."""
    for split in ("train", "dev"):
        stems = sorted({path.stem for path in (folder / split).iterdir()})
        for number, part in enumerate((stems[: len(stems) // 2], stems[len(stems) // 2 :])):
            files = [(folder / split / f"{s}{e}") for s in part for e in (".png", ".txt")]
            tar(shards / f"{split}-{number}.tar", *((f.name, f.read_bytes()) for f in files))
    return shards


@pytest.fixture
def twice(tmp_path: Path) -> tuple[Path, Path, Config]:
    """The same pictures and captions as a folder and as shards, and a config."""
    config = toys.config(tmp_path)
    rows = (tmp_path / "captions.csv").read_text().splitlines()[1:]
    for image, caption, split in (row.split(",") for row in rows):
        copy = tmp_path / "folder" / split / image
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / image, copy)
        with copy.with_suffix(".txt").open("a") as text:
            text.write(f"{caption}\n")
    return tmp_path / "folder", as_shards(tmp_path / "folder", tmp_path / "shards"), config


def with_root(config: Config, root: Path) -> Config:
    tree = config.model_dump()
    tree["data"]["root"] = str(root)
    tree["training"]["epochs"] = 2
    return Config.model_validate(tree)


def test_shards_and_a_folder_train_the_same_model(
    twice: tuple[Path, Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shards, config = twice
    runs = []
    for number, root in enumerate((folder, shards)):
        monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / f"cache{number}"))
        runs.append(train(with_root(config, root), tmp_path / f"run{number}", device="cpu").folder)
    first, second = ({p.name: p.read_bytes() for p in (run / "model").iterdir()} for run in runs)
    assert first.pop("README.md") != second.pop("README.md")  # it names the data
    assert first.keys() == second.keys() >= {"model.safetensors", "vocab.json"}
    assert [name for name in first if first[name] != second[name]] == []
    # ... and its captions of the shards are scored against them, and shown in a report.
    tars = list(map(str, sorted(shards.glob("*.tar"))))
    done = CliRunner().invoke(
        main,
        ["caption", *tars, "--model", str(runs[1]), "--output", str(tmp_path / "out.jsonl")],
    )
    assert done.exit_code == 0, done.output
    for references in ([str(shards)], tars):
        done = CliRunner().invoke(
            main, ["score", str(tmp_path / "out.jsonl"), *references, "--resamples", "0"]
        )
        assert done.exit_code == 0 and "30 images matched" in done.output, done.output
    done = CliRunner().invoke(main, ["evaluate", "--model", str(runs[1])])
    assert done.exit_code == 0, done.output
    [predictions] = runs[1].rglob("predictions.jsonl")
    named = json.loads(predictions.read_text().splitlines()[0])
    assert named["file_name"].startswith(f"{shards}/dev-0.tar/")
    page = (predictions.parent / "report.html").read_text()
    assert "data:image/jpeg;base64" in page or "/9j/" in page


def test_a_broken_picture_in_a_shard_is_skipped(
    twice: tuple[Path, Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shards, config = twice
    with io.BytesIO() as file:
        draw(5).save(file, "PNG")
        tar(shards / "train-2.tar", ("x.png", file.getvalue()[:200]), ("x.txt", "a red square"))
    train(with_root(config, shards), tmp_path / "run", device="cpu")
    assert f"skipped: {shards}/train-2.tar/x.png: damaged" in capsys.readouterr().err


def test_statistics_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", ("a.jpg", b"i"), ("a.txt", "a dog"))
    (tmp_path / "00000_stats.json").write_text('{"status_dict": {"success"')
    [note] = read(tmp_path).notes
    assert note.startswith("00000_stats.json: cannot be read, so it tells no failed downloads: ")


def test_keys_that_repeat_in_the_json_of_a_member_are_counted(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", ("a.jpg", b"i"), ("a.json", '{"caption": "a dog", "caption": "x"}'))
    dataset = read(tmp_path)
    assert [example.captions for example in dataset.examples] == [("a dog",)]
    assert [(p.kind, p.where) for p in dataset.problems] == [("duplicate id", "a.tar/a.json")]


def test_score_and_compare_take_patterns_of_shards(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / f"{number:02}.tar", (f"{number}.jpg", b"i"), (f"{number}.txt", "a dog"))
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(f'{{"image": "{n}.jpg", "caption": "a dog"}}\n' for n in range(2)))
    pattern = str(tmp_path / "{00..01}.tar")
    run = CliRunner().invoke
    done = run(main, ["score", str(captions), pattern])
    assert done.exit_code == 0, done.output
    assert "2 images matched by" in done.output and "bleu_1   1.000" in done.output
    done = run(main, ["compare", str(captions), str(captions), "--references", pattern])
    assert done.exit_code == 0, done.output
    done = run(main, ["score", str(captions), str(tmp_path / "{00..02}.tar")])
    assert (done.exit_code, "1 of 3 shards do not exist" in done.output) == (1, True)
    done = run(main, ["score", str(captions), str(tmp_path / "{x.jsonl")])
    assert done.exit_code == 2 and "does not exist" in done.output
