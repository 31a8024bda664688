"""Files and folders appear whole or not at all, with the modes they should have."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioner.errors import ConfigError
from captioner.system.files import PART, sweep, sweep_marked, whole_file, whole_folder, write_text
from captioner.system.ownership import begin, mark

SCORES = '{"cider": {"value": %d, "signature": "cider|refs:5"}}'
MODEL = {
    "config.json": '{"format_version": 1, "captioner_version": "0", "encoder": 0, "decoder": 0, '
    '"decoding": %d}',
    "model.safetensors": "",
    "vocab.json": '{"min_count": 1, "specials": [], "words": {}}',
    "preprocessor_config.json": "{}",
}


class SomethingElseError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, number: int = 0) -> None:
    for name, text in MODEL.items():
        (folder / name).write_text(text.replace("%d", str(number)))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_text_is_written_into_new_folders_and_over_files_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "scores.json"
    for text in (SCORES % 1, SCORES % 23 + "\n"):
        write_text(path, text, "scores")
        assert path.read_bytes() == text.encode()
    assert names(path.parent) == ["scores.json"]


def test_a_file_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"scores\.json: already exists and is not a scores file"):
        write_text(path, SCORES % 1, "scores")
    path.unlink()
    with (
        pytest.raises(ConfigError, match="exists"),
        whole_file(path, "scores") as aside,  # it comes while we write
    ):
        aside.write_text(SCORES % 1)
        path.write_text("[1, 2]")
    assert path.read_text() == "[1, 2]"
    assert names(tmp_path) == ["scores.json"]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(SCORES % 1)
    with pytest.raises(SomethingElseError), whole_file(path, "scores") as aside:
        aside.write_text("half")
        aside.with_name(".tmpXXXXXX").write_text("of a library")
        assert path.read_text() == SCORES % 1
        raise SomethingElseError
    assert path.read_text() == SCORES % 1
    assert names(tmp_path) == ["scores.json"]


def test_a_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync folder" if is_folder else "sync file")
        sync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_text(tmp_path / "scores.json", "words", "scores")
    assert events == ["sync file", "rename", "sync folder"]
    events.clear()
    with whole_folder(tmp_path / "folder", "model") as aside:
        (aside / "one").touch()
        (aside / "two").touch()
    assert events == ["sync file", "sync file", "rename", "sync folder"]


def test_a_link_keeps_pointing_where_it_does(tmp_path: Path) -> None:
    (tmp_path / "target").write_text(SCORES % 1)
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", SCORES % 2, "scores")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == SCORES % 2
    (tmp_path / "target").write_text("a thesis")
    with pytest.raises(ConfigError):
        write_text(tmp_path / "link", SCORES % 2, "scores")
    assert (tmp_path / "target").read_text() == "a thesis"


def test_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="one"):
        write_text(tmp_path / "one", "words", "scores")


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "words", "scores")
        assert os.read(reader, 100) == b"words"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "ö" * 90])
def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "words", "scores")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_new_files_follow_the_umask_and_replaced_ones_keep_their_mode(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        path, folder = tmp_path / "scores.json", tmp_path / "model"
        with whole_file(path, "scores") as aside:
            aside.touch(0o600)  # as a library would
            aside.write_text(SCORES % 1)
        assert mode(path) == 0o666 & ~umask
        with whole_folder(folder, "model") as aside:
            fill(aside)
            (aside / "model.safetensors").chmod(0o600)
        assert mode(folder) == 0o777 & ~umask
        assert {mode(file) for file in folder.iterdir()} == {0o666 & ~umask}
        path.chmod(0o640)
        (folder / "model.safetensors").chmod(0o640)
        folder.chmod(0o750)
        write_text(path, SCORES % 2, "scores")
        with whole_folder(folder, "model") as aside:
            fill(aside)
        assert mode(path) == mode(folder / "model.safetensors") == 0o640
        assert mode(folder) == 0o750
        assert mode(folder / "config.json") == 0o666 & ~umask
    finally:
        os.umask(before)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    for number in (1, 2):
        with whole_folder(path, "model") as aside:
            fill(aside, number)
            assert not path.exists() or str(number) not in (path / "config.json").read_text()
        assert names(path) == sorted(MODEL)
        assert f'"decoding": {number}' in (path / "config.json").read_text()
    assert names(path.parent) == ["model"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    fill(path)
    with pytest.raises(SomethingElseError), whole_folder(path, "model") as aside:
        (aside / "half").touch()
        raise SomethingElseError
    assert names(tmp_path) == ["model"]
    assert names(path) == sorted(MODEL)


def test_a_folder_that_goes_while_a_file_is_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with (
        pytest.raises(FileNotFoundError, match="its folder was moved or removed"),
        whole_file(tmp_path / "there" / "file", "scores") as aside,
    ):
        aside.touch()
        (tmp_path / "there").rename(tmp_path / "elsewhere")
        (tmp_path / "there").mkdir()
    assert names(tmp_path / "there") == []


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(IsADirectoryError, match="it became a folder"),
        whole_file(tmp_path / "file", "scores") as aside,
    ):
        aside.touch()
        (tmp_path / "file").mkdir()
    assert names(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from test_files import fill
import captioner.system.files as files

def no_library(name, use_errno):
    raise OSError("no such system call")

place, moment, swaps = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "swaps"
if not swaps:
    files.ctypes.CDLL = no_library
replace = Path.replace
count = 0
def step(*_):
    global count
    count += 1
    if count == moment:
        os.kill(os.getpid(), signal.SIGKILL)

def slow(self, target):
    step()
    done = replace(self, target)
    step()
    return done

Path.replace = slow
swap = files._swap
def watched(*both):
    step()
    swap(*both)
    step()

files._swap = watched
with files.whole_folder(place, "model") as aside:
    step()
    fill(aside, 2)
    step()
"""


@pytest.mark.parametrize("swaps", ["swaps", "two renames"])
def test_killed_at_any_moment_the_old_folder_or_the_new_one_is_there(
    tmp_path: Path, swaps: str
) -> None:
    finished = False
    for moment in range(1, 12):
        place = tmp_path / str(moment) / "model"
        place.mkdir(parents=True)
        fill(place, 1)
        words = [str(Path(__file__).parent), str(place), str(moment), swaps]
        done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
        finished = done.returncode == 0
        if swaps == "swaps" and sys.platform == "linux":
            assert place.is_dir()  # at every moment
        sweep(place)
        assert names(place) == sorted(MODEL)
        assert (place / "config.json").read_text()[-2] in "12"
        assert names(place.parent) == ["model"]
        if finished:
            break
        assert done.returncode == -signal.SIGKILL
    assert finished


@pytest.mark.usefixtures("ends_what_it_starts")
def test_what_a_killed_process_was_writing_is_swept_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path, "checkpoints")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from captioner.system.files import whole_file\n"
        "with whole_file(Path(sys.argv[1]), 'in checkpoints') as aside:\n"
        "    aside.write_text('half'); print(flush=True); time.sleep(60)"
    )
    path = tmp_path / "step-5.safetensors"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.stdout.close()
    dead, alive = sorted(
        (left for left in tmp_path.iterdir() if PART.fullmatch(left.name)),
        key=lambda left: f"-{writers[1].pid}-" in left.name,
    )
    foreign = tmp_path / f".step-5.safetensors.captioner-{2**22 + 1}-abc.part"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()  # without our marker
    for name in (".x.old", ".step-5.safetensors.99.part", ".tmpABC"):
        (tmp_path / name).touch()
    deep = tmp_path / "deep" / dead.name
    deep.mkdir(parents=True)
    mark(deep, "part")
    before = {path for path in tmp_path.rglob("*") if dead not in (path, path.parent)}
    writers[0].kill()
    writers[0].wait()
    for clean in (lambda: sweep(path), lambda: sweep_marked(tmp_path, "checkpoints")):
        clean()
        assert set(tmp_path.rglob("*")) == before
    writers[1].kill()
    writers[1].wait()
    time.sleep(0.01)
    sweep_marked(tmp_path, "checkpoints")
    assert not alive.exists()
    assert foreign.exists()
