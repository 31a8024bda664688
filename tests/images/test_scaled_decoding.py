"""A JPEG decoded at a fraction of its size gives the CNN what the whole would have given."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.encoder.preprocess import Preprocess
from captioner.images.decode import read_image

from hostile_files import STORED, UPRIGHT, flat, jpeg, turned

SHARED = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[3] / "shared"))


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Draw what photographs are like to a decoder: 1/f noise and hard edges, in full detail."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = 1
    spectrum = random.standard_normal((3, *frequency.shape, 2)).view(complex)[..., 0] / frequency
    waves = np.fft.irfft2(spectrum, (height, width))
    waves /= waves.std()
    pixels = 128 + 50 * (0.8 * waves[:1] + 0.6 * waves)
    for _ in range(30):
        x, y = random.integers(width), random.integers(height)
        wide, high = random.integers(10, width // 3), random.integers(10, height // 3)
        pixels[:, y : y + high, x : x + wide] += random.uniform(-60, 60, (3, 1, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def difference(data: bytes, preprocess: Preprocess) -> float:
    """Return the mean absolute difference of the final pixels, of 255."""
    scaled = read_image(data, at_least=preprocess.enough)
    whole = read_image(data)
    assert 2 * scaled.width <= whole.width + 1
    pixels = [preprocess.pixels(image).float() for image in (scaled, whole)]
    return (pixels[0] - pixels[1]).abs().mean().item()


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100), st.sampled_from("LRC"))
def test_enough_always_remains_and_the_fraction_is_exact(
    width: int, height: int, at_least: int, mode: str
) -> None:
    mode = {"L": "L", "R": "RGB", "C": "CMYK"}[mode]
    image = read_image(jpeg(flat(0, mode, (width, height)), quality=75), at_least=at_least)
    assert image.mode == "RGB"
    scale = width // image.width
    assert (image.width * scale, image.height * scale) == (width, height)
    assert scale in (1, 2, 4, 8)
    assert scale == 1 or min(image.size) >= at_least
    twice = 2 * scale  # would have been less than enough, or inexact
    assert twice > 8 or width % twice or height % twice or min(width, height) < twice * at_least


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_all_the_same(orientation: int) -> None:
    image = read_image(turned(orientation), at_least=8)
    assert image.size == (12, 8)
    np.testing.assert_allclose(np.asarray(image)[2::4, 2::4], UPRIGHT, atol=6)
    assert len(STORED) == 8


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 2}, {"quality": 40}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_kinds_of_jpeg(mode: str, options: dict[str, Any]) -> None:
    whole = photograph(0, 1200, 1100).convert(mode)
    assert difference(jpeg(whole, **{"quality": 90} | options), Preprocess()) < 1.5


@settings(max_examples=10, phases=[Phase.generate])  # a smaller one tells no more
@given(st.integers(0, 2**32), st.integers(250, 400), st.integers(250, 400), st.integers(100, 125))
def test_the_final_pixels_hardly_differ(seed: int, width: int, height: int, side: int) -> None:
    data = jpeg(photograph(seed, 2 * width, 2 * height), quality=90)
    assert difference(data, Preprocess(side, side)) < 1.5


def test_odd_sides_are_not_stretched() -> None:
    data = jpeg(photograph(0, 1366, 1025), quality=90)
    assert read_image(data, at_least=512).size == (1366, 1025)


def test_half_as_much_would_not_do() -> None:
    data = jpeg(photograph(0, 600, 600), quality=90)
    preprocess = Preprocess(256, 224)
    near, whole = (
        preprocess.pixels(read_image(data, at_least=n)).float()
        for n in (preprocess.resize_size, None)
    )
    assert (near - whole).abs().mean() > 2


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_other_formats_are_decoded_whole(format: str) -> None:
    buffer = io.BytesIO()
    flat((9, 9, 9), size=(64, 48)).save(buffer, format)
    assert read_image(buffer.getvalue(), at_least=4).size == (64, 48)


def test_a_small_jpeg_is_the_same_to_the_last_bit() -> None:
    data = jpeg(photograph(1, 500, 375), quality=90)
    images = (read_image(data, at_least=Preprocess().enough), read_image(data))
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.data
def test_photographs() -> None:
    found = sorted((SHARED / "flickr8k" / "images").glob("*.jpg"))[:100]
    if not found:
        pytest.skip("no shared/flickr8k beside the checkout; set CAPTIONER_SHARED")
    for start in range(0, 100, 25):  # 25 side by side: a large picture with all its detail
        large = Image.new("RGB", (1120, 1120))
        for i, path in enumerate(found[start : start + 25]):
            large.paste(read_image(path).resize((224, 224)), (i % 5 * 224, i // 5 * 224))
        assert difference(jpeg(large, quality=90, subsampling=2), Preprocess()) < 1
    for path in found[:5]:
        large = read_image(path).resize((1120, 1120), Image.Resampling.BICUBIC)
        assert difference(jpeg(large, quality=90, subsampling=2), Preprocess()) < 1
