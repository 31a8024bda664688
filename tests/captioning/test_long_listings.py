"""A listing of any length: nothing is read far ahead, and memory does not grow with the names."""

import itertools
import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from captioner.captioning import records
from captioner.captioning.failures import failure_list
from captioner.captioning.job import JobOptions, caption_to_file
from captioner.captioning.records import Record
from captioner.captioning.sources import Item
from captioner.config import DecodingConfig
from captioner.errors import ImageError
from captioner.system.seen import Seen
from captioner.system.workers import AHEAD
from captioner.text import Caption

NAMES, BATCH = 100_000, 256
CAPTIONS = [Caption("a dog", -1.5, -0.5, True)]


class Stub:
    """Takes the place of a captioner: reads and captions in no time."""

    device = torch.device("cpu")
    encoder = SimpleNamespace(arithmetic="stub", device=device)

    def settings(self, **_):
        return DecodingConfig()

    def captions_of(self, batches, read, *_, **__):
        waiting = []
        for batch in itertools.chain(batches, [None] * AHEAD):
            if batch is not None:
                waiting.append([read(entry) for entry in batch])
            if waiting and (batch is None or len(waiting) > AHEAD):
                yield [(image, CAPTIONS if pixels else None) for image, pixels in waiting.pop(0)]


@pytest.fixture
def pulled(monkeypatch) -> list[int]:
    """Let reading take no time; count the names that a job has pulled, and has captioned."""

    def read(self, item, ticket, is_wanted):
        self.memory.leave(ticket)
        digest = item.name.encode()
        return Record(item.name, digest=digest), is_wanted(digest)

    monkeypatch.setattr(records.ItemReader, "read", read)
    return [0, 0, 0]


class EnoughError(Exception):
    """Ends a job in the middle."""


@pytest.mark.parametrize("known", [False, True], ids=["new", "resumed"])
def test_a_job_pulls_no_more_names_than_its_batches_ahead(known, tmp_path, pulled):
    def items(names=NAMES):
        for number in range(names):
            pulled[0] += 1
            yield Item(f"photos/{number:07}.jpg", ImageError("stub", kind="missing"))

    def tell(record):
        pulled[1] += 1
        pulled[2] = max(pulled[2], pulled[0] - pulled[1])
        if pulled[1] == 8 * BATCH:
            raise EnoughError

    def run(listing):
        how = JobOptions(batch_size=BATCH, progress="none")
        output = tmp_path / "out.jsonl"
        return caption_to_file(Stub, listing, output, DecodingConfig(), how, model="s", tell=tell)

    if known:
        run(items(3 * BATCH))
        pulled[:] = [0, 3 * BATCH, 0]  # they are passed without being told again
    with pytest.raises(EnoughError):
        run(items())
    assert 0 < pulled[2] <= (AHEAD + 2) * BATCH  # a list of all names would be pulled ahead


def test_the_command_passes_names_on_one_by_one(monkeypatch):
    from captioner.cli import caption

    taken = []

    def names():
        for number in range(NAMES):
            taken.append(number)
            yield f"{number}.jpg\n"

    monkeypatch.setattr("sys.stdin", names())
    how = SimpleNamespace(recursive=False, image_column=None, repeats=False)
    items = caption._items(("-",), how, None)
    assert [item.name for item in itertools.islice(items, 5)] == [f"{n}.jpg" for n in range(5)]
    assert len(taken) <= 6


def test_what_came_before_is_known_and_nothing_else():
    seen = Seen()
    names = [f"photos/{number}.jpg" for number in range(20_000)] + ["\udcff", "\ud83d", ""]
    assert all(name not in seen and seen.add(name) for name in names)
    assert all(name in seen and not seen.add(name) for name in names)
    assert seen.add("photos/20000.jpg")


def test_a_match_across_two_digests_is_none(monkeypatch):
    """The bytes of a text may lie in a bucket by chance, between two digests."""
    digests = iter([b"bb" + b"a" * 13 + b"b", b"bb" + b"b" * 14, b"bb" + b"a" * 12 + b"bb"])

    class Fake:
        def __init__(self, *_, **__):
            pass

        def digest(self):
            return next(digests)

    monkeypatch.setattr("captioner.system.seen.hashlib.blake2b", Fake)
    seen = Seen()
    assert [seen.add(name) for name in "xyz"] == [True, True, True]


def test_what_came_before_takes_a_few_bytes():
    tracemalloc.start()
    try:
        seen = Seen()
        for number in range(50_000):
            seen.add(f"a/long/folder/of/photographs/photo-{number:09}.jpg")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 50_000 * 14 * 1.6 + 65_536 * 170  # and the buckets themselves


def test_a_list_of_failures_is_not_held_in_memory(tmp_path):
    (tmp_path / "errors.jsonl").write_text(
        '{"output": "other", "path": "x", "kind": "missing", "message": "gone"}\n'
    )
    for expected in (True, False):
        tracemalloc.start()
        try:
            with failure_list(tmp_path / "out.jsonl") as add:
                for number in range(10_000):
                    assert add(f"photo-{number:09}.jpg", "missing", "x" * 300) is expected
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2.5e6  # the file has 4 MB, the digests of its lines and their buckets 1.5
        lines = (tmp_path / "errors.jsonl").read_text().splitlines()
        assert len(lines) == 10_001 and '"other"' in lines[-1]
