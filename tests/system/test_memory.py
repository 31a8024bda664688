"""The bound for images in flight: kept by all but the first in line, and nothing waits for ever."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import threading
import time
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.captioning.records import CaptioningOptions, caption_files
from captioner.captioning.sources import list_images
from captioner.errors import ConfigError, ImageError
from captioner.images.decode import read_image
from captioner.system.memory import Held, Memory, bytes_of, usual_limit

import toys
from hostile_tars import sparse_member


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, 4))
def test_all_but_the_first_in_line_stay_within_half_of_the_limit(sizes, limit, threads):
    memory = Memory(limit)
    most, lock = [], threading.Lock()

    def work(number, size):
        memory.claim(size, number)
        with lock:
            line = list(memory._queue.items())
            most.append(memory.used - line[0][1])  # without what the first holds
        memory.leave(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [memory.join() for _ in sizes], sizes))
    assert max(most) <= limit // 2
    assert memory.used == 0


def test_who_is_larger_than_the_limit_is_done_alone_and_in_its_turn():
    memory = Memory(10)
    first, second = memory.join(), memory.join()
    memory.claim(3, first)
    done = []
    waits = threading.Thread(target=lambda: done.append(memory.claim(1000, second)))
    waits.start()
    time.sleep(0.05)
    assert not done  # it waits for the first
    memory.leave(first)
    waits.join(10)
    assert done == [None]
    assert memory.used == 1000
    memory.leave(second)


def test_what_is_held_is_given_back_once_also_by_who_drops_it():
    memory = Memory(10)
    memory.claim(4)
    held = Held(b"four", memory, 4)
    held.give_back()
    held.give_back()
    assert memory.used == 0
    memory.claim(4)
    held = Held(b"four", memory, 4)
    del held
    assert memory.used == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    return {
        f"{number:02}.png": toys.draw(folder / f"{number:02}.png", colour, number).read_bytes()
        for number, colour in enumerate(2 * list(toys.COLOURS))
    }


def archives(folder, pictures):
    """Write the pictures as files, an open tar, a packed one, a stream and a ZIP."""
    (folder / "files").mkdir()
    for name, content in pictures.items():
        (folder / "files" / name).write_bytes(content)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (folder / "a.tar").write_bytes(packed.getvalue())
    (folder / "a.tar.gz").write_bytes(gzip.compress(packed.getvalue()))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in pictures.items():
            archive.writestr(name, content)
    return [folder / "files", folder / "a.tar", folder / "a.tar.gz", folder / "a.zip"]


@pytest.mark.parametrize("limit", [1, 5_000, 2**30])
def test_a_bound_of_any_size_changes_no_caption_and_no_order(limit, pictures, tmp_path):
    captioner = toys.captioner()
    written = []
    for source in archives(tmp_path, pictures):
        memory = Memory(limit)
        items = list_images([str(source)], memory=memory)
        how = CaptioningOptions(batch_size=5, num_workers=3)
        records = list(caption_files(captioner, items, how=how, memory=memory))
        assert [record.file_name[-6:] for record in records] == list(pictures)
        written.append([record.captions for record in records])
        assert memory.used == 0
    assert all(each == written[0] for each in written)
    plain = list(caption_files(captioner, list_images([str(tmp_path / "files")]), how=how))
    assert written[0] == [record.captions for record in plain]


def test_members_of_a_zip_are_not_read_when_they_are_listed(pictures, tmp_path, monkeypatch):
    source = archives(tmp_path, pictures)[-1]
    read = []
    whole = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *a, **k: read.append(a) or whole(*a, **k))
    items = list(list_images([str(source)]))
    assert not read
    assert [item.source.read_bytes() for item in items] == list(pictures.values())


def test_decoding_is_asked_for_before_it_is_done(pictures):
    asked = []
    read_image(next(iter(pictures.values())), claim=asked.append)
    assert asked and asked[0] >= 3 * toys.SIZE**2


def listed(path):
    return [item.source for item in list_images([str(path)])]


def test_a_sparse_member_is_refused_by_what_it_stores(tmp_path):
    (tmp_path / "a.tar").write_bytes(sparse_member("a.jpg", 500 * 2**20) + bytes(1024))
    (refused,) = listed(tmp_path / "a.tar")
    assert isinstance(refused, ImageError)
    assert refused.kind == "too_large"


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_what_unfolds_to_far_more_than_it_stores_is_refused_and_its_neighbours_are_not(
    ending, pictures, tmp_path
):
    path, good = tmp_path / f"a.{ending}", next(iter(pictures.values()))
    members = {"a.png": good, "bomb.png": bytes(80 * 2**20), "z.png": good}
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    first, bomb, last = listed(path)
    assert isinstance(bomb, ImageError)
    assert bomb.kind == "too_large"
    for each in (first, last):
        assert (each if isinstance(each, bytes) else each.read_bytes()) == good


def test_members_of_a_zip_that_share_bytes_are_refused(pictures, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", next(iter(pictures.values())))
    whole = path.read_bytes()
    at, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    tail = bytearray(whole[end:])
    tail[8:12] = (2).to_bytes(2, "little") * 2
    tail[12:16] = (2 * (end - at)).to_bytes(4, "little")
    path.write_bytes(whole[:at] + 2 * whole[at:end] + bytes(tail))
    for source in listed(path):
        assert isinstance(source, ImageError)
        assert source.kind == "too_large"


def test_honest_archives_of_flat_pictures_pass(tmp_path):
    """One colour packs best of all pictures."""
    dice = random.Random(0)
    flat = toys.Image.new("RGB", (1500, 1500), tuple(dice.randbytes(3)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        flat.save(content, "BMP")
        archive.writestr("a.bmp", content.getvalue())
    (source,) = listed(tmp_path / "a.zip")
    assert read_image(source.read_bytes()).size == (1500, 1500)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2G", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("800MB", 8 * 10**8), (" 4k ", 4000)],
)
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1e9", "2X", "9" * 400, "٣G", "nan", "1 000"])
def test_what_is_no_size_is_one_line(text):
    with pytest.raises(ConfigError, match="not a size in bytes; write 2G or 800MB"):
        bytes_of(text)


def test_the_usual_limit_is_a_part_of_what_is_free():
    assert 0 < usual_limit(1) <= usual_limit(4)


def test_room_is_given_back_when_the_picture_is_gone(pictures, tmp_path, monkeypatch):
    there: list[weakref.ref] = []
    left = []

    def noted(*args, **options):
        picture = read_image(*args, **options)
        there.append(weakref.ref(picture))
        return picture

    class Watched(Memory):
        def leave(self, number: int) -> None:
            left.append([picture() for picture in there])
            super().leave(number)

    monkeypatch.setattr("captioner.captioning.records.read_image", noted)
    items = list_images([str(archives(tmp_path, pictures)[0])])
    list(
        caption_files(
            toys.captioner(), items, how=CaptioningOptions(num_workers=1), memory=Watched(1)
        )
    )
    assert there
    assert not any(picture for each in left for picture in each)
