"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from captioner.files import whole_file, whole_folder, write_text


class SomethingElseError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_into_new_folders_and_over_old_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    for text in ("first, longer", "é\n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert names(path.parent) == ["text.txt"]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")
    with pytest.raises(SomethingElseError), whole_file(path) as aside:
        aside.write_text("half")
        assert path.read_text() == "old"
        raise SomethingElseError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["text.txt"]


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
    write_text(tmp_path / "text.txt", "words")
    assert events == ["sync file", "rename", "sync folder"]
    events.clear()
    with whole_folder(tmp_path / "folder") as aside:
        (aside / "one").touch()
        (aside / "two").touch()
    assert events == ["sync file", "sync file", "rename", "sync folder"]


def test_a_link_keeps_pointing_where_it_does(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "words")
        assert os.read(reader, 100) == b"words"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    for name in ("first", "second"):
        with whole_folder(path) as aside:
            (aside / name).write_text(name)
            assert not (path / name).exists()
        assert names(path) == [name]
    assert names(path.parent) == ["model"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(SomethingElseError), whole_folder(path) as aside:
        (aside / "half").touch()
        raise SomethingElseError
    assert names(tmp_path) == ["model"]
    assert names(path) == ["old"]


def test_a_folder_that_goes_while_a_file_is_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with (
        pytest.raises(FileNotFoundError, match="its folder was moved or removed"),
        whole_file(tmp_path / "there" / "file") as aside,
    ):
        aside.touch()
        (tmp_path / "there").rename(tmp_path / "elsewhere")
        (tmp_path / "there").mkdir()
    assert names(tmp_path / "there") == []


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(IsADirectoryError, match="a folder took its place"),
        whole_file(tmp_path / "file") as aside,
    ):
        aside.touch()
        (tmp_path / "file").mkdir()
    assert names(tmp_path) == ["file"]
