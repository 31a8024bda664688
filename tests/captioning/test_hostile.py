"""Whatever lies in a folder costs one record, and the pictures beside it lose nothing."""

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from captioner.captioning.records import CaptioningOptions, caption_files
from captioner.captioning.sources import Item
from captioner.errors import IMAGE_ERROR_KINDS, ImageError
from captioner.images.decode import read_image

import toys
from hostile import make_cases
from hostile_files import BLOCK, UPRIGHT
from hostile_tars import make_tars

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch.nn"),
    # As `captioner.images.decode` has it, outside of tests.
    pytest.mark.filterwarnings("ignore:::PIL"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def captioner():
    return toys.captioner()


def item(path):
    """Return a file as `caption_files` takes it."""
    return Item(os.fsdecode(path), path)


def outcome(path):
    try:
        read_image(path)
    except ImageError as error:
        return error.kind
    return "ok"


def test_there_are_many_and_each_is_another(cases):
    assert len(cases) >= 60
    assert len({case.name for case in cases}) == len(cases)
    assert len({case.path for case in cases}) == len(cases)
    kinds = Counter(kind for case in cases for kind in case.expected)
    others = {"place_taken", "not_a_number", "worker_died"}
    assert kinds.keys() == {"ok", *IMAGE_ERROR_KINDS} - others
    good = [case for case in cases if case.expected == ("ok",)]
    assert len(good) >= 60
    assert len(cases) - len(good) >= 60


def test_they_are_the_same_every_time(cases, tmp_path):
    again = make_cases(tmp_path)
    assert [case.name for case in again] == [case.name for case in cases]
    for one, other in zip(cases, again, strict=True):
        assert one.path.name == other.path.name
        if outcome(one.path) in ("ok", "damaged", "not_an_image"):
            assert one.path.read_bytes() == other.path.read_bytes(), one.name


def test_each_gives_a_picture_or_an_error_of_the_right_kind(cases):
    came = {case.name: outcome(case.path) for case in cases}
    assert {c.name: came[c.name] for c in cases if came[c.name] not in c.expected} == {}


def test_the_good_ones_are_upright_and_of_the_right_colours(cases):
    checked = 0
    for case in cases:
        if case.layout is None or outcome(case.path) != "ok":
            continue
        pixels = np.asarray(read_image(case.path))
        rows, columns, _ = case.layout.shape
        if case.layout.shape == UPRIGHT.shape:
            assert pixels.shape[0] * columns == pixels.shape[1] * rows, case.name
        high, wide = pixels.shape[0] / rows, pixels.shape[1] / columns
        seen = pixels[
            np.ix_(
                ((np.arange(rows) + 0.5) * high).astype(int),
                ((np.arange(columns) + 0.5) * wide).astype(int),
            )
        ]
        difference = np.abs(seen.astype(int) - case.layout)
        assert difference.max() <= case.tolerance, (case.name, seen.tolist())
        checked += 1
    assert checked >= 60


def test_all_in_one_job_are_one_record_each(cases, captioner):
    items = [item(case.path) for case in cases]
    records = list(
        caption_files(captioner, items, how=CaptioningOptions(batch_size=8, num_workers=2))
    )
    assert [record.file_name for record in records] == [str(case.path) for case in cases]
    for case, record in zip(cases, records, strict=True):
        allowed = {"ok" if kind == "ok" else "error" for kind in case.expected}
        status = "ok" if record.status == "blank" else record.status
        assert status in allowed, (case.name, record.error)
        if record.status == "error":
            assert record.captions == ()
            assert len(record.error.splitlines()) == 1
            assert record.error.isprintable()
            assert str(case.path) not in record.error
        else:
            # Good pictures among bad ones get what they get alone.
            (alone,) = caption_files(
                captioner, [item(case.path)], how=CaptioningOptions(num_workers=1)
            )
            assert record.caption == alone.caption, case.name
            assert record.captions[0].log_prob == pytest.approx(alone.captions[0].log_prob, 1e-4)


def test_nothing_is_left_behind_or_run(cases):
    folder = cases[0].path.parent
    assert not (folder / "x").exists()
    assert not Path("x").exists()


def test_archives_name_what_should_come_of_their_members(tmp_path):
    archives = make_tars(tmp_path)
    assert len({case.name for case in archives}) == len(archives) >= 7
    for case in archives:
        assert case.path.parent == tmp_path
        assert case.members
        assert {result for _, result in case.members} <= {"ok", *IMAGE_ERROR_KINDS}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(c.path.name for c in archives)


def test_an_error_keeps_its_kind_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("empty file", kind="empty")))
    assert (str(error), error.kind) == ("empty file", "empty")
    assert ImageError("something").kind == "damaged"


def test_a_limit_above_pillows_own(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "large.png"
    Image.new("1", (BLOCK, BLOCK)).save(path)  # 256 pixels: more than twice Pillow's limit
    with pytest.raises(ImageError, match=r"more than the limit of 50|more pixels than") as error:
        read_image(path, max_pixels=50)
    assert error.value.kind == "too_large"
    assert Image.MAX_IMAGE_PIXELS == 100
    assert read_image(path, max_pixels=300).size == (BLOCK, BLOCK)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file_is_unreadable(cases):
    (locked,) = [case for case in cases if case.name == "locked"]
    assert outcome(locked.path) == "unreadable"
