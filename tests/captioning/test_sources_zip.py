"""ZIP archives: members in their order; each bad one costs itself."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captioner.captioning.sources import list_images
from captioner.errors import ImageError

from source_toys import content, contents, listed, memory_below, write

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("method", METHODS)
def test_members_named_like_images_in_their_order(method: int) -> None:
    names = ["z.jpg", "a/", "a/b.PNG", "__MACOSX/._z.jpg", "t.txt", "🦊.jpg", "in.zip", "z.tar"]
    write("p.zip", zip_bytes(*((name, name.encode() * 999) for name in names), method=method))
    assert contents("p.zip") == {
        f"p.zip/{name}": name.encode() * 999 for name in ("z.jpg", "a/b.PNG", "🦊.jpg")
    }
    write("p.ZIP", zip_bytes(("t.txt", b"")))
    assert listed("p.ZIP") == ["p.ZIP! no image in this archive"]


def test_names_that_point_outside_and_links() -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    write("p.zip", zip_bytes(("../x.jpg", b"x"), ("/y.jpg", b"y"), (link, b"/etc/passwd")))
    assert listed("p.zip") == [
        "p.zip/../x.jpg! member name points outside the archive",
        "p.zip//y.jpg! member name points outside the archive",
        "p.zip/link.jpg! a link to another file; links are not followed",
    ]


def test_an_encrypted_member_costs_itself() -> None:
    data = bytearray(zip_bytes(("a.jpg", b"x"), ("b.jpg", b"y")))
    data[data.index(b"PK\1\2") + 8] |= 1
    write("p.zip", bytes(data))
    assert listed("p.zip") == ["p.zip/a.jpg! encrypted", "p.zip/b.jpg"]


def test_a_wrong_checksum_costs_its_member() -> None:
    data = zip_bytes(("a.jpg", b"first"), ("b.jpg", b"second"))
    write("p.zip", data.replace(b"first", b"fIrst"))
    failed, good = listed("p.zip")
    assert failed.startswith("p.zip/a.jpg! damaged member: Bad CRC-32")
    assert good == "p.zip/b.jpg"


def test_a_member_that_declares_too_much_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.images.members.MAX_MEMBER", 2**20)
    bomb = zip_bytes(("a.jpg", bytes(2**20 + 1)), ("b.jpg", bytes(2**20)), method=8)
    write("p.zip", bomb)
    assert listed("p.zip") == [
        "p.zip/a.jpg! 1,048,577 bytes, more than the limit of 1,048,576",
        "p.zip/b.jpg",
    ]


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_member_that_holds_more_than_it_declares(method: int) -> None:
    size = 2**26
    data = bytearray(zip_bytes(("a.jpg", bytes(size)), ("b.jpg", b"good"), method=method))
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(mark) + offset
        assert data[at : at + 4] == struct.pack("<I", size)
        data[at : at + 4] = struct.pack("<I", 1000)
    write("p.zip", bytes(data))
    del data
    # Other decompressors take 64 MB at a time, whatever is asked of them.
    with memory_below(2**22 if method == zipfile.ZIP_DEFLATED else 2**28):
        failed, good = listed("p.zip")
    assert failed.startswith("p.zip/a.jpg! damaged member")
    assert good == "p.zip/b.jpg"


def test_a_method_nobody_knows() -> None:
    data = bytearray(zip_bytes(("a.jpg", b"x"), ("b.jpg", b"y")))
    for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(mark) + offset] = 77
    write("p.zip", bytes(data))
    failed, good = listed("p.zip")
    assert failed.startswith("p.zip/a.jpg! damaged member: That compression method")
    assert good == "p.zip/b.jpg"


def test_damaged_packed_bytes() -> None:
    packed = zip_bytes(("a.jpg", bytes(range(256)) * 9), ("b.jpg", b"y"), method=8)
    stream = zlib.compressobj(wbits=-15)
    body = stream.compress(bytes(range(256)) * 9) + stream.flush()
    assert body in packed
    write("p.zip", packed.replace(body, b"\xff" * len(body)))
    failed, good = listed("p.zip")
    assert failed.startswith("p.zip/a.jpg! damaged member")
    assert good == "p.zip/b.jpg"


@pytest.mark.parametrize("data", [b"", b"no zip", zip_bytes(("a.jpg", b"x" * 999))[:-30]])
def test_what_is_no_archive_or_cut_off_is_one_failure(data: bytes) -> None:
    write("p.zip", data)
    write("q.zip", zip_bytes(("a.jpg", b"x")))
    failed, good = listed("p.zip", "q.zip")
    assert failed.startswith("p.zip! cannot be read as a ZIP archive: ")
    assert good == "q.zip/a.jpg"


@given(place=st.integers(0, 10**6), value=st.integers(0, 255), method=st.sampled_from(METHODS))
@example(place=1003, value=0, method=8)  # a member without a name
@settings(max_examples=100)
def test_any_damaged_byte_is_no_more_than_failures(place: int, value: int, method: int) -> None:
    data = bytearray(zip_bytes(("a.jpg", b"a" * 99), ("b.jpg", b"b" * 99), method=method))
    data[place % len(data)] = value
    write("p.zip", bytes(data))
    items = list(list_images(["p.zip"]))
    assert 1 <= len(items) <= 2
    for item in items:
        held = content(item)
        assert isinstance(held, ImageError) or held in (b"a" * 99, b"b" * 99)


def test_members_are_not_read_when_listed_and_by_any_number_of_threads_after() -> None:
    names = [f"{n}.jpg" for n in range(40)]
    write("p.zip", zip_bytes(*((name, name.encode() * 9999) for name in names), method=8))
    with memory_below(2**20):
        items = list(list_images(["p.zip"]))
    Path("p.zip").unlink()  # it stays open as long as a member of it is there
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, items)) == [name.encode() * 9999 for name in names]
