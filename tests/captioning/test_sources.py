"""What the user points at becomes files in a fixed order, or a failure with its name."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from tarfile import TarFile
from zipfile import ZipFile

import pytest

from captioner.captioning import sources
from captioner.captioning.sources import Item, list_images
from captioner.errors import ImageError
from captioner.images.decode import read_file

from source_toys import listed, write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "c.txt", "sub/d.webp", "sub/deep/e.gif", "empty/.keep"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_files_come_in_the_order_given_whatever_they_are_called() -> None:
    assert listed("b.jpg", "a.PNG", "b.jpg", "c.txt") == ["b.jpg", "a.PNG", "b.jpg", "c.txt"]


def test_a_folder_gives_its_images_in_the_order_of_their_names(here: Path) -> None:
    assert listed(".") == ["a.PNG", "b.jpg"]
    assert listed("sub") == listed("sub/") == ["sub/d.webp"]
    assert listed(str(here / "sub")) == [str(here / "sub" / "d.webp")]


def test_order_does_not_depend_on_the_disk() -> None:
    names = [f"many/{folder}/{name}.jpg" for folder in "adbfec" for name in ("2", "10", "b", "B")]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert listed("many", recursive=True) == sorted(names)
    assert listed("many/*/*.jpg") == sorted(names)


def test_recursion_is_asked_for() -> None:
    assert listed(".", recursive=True) == ["a.PNG", "b.jpg", "sub/d.webp", "sub/deep/e.gif"]


def test_globs() -> None:
    assert listed("*.jpg", "sub/*.webp") == ["b.jpg", "sub/d.webp"]
    assert listed("[ab].*") == ["a.PNG", "b.jpg"]
    assert listed("su?") == ["sub/d.webp"]  # a folder that matches is looked into
    assert listed("**/*.gif") == ["sub/deep/e.gif"]
    assert listed("*.bmp") == ["*.bmp! no file matches this pattern"]


def test_a_file_named_like_a_pattern_is_that_file() -> None:
    Path("[a].jpg").touch()
    assert listed("[a].jpg") == ["[a].jpg"]
    assert listed("*.jpg") == ["[a].jpg", "b.jpg"]


def test_a_pattern_longer_than_any_path_is_no_file() -> None:
    assert "no such file" in listed("[" * 100_000)[0]


def test_a_dash_stands_for_the_lines_of_stdin() -> None:
    lines = ["b.jpg\n", "\n", "sub\n", "missing.jpg\n", "*.PNG\n", "-\n", " spaced.jpg \n", "c.txt"]
    assert listed("a.PNG", "-", "b.jpg", stdin=lines) == [
        "a.PNG",
        "b.jpg",
        "sub/d.webp",
        "missing.jpg! no such file",
        "a.PNG",
        " spaced.jpg ! no such file",
        "c.txt",
        "b.jpg",
    ]
    assert listed("-", recursive=True, stdin=["sub"]) == ["sub/d.webp", "sub/deep/e.gif"]
    assert listed("-") == []


@pytest.mark.parametrize(
    "start", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08\0", b"PK\x03\x04"]
)
def test_a_file_on_stdin_is_no_list_of_names(start: bytes) -> None:
    lines = io.TextIOWrapper(io.BytesIO(start + bytes(range(256))), "utf-8", "surrogateescape")
    assert listed("-", "b.jpg", stdin=lines) == [
        "-! stdin holds a file instead of paths; pass the path of the file",
        "b.jpg",
    ]


def test_stdin_is_read_as_it_comes() -> None:
    lines = iter(["a.PNG\n", "b.jpg\n"])
    items = list_images(["b.jpg", "-"], stdin=lines)
    assert next(items) == Item("b.jpg", Path("b.jpg"))
    assert next(items) == Item("a.PNG", Path("a.PNG"))
    assert next(lines) == "b.jpg\n"


@pytest.mark.parametrize("name", ["missing.jpg", "", "a\0b.jpg", "x" * 5000, "b.jpg/inside"])
def test_a_missing_file_is_a_failure_item(name: str) -> None:
    [item] = list_images([name])
    assert item.name == name
    assert isinstance(item.source, ImageError)
    assert str(item.source) == "no such file"


@pytest.mark.parametrize("name", ["new\nline.jpg", "qu'o\"te.jpg", "🦊.jpg", " .jpg", "\udce9.jpg"])
def test_odd_names(name: str) -> None:
    Path("odd").mkdir()
    Path("odd", name).touch()
    assert listed(f"odd/{name}") == listed("odd") == listed("odd/*") == [f"odd/{name}"]


def test_an_empty_folder_says_what_would_help() -> None:
    assert listed("empty") == ["empty! no image in this folder (--recursive searches subfolders)"]
    assert listed("empty", recursive=True) == ["empty! no image in this folder"]


def test_a_folder_of_archives_says_how_they_are_named() -> None:
    Path("shards").mkdir()
    for ending in (".tar", ".tar.gz", ".zip"):
        archive = Path(f"shards/0001{ending}")
        archive.touch()
        assert listed("shards") == [
            f"shards! no image in this folder (to read archives, pass 'shards/*{ending}')"
        ]
        archive.unlink()


def test_a_folder_that_cannot_be_listed_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert listed("sub") == ["sub! cannot be listed: Permission denied"]
    assert listed(".", recursive=True) == [
        "a.PNG",
        "b.jpg",
        "sub! cannot be listed: Permission denied",
    ]


@pytest.mark.parametrize("source", ["loop", "loop/**/*.jpg"])
def test_a_loop_of_links_ends(source: str) -> None:
    Path("loop").mkdir()
    Path("loop/a.jpg").touch()
    Path("loop/again").symlink_to("../loop", target_is_directory=True)
    assert "loop/a.jpg" in listed(source, recursive=True)
    assert listed("loop", recursive=True) == ["loop/a.jpg"]


def test_a_link_to_nowhere_is_a_file_that_will_fail_to_open() -> None:
    Path("dangling.jpg").symlink_to("nowhere.jpg")
    assert listed("dangling.jpg") == ["dangling.jpg"]


def test_two_loops_of_links_end() -> None:
    write("loop/a.jpg", b"x")
    for name in ("one", "two"):  # glob would look into 2^40 folders
        Path("loop", name).symlink_to("../loop", target_is_directory=True)
    for source in ("loop", "loop/**/*.jpg", "loop/**", "**/a.jpg"):
        assert listed(source, recursive=True) == ["loop/a.jpg"]


def test_a_double_star_goes_folder_by_folder() -> None:
    for name in ("tree/b/x.jpg", "tree/a.jpg", "tree/b/c/y.jpg", "tree/.hidden/z.jpg"):
        write(name, b"x")
    everything = ["tree/a.jpg", "tree/b/x.jpg", "tree/b/c/y.jpg"]
    for pattern in ("tree/**", "tree/**/*", "tree/**/*.jpg", "t*/**/*.jpg", "tree/**/**/*.jpg"):
        assert listed(pattern) == everything
    assert listed("tree/**/c") == ["tree/b/c/y.jpg"]
    assert listed("nowhere/**/*.jpg") == ["nowhere/**/*.jpg! no file matches this pattern"]


def test_a_pipe_or_a_device_among_files_is_not_opened() -> None:
    Path("odd").mkdir()
    os.mkfifo("odd/pipe.jpg")
    Path("odd/zero.jpg").symlink_to("/dev/zero")
    Path("odd/link.jpg").symlink_to("../b.jpg")
    assert listed("odd") == [
        "odd/link.jpg",
        "odd/pipe.jpg! a pipe or a device, not a file",
        "odd/zero.jpg! a pipe or a device, not a file",
    ]
    assert listed("/dev/zero") == ["/dev/zero! a pipe or a device, not a file"]


@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.tar", "pipe.zip", "pipe.csv", "link.png"])
def test_a_pipe_that_nobody_typed_is_one_failure(name: str) -> None:
    Path("odd").mkdir()
    if name.startswith("link"):
        os.mkfifo("elsewhere")
        Path("odd", name).symlink_to("../elsewhere")
    else:
        os.mkfifo(f"odd/{name}")
    write("list.csv", f"image\nodd/{name}\n")
    for source in (f"odd/{name[:3]}*", f"**/{name}", "-", "list.csv"):
        [found] = list_images([source], stdin=[f"odd/{name}\n"])
        assert isinstance(found.source, ImageError)
        assert (found.name, found.source.kind) == (f"odd/{name}", "unreadable")


@pytest.mark.parametrize("ending", ["jpg", "tar", "zip", "csv", "jsonl"])
def test_a_file_that_became_a_pipe_when_it_is_opened_is_one_failure(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "kind_of", lambda _: "file")  # what it was a moment ago
    os.mkfifo(f"pipe.{ending}")
    if ending == "jpg":
        found = Item("pipe.jpg", Path("pipe.jpg"))
    else:
        [found] = list_images([f"pipe.{ending}"])
    if isinstance(found.source, Path):
        with pytest.raises(ImageError, match="not a regular file") as refused:
            read_file(found.source)
        assert refused.value.kind == "unreadable"
    else:
        assert "not a regular file" in str(found.source)


def test_zero_bytes_may_end_the_paths_on_stdin() -> None:
    write("new\nline.jpg", b"x")
    write("tail \r", b"x")
    assert listed("-", stdin=["b.jpg\0new\n", "line.jpg\0a.PNG\0"]) == [
        "b.jpg",
        "new\nline.jpg",
        "a.PNG",
    ]
    assert listed("-", stdin=["b.jpg\0tail \r\0\0a.PNG"]) == ["b.jpg", "tail \r", "a.PNG"]
    assert listed("-", stdin=["b.jpg\r\n", "a.PNG\r\n"]) == ["b.jpg", "a.PNG"]


def test_names_stay_as_they_were_given() -> None:
    assert listed("./b.jpg", "sub//d.webp", "./*.jpg") == ["./b.jpg", "sub//d.webp", "./b.jpg"]
    assert listed("-", stdin=["./b.jpg\n"]) == ["./b.jpg"]


def test_a_folder_is_not_searched_for_archives_and_tables() -> None:
    write("mixed/s.tar", [("in.jpg", b"x")])
    write("mixed/list.csv", "image\na.jpg\n")
    write("mixed/a.jpg", b"x")
    assert listed("mixed") == ["mixed/a.jpg"]


def test_a_file_called_dash_is_found_by_a_pattern() -> None:
    write("dash/-", b"x")
    os.chdir("dash")
    assert listed("?", stdin=["never.jpg\n"]) == ["-"]


def test_nothing_is_opened_before_its_turn() -> None:
    items = list_images(["b.jpg", "pipe:touch opened", "later.tar"])
    assert next(items) == Item("b.jpg", Path("b.jpg"))
    assert not Path("opened").exists()
    write("later.tar", [("in.jpg", b"x")])
    assert [item.name for item in items][-1] == "later.tar/in.jpg"


def test_kinds_that_are_not_read_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "kinds"
    (folder / "sub").mkdir(parents=True)
    names = ("IMG_1.PSD", "IMG_2.psd", "b.jxl", "c.CR2", "sub/d.mov", "notes.txt", "._e.psd")
    for name in names:
        (folder / name).touch()
    with ZipFile(tmp_path / "kinds.zip", "w") as packed, TarFile(tmp_path / "k.tar", "w") as tar:
        for name in names:
            packed.write(folder / name, name)
            tar.add(folder / name, name)
    for source in (folder, tmp_path / "kinds.zip", tmp_path / "k.tar", tmp_path / "k*"):
        unread: Counter[str] = Counter()
        items = [*list_images(source, recursive=True, unread=unread)]
        times = 3 if "*" in source.name else 1
        counts = {".psd": 2, ".jxl": 1, ".cr2": 1, ".mov": 1}
        assert unread == {ending: count * times for ending, count in counts.items()}
        assert len(items) == times
    [item] = list_images(folder)
    assert "not read: 2 .psd, 1 .jxl, 1 .cr2" in str(item.source)


def test_names_with_a_dot_are_no_images(tmp_path: Path) -> None:
    folder = tmp_path / "mac"
    for name in ("a.jpg", "._a.jpg", "__MACOSX/._a.jpg", "sub/.hidden.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [item.name for item in list_images(folder, recursive=True)] == [str(folder / "a.jpg")]
    typed = str(folder / "._a.jpg")
    assert [item.name for item in list_images(typed)] == [typed]
