"""Tar shards: read once, from front to end, whatever is wrong with them."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.captioning.sidecars import Sidecars
from captioner.captioning.sources import list_images, tar
from captioner.errors import ImageError
from captioner.images.content import ALWAYS_ALLOWED
from captioner.system.memory import Held, Memory

from source_toys import content, contents, entry, listed, memory_below, tar_bytes, write

TWO = [("0001.jpg", b"first"), ("0001.txt", b"a caption"), ("0002.png", b"second" * 200)]
LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.TGZ", "w:gz"), ("s.tar.bz2", "w:bz2")),
        *(("s.tar.xz", "w:xz"), ("misnamed.tar", "w:gz"), ("misnamed.tgz", "w")),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_named_like_images_with_their_bytes(name: str, mode: str, kind: int) -> None:
    write(name, tar_bytes(TWO, mode, format=kind))
    assert contents(name) == {f"{name}/0001.jpg": b"first", f"{name}/0002.png": b"second" * 200}
    assert [path.name for path in Path().iterdir()] == [name]


def test_which_members_are_images() -> None:
    names = [
        "./a.jpg",
        "d/b.left.JPG",
        "d/.hidden.jpg",
        "._a.jpg",
        ".jpg",
        "jpg",
        "a.jpg.txt",
        "x.tar",
    ]
    write("s.tar", [entry("d", kind=FOLDER), *((name, b"x") for name in names)])
    assert listed("s.tar") == ["s.tar/a.jpg", "s.tar/d/b.left.JPG"]
    write("s.tar", [("a.txt", b"x"), ("folder.jpg", b"")][:1])
    assert listed("s.tar") == ["s.tar! no image in this archive"]


@pytest.mark.parametrize(
    "name", ["a\nb.jpg", "🦊.jpg", "\udce9.jpg", "n" * 300 + ".jpg", "q\"'.jpg"]
)
def test_odd_member_names(name: str) -> None:
    write("s.tar", [(name, b"x")])
    assert listed("s.tar") == [f"s.tar/{name}"]


def test_links_and_devices_and_folders() -> None:
    kinds = {"f.jpg": FOLDER, "p.jpg": tarfile.FIFOTYPE, "c.jpg": tarfile.CHRTYPE}
    links = [entry("l.jpg", kind=LINK, link="/etc/passwd"), entry("h.jpg", kind=HARD, link="a.jpg")]
    write("s.tar", [("a.jpg", b"x"), *links, *(entry(n, kind=k) for n, k in kinds.items())])
    assert listed("s.tar") == [
        "s.tar/a.jpg",
        "s.tar/l.jpg! a link to another file; links are not followed",
        "s.tar/h.jpg! a link to another file; links are not followed",
    ]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/x.jpg", "..\\x.jpg", "C:\\x.jpg", "\\\\host\\x.jpg"]
)
def test_members_that_point_outside(name: str, here: Path) -> None:
    write("in/s.tar", [(name, b"x"), ("a..b.jpg", b"y")])
    assert listed("in/s.tar") == [
        f"in/s.tar/{name}! member name points outside the archive",
        "in/s.tar/a..b.jpg",
    ]
    assert [path.name for path in here.rglob("*")] == ["in", "s.tar"]


def test_a_zero_byte_in_a_name() -> None:
    info = entry("short.jpg")
    info.pax_headers = {"path": "a\0b.jpg"}
    write("s.tar", [info])
    assert listed("s.tar") == ["s.tar/a\0b.jpg! member name contains a zero byte"]


@pytest.mark.parametrize("size", [2**33, 2**62])
def test_an_oversized_member_is_one_failure_and_no_memory(size: int) -> None:
    huge = entry("huge.jpg", size=size)
    head = huge.tobuf(tarfile.GNU_FORMAT)
    write("s.tar", tar_bytes([("a.jpg", b"x")])[:1024] + head)
    with memory_below(2**22):
        found = listed("s.tar")
    assert found[:2] == [
        "s.tar/a.jpg",
        f"s.tar/huge.jpg! {size:,} bytes, more than the limit of 536,870,912",
    ]
    assert len(found) == 3
    assert found[2] == "s.tar! damaged archive: truncated"


def test_a_member_beyond_the_limit_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.images.members.MAX_MEMBER", 5)
    write("s.tar", [("a.jpg", b"12345"), ("b.jpg", b"123456"), ("c.jpg", b"1")])
    assert listed("s.tar") == [
        "s.tar/a.jpg",
        "s.tar/b.jpg! 6 bytes, more than the limit of 5",
        "s.tar/c.jpg",
    ]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_huge_header_does_not_fill_the_memory(kind: bytes) -> None:
    bomb = entry("x", size=2**33, kind=kind).tobuf(tarfile.GNU_FORMAT)
    write("s.tar", bomb + bytes(2**20))
    assert (
        listed("s.tar", "s.tar") == ["s.tar! damaged archive: a header has 8,589,934,592 bytes"] * 2
    )


def test_a_chain_of_headers_does_not_overflow_the_stack() -> None:
    link = entry("x", size=512, kind=tarfile.XHDTYPE).tobuf() + b"20 path=abcdefghij\n".ljust(
        512, b"\0"
    )
    write("s.tar", tar_bytes([("a.jpg", b"x")])[:1024] + link * 2000)
    first, last = listed("s.tar", "s.tar")[:2]
    assert first == "s.tar/a.jpg"
    assert last.startswith("s.tar! damaged archive")


@given(cut=st.integers(0, 10239), mode=st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
@settings(max_examples=60)
def test_cut_anywhere_what_came_before_stands_and_one_failure_names_the_shard(
    cut: int, mode: str
) -> None:
    whole = tar_bytes([(f"{i}.jpg", bytes([i]) * 700) for i in range(4)], mode)
    end = 4 * (512 + 1024)  # of the last member, uncompressed; one zero block may do as a mark
    cut = cut % (end + 512) if mode == "w" else cut % len(whole)
    if mode == "w:gz" and cut > len(whole) - 8:
        cut -= 8
    write("cut.tar", whole[:cut])
    write("next.tar", TWO)
    items = list(list_images(["cut.tar", "next.tar"]))
    failed = [item for item in items if isinstance(item.source, ImageError)]
    assert [item.name for item in failed] == ["cut.tar"]
    position = items.index(failed[0])
    for number, item in enumerate(items[:position]):
        assert (item.name, content(item)) == (f"cut.tar/{number}.jpg", bytes([number]) * 700)
    assert [item.name for item in items[position + 1 :]] == [
        "next.tar/0001.jpg",
        "next.tar/0002.png",
    ]


@given(place=st.integers(0, 6143), value=st.integers(0, 255), mode=st.sampled_from(["w", "w:gz"]))
@settings(max_examples=80)
def test_any_damaged_byte_is_at_most_one_failure_more(place: int, value: int, mode: str) -> None:
    data = bytearray(tar_bytes([(f"{i}.jpg", bytes([i]) * 700) for i in range(4)], mode))
    data[place % len(data)] = value
    write("bad.tar", bytes(data))
    items = list(list_images(["bad.tar", "missing"]))
    assert items[-1].name == "missing"
    assert sum(item.name == "bad.tar" for item in items) <= 1
    assert 0 < len(items) <= 6


def test_an_archive_cut_between_two_members_is_cut_off_all_the_same() -> None:
    write("s.tar", tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y")])[:1024])
    assert listed("s.tar") == [
        "s.tar/a.jpg",
        "s.tar! damaged archive: truncated: there is no end mark",
    ]


def test_damage_in_the_middle_is_not_passed_over_in_silence() -> None:
    data = bytearray(tar_bytes([("a.jpg", b"x"), ("b.jpg", b"y"), ("c.jpg", b"z")]))
    data[1024 + 10] ^= 1  # the header of b.jpg
    write("s.tar", bytes(data))
    assert listed("s.tar") == ["s.tar/a.jpg", "s.tar! damaged archive: bad checksum"]


def test_a_wrong_checksum_of_gzip_is_said() -> None:
    data = bytearray(tar_bytes(TWO, "w:gz"))
    data[-8] ^= 1
    write("s.tgz", bytes(data))
    assert "CRC" in listed("s.tgz")[-1]


@pytest.mark.parametrize(
    "data", [b"", b"no tar", b"x" * 2000, gzip.compress(b"no tar", mtime=0), b"\x1f\x8b"]
)
def test_what_is_no_archive(data: bytes) -> None:
    write("s.tar", data)
    [found] = listed("s.tar")
    assert found.startswith("s.tar! damaged archive: ")


def test_joined_archives_and_joined_streams_are_read_to_the_end() -> None:
    one, two = tar_bytes([("a.jpg", b"x")]), tar_bytes([("b.jpg", b"y")])
    both = ["s.tar/a.jpg", "s.tar/b.jpg"]
    write("s.tar", one + two)
    assert listed("s.tar") == both
    write("s.tar", gzip.compress(one) + gzip.compress(two))
    assert listed("s.tar") == both
    write("s.tar", gzip.compress(one[:700]) + gzip.compress(one[700:] + two))
    assert listed("s.tar") == both


def test_a_name_like_the_start_of_a_compressed_stream() -> None:
    write("s.tar", [("BZh9.jpg", b"x")])
    assert listed("s.tar") == ["s.tar/BZh9.jpg"]


def test_what_follows_the_end_mark_is_not_part_of_the_archive() -> None:
    write("s.tar", tar_bytes([("a.jpg", b"x")])[: 1024 + 1024] + b"garbage" * 500)
    assert listed("s.tar") == ["s.tar/a.jpg"]


def test_items_come_as_they_are_asked_for_and_are_not_kept() -> None:
    size, count = 2**18, 60
    write("s.tar", [(f"{i}.jpg", bytes(size)) for i in range(count)])
    with memory_below(12 * size):
        assert sum(1 for _ in list_images(["s.tar"])) == count
    write("many.tar", [(f"{i}.jpg", b"") for i in range(20_000)])
    items = list_images(["many.tar"])
    next(items)
    # All headers together are more; Python may want 8 MB for its table of names.
    with memory_below(10 * 2**20):
        assert sum(1 for _ in items) == 19_999


@pytest.mark.parametrize("key", ["size", "GNU.sparse.realsize"])
@pytest.mark.parametrize("size", [-1, -5, -2000])
def test_a_negative_size_is_one_failure(key: str, size: int) -> None:
    info = entry("b.jpg", size=4)
    info.pax_headers = {key: str(size)}
    if key != "size":
        info.pax_headers |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    head = info.tobuf(tarfile.PAX_FORMAT)
    write("s.tar", tar_bytes([("a.jpg", b"x")])[:1024] + head + b"0\n\0\0".ljust(512, b"\0") * 8)
    items = list(itertools.islice(list_images(["s.tar"]), 20))
    assert items[0].name == "s.tar/a.jpg"
    assert isinstance(items[-1].source, ImageError)
    assert len(items) <= 3
    for item in items[:-1]:
        assert isinstance(content(item), bytes)


def test_of_an_open_archive_only_headers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**20
    write("s.tar", [(f"{i}.jpg", bytes([i]) * size) for i in range(9)])
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: bytearray) -> int:
            nonlocal read
            count = super().readinto(buffer)
            read += count
            return count

    def counting(path: str, mode: str, **_: object) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(Counting(path))

    monkeypatch.setattr(tar, "open", counting, raising=False)
    items = list(list_images(["s.tar"]))
    assert 0 < read < size
    assert [content(item) for item in items] == [bytes([i]) * size for i in range(9)]


def test_a_sparse_member_is_unfolded() -> None:
    with open("a.jpg", "wb") as file:  # noqa: PTH123 one hole
        file.seek(2**20)
        file.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "s.tar", "a.jpg"], check=True)
    assert contents("s.tar") == {"s.tar/a.jpg": Path("a.jpg").read_bytes()}


def test_an_archive_that_shrinks_while_it_is_read_costs_the_member() -> None:
    write("s.tar", TWO)
    [first, second] = list_images(["s.tar"])
    os.truncate("s.tar", second.source.start + 7)
    assert content(first) == b"first"
    with pytest.raises(ImageError, match="truncated while it was read"):
        second.source.read_bytes()
    Path("s.tar").unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        second.source.read_bytes()


def test_a_named_pipe_is_a_tar_stream() -> None:
    os.mkfifo("pipe.jpg")

    def feed() -> None:
        Path("pipe.jpg").write_bytes(tar_bytes(TWO, "w:gz"))

    threading.Thread(target=feed, daemon=True).start()
    assert listed("pipe.jpg") == ["pipe.jpg/0001.jpg", "pipe.jpg/0002.png"]


def test_a_process_substitution() -> None:
    reader, writer = os.pipe()
    os.write(writer, tar_bytes(TWO))
    os.close(writer)
    name = f"/dev/fd/{reader}"
    assert listed(name) == [f"{name}/0001.jpg", f"{name}/0002.png"]
    os.close(reader)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_archive_that_may_not_be_read() -> None:
    Path(write("s.tar", TWO)).chmod(0)
    assert listed("s.tar") == ["s.tar! cannot be read: Permission denied"]


def test_a_command_that_the_user_typed() -> None:
    write("s.tar", TWO)
    assert listed("pipe:cat s.tar") == ["pipe:cat s.tar/0001.jpg", "pipe:cat s.tar/0002.png"]
    assert listed("pipe:gzip < s.tar | cat")[0] == "pipe:gzip < s.tar | cat/0001.jpg"


def test_the_status_of_a_command_is_one_failure() -> None:
    write("s.tar", TWO)
    assert listed("pipe:cat s.tar; exit 3", "s.tar") == [
        "pipe:cat s.tar; exit 3/0001.jpg",
        "pipe:cat s.tar; exit 3/0002.png",
        "pipe:cat s.tar; exit 3! the command failed with exit status 3",
        "s.tar/0001.jpg",
        "s.tar/0002.png",
    ]
    [found] = listed("pipe:exit 22")
    assert found.startswith("pipe:exit 22! the command failed with exit status 22; damaged archive")
    [found] = listed("pipe:head -c 100 s.tar")
    assert found.startswith("pipe:head -c 100 s.tar! damaged archive")


def test_a_command_does_not_read_our_stdin_and_outlives_nothing() -> None:
    write("s.tar", TWO)
    items = list_images(["pipe:cat s.tar; exec sleep 600"])
    next(items)
    started = time.perf_counter()
    items.close()  # type: ignore[attr-defined]
    assert listed("pipe:yes")[0].startswith("pipe:yes! damaged archive")
    assert listed("pipe:cat")[0].startswith("pipe:cat! damaged archive")
    assert time.perf_counter() - started < 300


@pytest.mark.parametrize("where", ["stdin", "csv", "jsonl", "glob", "shell"])
def test_no_command_comes_from_anywhere_but_the_command_line(where: str, here: Path) -> None:
    command = "pipe:touch owned"
    write("list.csv", f"image\n{command}\n")
    write("list.jsonl", f'{{"image": "{command}"}}\n')
    write("files/" + command, b"x")
    if where == "stdin":
        listed("-", stdin=[command + "\n", f"a\0{command}\0"])
        listed("-", stdin=[f"a\0{command}\0"])
    elif where == "glob":
        os.chdir("files")
        assert listed("pipe*") == [command]
    elif where == "shell":  # `captioner caption *` where a file has such a name
        os.chdir("files")
        assert listed(command) == [command]
    else:
        [found] = listed(f"list.{where}")
        assert "no such file" in found
    assert not list(here.glob("**/owned"))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert listed("pipe:touch owned") != []  # the proof works
    assert Path("owned").exists()


def test_shards() -> None:
    for number in (0, 1, 3):
        write(f"shards/{number:05d}.tar", [(f"{number}.jpg", b"x")])
    assert listed("shards/00000.tar", "shards/00002.tar") == [
        "shards/00000.tar/0.jpg",
        "shards/00002.tar! no such file",
    ]
    assert listed("shards/*.tar") == [f"shards/0000{n}.tar/{n}.jpg" for n in (0, 1, 3)]
    assert listed("pipe:cat shards/00001.tar") == ["pipe:cat shards/00001.tar/1.jpg"]
    assert listed("shards/*1.tar") == ["shards/00001.tar/1.jpg"]
    assert listed("-", stdin=["shards/00003.tar\n"]) == ["shards/00003.tar/3.jpg"]


def test_members_have_no_place_beside_them() -> None:
    write("s.tar", TWO[:1])
    write("a.jpg", b"x")
    items = list_images(["s.tar", "a.jpg"])
    first, second = Sidecars().missing(items)
    assert str(first.source) == "archive members get no text file; choose another --format"
    assert second.source == Path("a.jpg")


def test_a_sparse_member_of_nothing_is_a_bomb(tmp_path: Path) -> None:
    for name, size in (("a.jpg", ALWAYS_ALLOWED), ("b.jpg", ALWAYS_ALLOWED + 1)):
        Path(name).touch()
        os.truncate(name, size)
    for format in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={format}", "-cf", "s.tar", "a.jpg", "b.jpg"]
        subprocess.run(command, check=True)
        good, bad = list_images(["s.tar"])
        assert good.source == bytes(ALWAYS_ALLOWED)
        assert isinstance(bad.source, ImageError)
        assert (bad.name, bad.source.kind) == ("s.tar/b.jpg", "too_large")


def test_a_stream_waits_for_room_before_it_reads_a_member() -> None:
    write("s.tar", tar_bytes([(f"{n}.jpg", bytes(1000)) for n in range(9)], "w:gz"))
    memory = Memory(4000)
    most = 0
    with ThreadPoolExecutor(2) as pool:
        for item in list_images(["s.tar"], memory=memory):
            assert isinstance(item.source, Held)
            most = max(most, memory.used)

            def work(number: int, held: Held) -> None:
                time.sleep(0.01)
                held.give_back()
                memory.leave(number)

            pool.submit(work, memory.join(), item.source)
    assert most <= 2000
    assert memory.used == 0
