"""The way of images through a CUDA device: nvJPEG, graphs, streams, short memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioner.captioning.records import CaptioningOptions, Record, caption_files
from captioner.captioning.sources import Item
from captioner.encoder.nvjpeg import Arrivals, Arrived, decode_jpegs, decodes_there
from captioner.images.decode import read_image
from captioner.images.plain_jpeg import Jpeg, plain_jpeg
from captioner.system.gpu import SWITCH, SideStream, use
from captioner.system.graphs import Graphed, record

import toys
from hostile_files import flat, jpeg, turned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALL = "nvjpeg,graphs,streams"


def photo(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    """A smooth picture as a JPEG, with half as many colours as most cameras write."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return jpeg(picture, **{"quality": 90, "subsampling": 2} | options)


def truncated(data: bytes) -> bytes:
    """Cut a file in the middle and give it an end: Pillow reads it, nvJPEG may not."""
    return data[: len(data) // 2] + b"\xff\xd9"


def of_pillow(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(read_image(data))).permute(2, 0, 1)


def needs_nvjpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, ALL)
    if not decodes_there(toys.encoder().to_device(torch.device("cuda"))):
        pytest.skip("this torchvision has no nvJPEG")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_nvjpeg_decodes_as_pillow_within_two(monkeypatch, subsampling: int) -> None:
    needs_nvjpeg(monkeypatch)
    files = [photo(640, 480, seed, subsampling=subsampling) for seed in range(8)]
    files += [photo(101, 67, 9, subsampling=subsampling), jpeg(flat(9, "L"))]
    for data, found in zip(files, decode_jpegs(files, torch.device("cuda")), strict=True):
        assert found is not None
        assert found.is_cuda
        apart = (found.cpu().int() - of_pillow(data).int()).abs().float()
        assert apart.mean() < 2


def test_resized_pixels_are_those_of_the_processor_within_two(monkeypatch) -> None:
    needs_nvjpeg(monkeypatch)
    encoder = toys.encoder().to_device(torch.device("cuda"))
    files = [photo(640, 480, seed) for seed in range(20)]
    jpegs = [plain_jpeg(data) for data in files]
    found = Arrivals(encoder, lambda file: pytest.fail("left to Pillow")).bring(jpegs)
    for data, each in zip(files, found, strict=True):
        assert isinstance(each, Arrived)
        wanted = encoder.preprocess.pixels(read_image(data))
        assert (each.pixels.cpu().int() - wanted.int()).abs().float().mean() < 2


def test_a_broken_file_costs_no_other_file_its_pixels(monkeypatch) -> None:
    needs_nvjpeg(monkeypatch)
    encoder = toys.encoder().to_device(torch.device("cuda"))
    data = photo(64, 48)
    no_tables = data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]
    files = [photo(64, 48, seed) for seed in range(5)]
    batch = [Jpeg(each, 64, 48) for each in (*files[:2], no_tables, *files[2:])]
    read: list[bytes] = []

    def by_pillow(file: Jpeg) -> Tensor:
        read.append(file.data)
        return encoder.preprocess.pixels(read_image(photo(64, 48)))

    found = Arrivals(encoder, by_pillow).bring(batch)
    assert read == [no_tables]
    alone = Arrivals(encoder, by_pillow).bring([batch[0]])[0]
    assert isinstance(alone, Arrived)
    assert isinstance(found[0], Arrived)
    assert found[0].pixels.equal(alone.pixels)


def test_a_graph_computes_what_the_network_computes() -> None:
    encoder = toys.encoder().to_device(torch.device("cuda"))
    graphed = Graphed(encoder.see, record)
    for rows in (16, 16, 16, 11, 16, 3):
        pixels = torch.randint(256, (rows, 3, toys.SIZE, toys.SIZE), dtype=torch.uint8).cuda()
        torch.testing.assert_close(graphed(pixels), encoder.see(pixels), atol=1e-3, rtol=1e-3)
    replay = graphed._known[torch.Size((16, 3, toys.SIZE, toys.SIZE))]
    assert replay is not None
    assert replay != encoder.see  # it was recorded


def test_a_side_stream_hands_its_tensors_over() -> None:
    side = SideStream(torch.device("cuda"))
    large = torch.rand(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        with side.current():
            made = (large @ large).sum()
            mark = side.mark()
        use([made], mark)
        assert made.item() == pytest.approx(made.item())
        assert made.item() > 0


def caption(device: str, files: dict[str, bytes], **how: object) -> list[Record]:
    captioner = toys.captioner().to(device)
    items = [Item(name, data) for name, data in files.items()]
    options = CaptioningOptions(batch_size=16, **how)  # type: ignore[arg-type]
    wish = captioner.settings(precision="fp32")
    return list(caption_files(captioner, items, wish, options))


@pytest.mark.parametrize("parts", ["", "streams", "graphs", "nvjpeg", ALL])
def test_captions_are_those_of_the_processor(monkeypatch, parts: str) -> None:
    monkeypatch.setenv(SWITCH, parts)
    files = {f"photo {seed}": photo(90, 70, seed) for seed in range(70)}
    files |= {f"turned {number}": turned(number) for number in range(1, 9)}
    files |= {"cut": photo(90, 70)[:-40], "ended": truncated(photo(90, 70)), "text": b"text"}
    files |= {"one colour": jpeg(flat((20, 40, 60)))}
    with io.BytesIO() as file:
        Image.new("RGB", (50, 40), "red").save(file, "PNG")
        files["png"] = file.getvalue()
    wanted, found = caption("cpu", files), caption("cuda", files)
    assert [(r.file_name, r.status, r.error) for r in found] == [
        (r.file_name, r.status, r.error) for r in wanted
    ]
    same = [ours.caption == theirs.caption for ours, theirs in zip(found, wanted, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    assert [record.caption for record in caption("cuda", files)] == [r.caption for r in found]


def test_short_memory_halves_and_goes_on(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, ALL)
    files = {f"photo {seed}": photo(90, 70, seed) for seed in range(64)}
    wanted = caption("cuda", files)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() + 48 * 2**20
    try:
        torch.cuda.set_per_process_memory_fraction(held / total)
        found = caption("cuda", files)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [record.status for record in found] == [record.status for record in wanted]
