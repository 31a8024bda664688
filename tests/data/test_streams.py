"""Commands that write tar streams: they run once, only if typed, and whole shards are kept."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import draw

from captioner.cli import main
from captioner.data.streams import keep
from captioner.errors import DataError
from captioner.system.files import cache_folder

SMALL = ("encoder.weights=none", "training.epochs=1", "text.min_count=1", "training.batch_size=4")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three shards of drawn pictures, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    for number, split in enumerate(("train", "dev", "test")):
        with tarfile.open(f"{split}-0.tar", "w") as archive:
            for picture in range(4):
                with io.BytesIO() as file:
                    draw(10 * number + picture).save(file, "PNG")
                    png = file.getvalue()
                for name, data in ((f"{split}{picture}.png", png), (f"{split}{picture}.txt", b"a")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def trained(root: str, output: str, *more: str) -> Result:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    root_setting = ("--set", f"data.root={root}")
    return run("train", *root_setting, *settings, "--output", output, "--device", "cpu", *more)


def silent(text: str) -> None:
    assert text.startswith("note: pipe: ")


def test_a_command_runs_once_and_its_shards_are_kept(home: Path) -> None:
    counted = "pipe:echo x >> ran; cat {train,dev}-0.tar"
    folder = keep(counted, silent)
    assert [path.name for path in sorted(folder.glob("*.tar"))] == ["dev-0.tar", "train-0.tar"]
    for name in ("dev-0.tar", "train-0.tar"):
        assert (folder / name).read_bytes() == Path(name).read_bytes()
    assert keep(counted, silent) == folder and Path("ran").read_text() == "x\n" * 2
    (folder / "dev-0.tar").unlink()  # only what is missing runs again
    said: list[str] = []
    assert keep(counted, said.append) == folder and Path("ran").read_text() == "x\n" * 3
    assert said == [
        f"note: pipe: 1 of 2 shards are in {folder}; to read them anew, delete that folder",
        f"note: pipe: runs 1 command(s) and keeps the shards in {folder}",
    ]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("cat train-0.tar dev-0.tar", ["dev-0.tar"]),  # one stream
        ("cat {train,dev}-0.tar", ["dev-0.tar", "train-0.tar"]),
        ("cat ./{train,dev}-{0..0}.tar", ["dev-0.tar", "train-0.tar"]),
        ("cat {train,dev}-0.tar > x.tar; cat x.tar", ["00000.tar", "00001.tar"]),  # names repeat
        ("awk 'BEGIN {x[1,2]=1}' /dev/null; cat train*", ["00000.tar"]),  # of awk
        ("cat train*", ["00000.tar"]),
        ("cat < ../$(basename $PWD)/train-0.tar", ["train-0.tar"]),
    ],
)
def test_shards_have_the_names_of_their_files(home: Path, command: str, names: list[str]) -> None:
    folder = keep(f"pipe:{command}", silent)
    assert [path.name for path in sorted(folder.glob("*.tar"))] == names


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("exit 3", "the command failed with exit status 3; run it in a shell to see why"),
        ("cat train-0.tar; exit 3", "the command failed with exit status 3"),
        ("kill -9 $$", "the command failed with exit status -9"),
        ("cat train-0.tar | gzip", "the command writes a gzip file; end it with `| gzip -dc`"),
        ("cat train-0.tar | bzip2", "the command writes a bzip2 file; end it with `| bzip2 -dc`"),
        ("cat train-0.tar | xz", "the command writes a xz file; end it with `| xz -dc`"),
        ("echo a page", "the command writes no tar file: truncated header"),
        (":", "the command writes no tar file: empty file"),
        ("head -c 2000 train-0.tar | cat", "the command writes a damaged tar file: truncated"),
        ("head -c 1024 train-0.tar", "the command writes a damaged tar file: truncated"),
        (" ", "pipe: has no command; write pipe:COMMAND"),
        ("cat {0..999999}.tar {0..1}.tar", "more than 1,000,000 shards"),
    ],
)
def test_what_fails_is_one_line_and_keeps_nothing(home: Path, command: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem.replace("|", r"\|").replace("(", r"\(")) as error:
        keep(f"pipe:{command}", silent)
    assert "\n" not in str(error.value)
    assert not [*cache_folder().rglob("*.tar")]


def test_good_shards_stay_when_a_later_command_fails(home: Path) -> None:
    with pytest.raises(DataError, match=r"pipe:'cat gone-0\.tar'"):
        keep("pipe:cat {train,gone,dev}-0.tar", silent)
    assert [path.name for path in cache_folder().rglob("*.tar")] == ["train-0.tar"]


def test_the_same_words_in_another_folder_are_other_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keep("pipe:cat train-0.tar", silent)
    other = home / "other"
    other.mkdir()
    (home / "dev-0.tar").rename(other / "train-0.tar")
    monkeypatch.chdir(other)
    second = keep("pipe:cat train-0.tar", silent)
    assert second != first
    assert (second / "train-0.tar").read_bytes() != (first / "train-0.tar").read_bytes()


def test_a_stream_trains_the_model_of_its_files(home: Path) -> None:
    done = trained("pipe:cat {train,dev,test}-0.tar", "piped")
    assert done.exit_code == 0, done.output
    assert trained("{train,dev,test}-0.tar", "plain").exit_code == 0
    for name in ("model.safetensors", "vocab.json"):
        first, second = ((home / run / "model" / name).read_bytes() for run in ("piped", "plain"))
        assert first == second
    # The run names the folder of the shards, and no command.
    config = yaml.safe_load((home / "piped" / "config.yaml").read_text())
    assert Path(config["data"]["root"]).parent == cache_folder() / "streams"
    files = [path for path in (home / "piped").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"cat {" in path.read_bytes()]
    # It goes on with the same line, and is evaluated on its own data and on a stream.
    done = trained("pipe:cat {train,dev,test}-0.tar", "piped", "--resume")
    assert done.exit_code == 0 and "3 of 3 shards are in" in done.output, done.output
    for words in (
        (),
        ("--data", "pipe:cat test-0.tar"),
        ("--set", "data.root=pipe:cat test-0.tar"),
    ):
        done = run("evaluate", "--model", "piped", *words)
        assert done.exit_code == 0, done.output


def test_no_command_of_a_config_runs(home: Path) -> None:
    Path("c.yaml").write_text('data: {root: "pipe:touch ran"}\n')
    for words in (["train", "c.yaml"], ["features", "c.yaml"]):
        done = run(*words)
        assert done.exit_code == 1 and "a configuration starts no command" in done.output
    assert not Path("ran").exists()


def test_a_mistake_in_a_setting_is_said_before_a_command_runs(home: Path) -> None:
    done = trained("pipe:touch ran", "out", "--set", "training.epohcs=3")
    assert done.exit_code == 2 and "epohcs" in done.output and not Path("ran").exists()


def test_data_and_features_take_commands(home: Path) -> None:
    done = run("data", "pipe:cat {train,dev,test}-0.tar")
    assert done.exit_code == 0 and "(webdataset)" in done.output, done.output
    words = ["--set", "data.root=pipe:cat {train,dev}-0.tar", "--set", "encoder.weights=none"]
    done = run("features", *words, "--device", "cpu")
    assert done.exit_code == 0 and "12 rows of 1,280 ready" in done.output, done.output
