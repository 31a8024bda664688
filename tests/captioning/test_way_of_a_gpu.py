"""The way of images through a CUDA device, with the processor in its place.

The processor decodes where nvJPEG would, a graph is its function, and streams do nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from captioner import pipeline
from captioner.captioner import Captioner
from captioner.captioning.job import caption_to_file
from captioner.captioning.records import CaptioningOptions, Record, caption_files
from captioner.captioning.sources import Item
from captioner.encoder import nvjpeg
from captioner.errors import ConfigError
from captioner.images.plain_jpeg import Jpeg
from captioner.system import gpu

import toys
from hostile_files import flat, formats, frame, jpeg, noise, turned, ycck


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Use every part; return a list that gets the number of files decoded together."""
    decoded: list[int] = []
    decode = nvjpeg._decode

    def counted(data: list[Tensor], device: torch.device) -> list[Tensor | None]:
        decoded.append(len(data))
        return decode(data, device)

    for module in (gpu, nvjpeg, pipeline):
        monkeypatch.setattr(module, "uses", lambda part, device: True)
    monkeypatch.setattr(pipeline, "record", lambda function, batch: function)
    nvjpeg._works(torch.device("cpu"))
    monkeypatch.setattr(nvjpeg, "_decode", counted)
    return decoded


def pictures() -> dict[str, bytes]:
    broken = jpeg(noise())
    return {
        **{f"noise {seed}": toys_jpeg(seed) for seed in range(9)},
        **formats(),
        **{f"turned {number}": turned(number) for number in range(1, 9)},
        "progressive": jpeg(progressive=True),
        "CMYK": jpeg(flat((1, 2, 3, 4), "CMYK")),
        "YCCK": ycck(),
        "grey": jpeg(noise().convert("L")),
        "one colour": jpeg(flat((20, 40, 60))),
        "cut off": broken[: len(broken) // 2],
        "no tables": broken[: broken.index(b"\xff\xdb")] + broken[broken.index(b"\xff\xc0") :],
        "no pixels": frame(0, 32),
        "huge": frame(60000, 60000),
        "12 bits": frame(48, 32, precision=12),
        "empty": b"",
        "text": b"this is no picture",
    }


def toys_jpeg(seed: int) -> bytes:
    picture = noise(8).rotate(40 * seed).resize((90 + seed, 70))
    return jpeg(picture, quality=90, subsampling=2)


def caption(captioner: Captioner, batch_size: int = 7, **how: bool) -> list[Record]:
    items = [Item(name, data) for name, data in pictures().items()]
    options = CaptioningOptions(batch_size=batch_size, num_workers=2, **how)
    return list(caption_files(captioner, items, how=options))


def alike(found: list[Record], wanted: list[Record]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.file_name, ours.status) == (theirs.file_name, theirs.status)
        assert (ours.kind, ours.error) == (theirs.kind, theirs.error)
        if not theirs.error:
            assert ours.captions[0].score == pytest.approx(theirs.captions[0].score, abs=0.01)
    same = [a.caption == b.caption for a, b in zip(found, wanted, strict=True)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_captions_and_errors_are_those_of_pillow(way, batch_size) -> None:
    captioner = toys.captioner()
    with pytest.MonkeyPatch.context() as patch:
        for module in (gpu, nvjpeg, pipeline):
            patch.setattr(module, "uses", lambda part, device: False)
        wanted = caption(captioner, batch_size)
    assert not way
    found = caption(captioner, batch_size)
    assert sum(way) >= 14
    alike(found, wanted)
    assert {record.file_name: record.status for record in found}["one colour"] == "blank"
    errors = {record.file_name for record in found if record.error}
    assert errors == {"cut off", "no tables", "no pixels", "huge", "12 bits", "empty", "text"}


def test_maps_get_the_pixels_that_the_cnn_sees(way) -> None:
    captioner = toys.captioner(toys.encoder(grid=2), attention="spatial")
    found = {record.file_name: record for record in caption(captioner, maps=True)}
    record = found["noise 3"]
    assert record.pixels is not None
    assert record.pixels.shape == (3, 2 * toys.SIZE, 2 * toys.SIZE)
    assert record.visible == pytest.approx(70 / 93, abs=0.02)
    assert found["cut off"].pixels is None


def test_a_limit_of_pixels_holds(way) -> None:
    captioner = toys.captioner()
    items = [Item("small", toys_jpeg(0)), Item("large", jpeg(noise(300)))]
    small, large = caption_files(captioner, items, how=CaptioningOptions(max_pixels=10_000))
    assert small.status == "ok"
    assert (large.kind, large.error) == (
        "too_large",
        "300 x 300 pixels, more than the limit of 10,000",
    )


def test_short_memory_halves_and_goes_on(way, monkeypatch) -> None:
    """The memory of a device that holds three images, and the features of two in a search."""
    captioner = toys.captioner()
    wanted = caption(captioner, 16)
    see, search = captioner.encoder.see, captioner.search_each
    sizes: list[tuple[str, int]] = []

    def limited(name: str, most: int, function):
        def call(batch: Tensor, **options: object):
            sizes.append((name, len(batch)))
            if len(batch) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return function(batch, **options)

        return call

    monkeypatch.setattr(captioner.encoder, "see", limited("see", 3, see))
    monkeypatch.setattr(captioner, "search_each", limited("search", 2, search))
    alike(caption(captioner, 16), wanted)
    assert max(size for name, size in sizes if name == "see") == 4  # the processor takes so many
    assert max(size for name, size in sizes if name == "search") > 8
    assert all(size <= 2 for _, size in sizes[-10:])


def test_a_job_keeps_to_its_decoder(way, tmp_path: Path, monkeypatch) -> None:
    captioner = toys.captioner()
    items = [Item(name, data) for name, data in pictures().items()]
    options, how = toys.options(captioner, batch_size=5)
    done = []

    def run(output: Path, stop: bool = False):
        def tell(record: Record) -> None:
            done.append(record.file_name)
            if stop and len(done) == 10:
                raise KeyboardInterrupt

        return caption_to_file(
            lambda: captioner, items, output, options, how, model="toy", tell=tell
        )

    run(tmp_path / "whole.jsonl")
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.jsonl", stop=True)
    run(tmp_path / "broken.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "broken.jsonl").read_bytes() == whole

    done.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other.jsonl", stop=True)
    monkeypatch.setattr(nvjpeg, "uses", lambda part, device: False)
    with pytest.raises(ConfigError, match="arithmetic was fp32 on cpu, nvjpeg, is fp32 on cpu"):
        run(tmp_path / "other.jsonl")


def test_captions_come_before_what_the_list_of_images_raises(way) -> None:
    captioner = toys.captioner()

    def items():
        for seed in range(6):
            yield Item(f"noise {seed}", toys_jpeg(seed))
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        for record in caption_files(captioner, items(), how=CaptioningOptions(batch_size=2)):
            found.append(record)
    assert [record.status for record in found] == ["ok"] * 6


def test_files_wait_as_files(way) -> None:
    from captioner.captioning.records import ItemReader

    reader = ItemReader(toys.encoder(), CaptioningOptions())
    _, left = reader.read(Item("a", toys_jpeg(0)), reader.memory.join())
    assert isinstance(left, Jpeg)
    assert reader.memory.used == 0
