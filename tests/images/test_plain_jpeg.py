"""Which JPEG files a decoder in hardware may read, and that Pillow reads the others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from captioner.images import plain_jpeg as module
from captioner.images.decode import read_image
from captioner.images.plain_jpeg import plain_jpeg

from hostile_files import (
    blocks,
    flat,
    formats,
    frame,
    jpeg,
    noise,
    segment,
    turned,
    without_adobe,
    ycck,
)

XMP = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation"
EXIF_UPRIGHT = turned(1)


def exif(data: bytes) -> bytes:
    """Return the body of the EXIF segment of a JPEG."""
    start = data.index(b"Exif\0\0")
    return data[start : start - 2 + int.from_bytes(data[start - 2 : start], "big")]


PLAIN = {
    "colours": jpeg(),
    "quality 30": jpeg(noise(), quality=30),
    "4:2:2": jpeg(noise(), subsampling=1),
    "4:2:0": jpeg(noise(), subsampling=2),
    "grey": jpeg(flat(7, "L")),
    "one pixel": jpeg(flat((1, 2, 3), size=(1, 1))),
    "restarts": jpeg(noise(), restart_marker_blocks=1),
    "EXIF, upright": EXIF_UPRIGHT,
    "XMP, upright": segment(0xE1, XMP + b'="1"'),
    "comment": segment(0xFE, b"\xff\xd9 no end"),
    "thumbnail": segment(0xE5, jpeg()),
    "something behind it": jpeg() + b"tail",
    "optimised": jpeg(noise(), optimize=True),
    "16 times as wide": jpeg(flat((1, 2, 3), size=(32, 2))),
}
ODD = {
    **{name: data for name, data in formats().items() if name != "JPEG"},
    "nothing": b"",
    "start only": b"\xff\xd8",
    "text": b"\xff\xd8 text",
    "progressive": jpeg(progressive=True),
    "CMYK": jpeg(flat((1, 2, 3, 4), "CMYK")),
    "CMYK without Adobe": without_adobe(jpeg(flat((1, 2, 3, 4), "CMYK"))),
    "YCCK": ycck(),
    "RGB": jpeg(keep_rgb=True),
    "12 bits": frame(48, 32, precision=12),
    "extended": frame(48, 32, marker=0xC1),
    "arithmetic": frame(48, 32, marker=0xC9),
    "lossless": frame(48, 32, marker=0xC3),
    "no height": frame(48, 0),
    "no width": frame(0, 32),
    "too many pixels": frame(5000, 5000),
    "too wide": jpeg(flat((1, 2, 3), size=(33, 2))),
    "cut off": jpeg(noise())[:-2],
    "cut off in the header": jpeg(noise())[:100],
    "two EXIF blocks": segment(0xE1, exif(EXIF_UPRIGHT), EXIF_UPRIGHT),
    "broken EXIF": segment(0xE1, b"Exif\0\0II*\0\x00\x00\x00\x7f"),
    "not TIFF in EXIF": segment(0xE1, b"Exif\0\0II"),
    "XMP, turned": segment(0xE1, XMP + b">6<"),
    **{f"turned {number}": turned(number) for number in (0, 2, 3, 4, 5, 6, 7, 8, 9)},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_found_with_their_size(name: str) -> None:
    found = plain_jpeg(PLAIN[name])
    assert found is not None
    assert (found.width, found.height) == read_image(PLAIN[name]).size
    assert found.data is PLAIN[name]


@pytest.mark.parametrize("name", ODD)
def test_other_files_are_left_to_pillow(name: str) -> None:
    assert plain_jpeg(ODD[name]) is None


def test_a_limit_of_pixels_holds() -> None:
    side = blocks().width
    size = side * blocks().height
    assert plain_jpeg(jpeg(), size)
    assert plain_jpeg(jpeg(), size - 1) is None


def test_a_large_file_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg()
    monkeypatch.setattr(module, "MAX_BYTES", len(data))
    assert plain_jpeg(data)
    assert plain_jpeg(data + b"\0") is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_cut_and_no_changed_byte_brings_a_file_there_turned_or_of_another_size() -> None:
    """The size is that of Pillow, whatever stands in the header."""
    data = turned(1)
    start = data.index(b"\xff\xda")
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(3000):
        spoilt = bytearray(data)
        spoilt[rng.integers(2, start + 12)] = rng.integers(256)
        found = plain_jpeg(bytes(spoilt))
        if found is None:
            continue
        taken += 1
        with Image.open(io.BytesIO(spoilt)) as image:
            assert (image.format, image.size) == ("JPEG", (found.width, found.height))
            assert image.mode in ("RGB", "L")
            assert image.getexif().get(0x0112, 1) == 1
    assert taken > 1000
    assert not any(plain_jpeg(data[:end]) for end in range(len(data) - 1))
