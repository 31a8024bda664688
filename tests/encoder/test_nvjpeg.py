"""JPEG files decoded on the device: here the processor decodes in the place of nvJPEG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captioner.encoder import nvjpeg
from captioner.encoder.nvjpeg import Arrivals, Arrived, arithmetic_of_files, decode_jpegs
from captioner.encoder.preprocess import Preprocess
from captioner.errors import ImageError
from captioner.images.decode import read_image
from captioner.images.plain_jpeg import Jpeg, plain_jpeg
from captioner.system import gpu

import toys
from hostile_files import flat, jpeg

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def photo(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    """A smooth picture as a JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return jpeg(picture, **{"quality": 90, "subsampling": 2} | options)


def broken() -> bytes:
    """A file with a good header that no decoder reads: its tables are missing."""
    data = photo(60, 40)
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


def of_pillow(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(read_image(data))).permute(2, 0, 1)


@pytest.mark.parametrize(
    "data",
    [photo(640, 480), photo(101, 67, 1), photo(64, 64, 2, subsampling=0), jpeg(flat(9, "L"))],
    ids=["640 x 480", "odd", "4:4:4", "grey"],
)
def test_decoded_pixels_are_those_of_pillow(data: bytes) -> None:
    [found] = decode_jpegs([data], CPU)
    assert found is not None
    assert (found.dtype, found.device) == (torch.uint8, CPU)
    assert (found.int() - of_pillow(data).int()).abs().max() <= 2


def test_a_broken_file_costs_no_other_file_its_pixels() -> None:
    good = [photo(60, 40, seed) for seed in range(6)]
    files = [*good[:2], broken(), *good[2:5], broken(), good[5]]
    found = decode_jpegs(files, CPU)
    assert [place for place, each in enumerate(found) if each is None] == [2, 6]
    rest = [each for each in found if each is not None]
    for ours, [alone] in zip(rest, (decode_jpegs([file], CPU) for file in good), strict=True):
        assert alone is not None
        assert ours.equal(alone)


def test_short_memory_halves_the_files_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = nvjpeg._decode

    def short(data: list[Tensor], device: torch.device) -> list[Tensor | None]:
        sizes.append(len(data))
        if len(data) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(data, device)

    files = [photo(60, 40, seed) for seed in range(8)]
    wanted = decode_jpegs(files, CPU)
    monkeypatch.setattr(nvjpeg, "_decode", short)
    found = decode_jpegs(files, CPU)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (100, 90), (64, 80), (1000, 70)])
def test_resizing_on_the_device_differs_by_one(size, filter, squash) -> None:
    preprocess = Preprocess(80, 64, filter, squash=squash)
    data = photo(*size)
    picture = read_image(data)
    wanted = preprocess.pixels(picture)
    found = preprocess.shrunk(of_pillow(data))
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.is_contiguous()
    apart = (found.int() - wanted.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.3


def test_filters_without_a_kernel_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvjpeg, "uses", lambda part, device: True)
    encoder = toys.encoder()
    assert nvjpeg.decodes_there(encoder)
    object.__setattr__(encoder.spec.preprocess, "interpolation", "lanczos")
    assert not nvjpeg.decodes_there(encoder)


def test_a_batch_arrives_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = toys.encoder()
    preprocess = encoder.preprocess
    sizes: list[int] = []
    decode = nvjpeg._decode
    monkeypatch.setattr(
        nvjpeg, "_decode", lambda data, device: sizes.append(len(data)) or decode(data, device)
    )
    monkeypatch.setattr(nvjpeg, "TOGETHER", 2 * 60 * 40)

    def read(file: Jpeg) -> Tensor:
        return preprocess.pixels(read_image(file.data))

    files = [plain_jpeg(data) for data in (photo(60, 40), photo(60, 40, 1), jpeg(flat((9, 8, 7))))]
    pixels = torch.randint(256, (2, 3, toys.SIZE, toys.SIZE), dtype=torch.uint8)
    lost = Jpeg(broken(), 60, 40)
    batch = [pixels[0], files[0], None, files[1], lost, pixels[1], files[2], files[0]]
    found = Arrivals(encoder, read).bring(batch)
    assert sizes == [2, 2, 1, 1, 1]  # the second pair holds the broken file
    assert found[2] is None
    assert isinstance(found[4], ImageError)
    good = {place: each for place, each in enumerate(found) if isinstance(each, Arrived)}
    assert good.keys() == {0, 1, 3, 5, 6, 7}
    assert good[0].pixels.equal(pixels[0])
    assert good[5].pixels.equal(pixels[1])
    assert [place for place in good if good[place].blank] == [6]
    for place, file in ((1, files[0]), (3, files[1]), (6, files[2]), (7, files[0])):
        assert file is not None
        assert (good[place].pixels.int() - read(file).int()).abs().max() <= 2


def test_short_memory_for_resizing_halves_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device holds the resized pixels of three files."""
    encoder = toys.encoder()
    files = [plain_jpeg(photo(60, 40, seed)) for seed in range(8)]
    arrivals = Arrivals(encoder, lambda file: pytest.fail("left to Pillow"))
    wanted = arrivals.bring(files)
    are_blank, sizes = Preprocess.are_blank, list[int]()

    def short(pixels: Tensor) -> list[bool]:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return are_blank(pixels)

    monkeypatch.setattr(Preprocess, "are_blank", staticmethod(short))
    found = arrivals.bring(files)
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    for ours, theirs in zip(found, wanted, strict=True):
        assert isinstance(ours, Arrived)
        assert isinstance(theirs, Arrived)
        assert ours.pixels.equal(theirs.pixels)


def test_features_of_another_program_are_copied() -> None:
    rows = [torch.rand(5).half() for _ in range(3)]
    found = Arrivals(toys.encoder(), lambda file: rows[0]).bring(rows)
    assert [each.pixels.equal(row) for each, row in zip(found, rows, strict=True)] == [True] * 3


def test_the_arithmetic_says_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = toys.encoder()
    assert arithmetic_of_files(encoder) == "fp32 on cpu"
    monkeypatch.setattr(nvjpeg, "uses", lambda part, device: part == "nvjpeg")
    assert arithmetic_of_files(encoder) == "fp32 on cpu, nvjpeg"


def test_without_a_decoder_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(data: list[Tensor], device: torch.device) -> list[Tensor | None]:
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_jpegs_cuda'")

    monkeypatch.setattr(nvjpeg, "uses", lambda part, device: True)
    monkeypatch.setattr(nvjpeg, "_decode", gone)
    nvjpeg._works.cache_clear()
    assert arithmetic_of_files(toys.encoder()) == "fp32 on cpu"
    nvjpeg._works.cache_clear()


@pytest.mark.parametrize(
    ("switch", "capability", "wanted"),
    [
        (None, (9, 0), {"nvjpeg", "graphs", "streams"}),
        (None, (8, 6), {"graphs", "streams"}),  # decodes in software, slower than many threads
        ("", (9, 0), set()),
        ("nvjpeg,streams", (7, 5), {"nvjpeg", "streams"}),
    ],
)
def test_the_parts_that_are_used(monkeypatch, switch, capability, wanted) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.delenv(gpu.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(gpu.SWITCH, switch)
    parts = ("nvjpeg", "graphs", "streams")
    assert {part for part in parts if gpu.uses(part, CUDA)} == wanted
    for device in ("cpu", "mps"):
        assert not any(gpu.uses(part, torch.device(device)) for part in parts)
