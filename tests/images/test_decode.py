"""Every odd kind of picture comes out RGB, upright and right; the rest is one clear ImageError."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from captioner.errors import ImageError
from captioner.images import decode as images
from captioner.images.decode import MAX_PIXELS, SUFFIXES, read_image, to_rgb

from hostile_files import BLACK, BLUE, GREEN, ORIENTATION, RED, STORED, UPRIGHT, WHITE


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def array(data: bytes | Path) -> NDArray[np.uint8]:
    image = read_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def flat(colour: tuple[int, ...] | int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def refusal(source: bytes | Path, **options: Any) -> str:
    with pytest.raises(ImageError) as error:
        read_image(source, **options)
    message = str(error.value)
    assert message
    assert "\n" not in message
    assert "Error" not in message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_comes_out_upright(format: str, orientation: int) -> None:
    scale = 16  # JPEG needs whole blocks to keep colours apart
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT)).repeat(scale, 0).repeat(scale, 1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = encode(Image.fromarray(stored), format, exif=exif, **options.get(format, {}))
    pixels = array(data)[scale // 2 :: scale, scale // 2 :: scale]
    np.testing.assert_allclose(pixels, UPRIGHT, atol=6 if format == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    data = encode(flat(RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", quality=100)
    np.testing.assert_allclose(array(data)[8, 8], RED, atol=3)


def test_exif_that_pillow_chokes_on_does_not_cost_it_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def choke(_: Image.Image) -> Image.Image:
        raise ValueError("bad tag")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", choke)
    np.testing.assert_array_equal(array(encode(flat(RED), "PNG"))[8, 8], RED)


def test_a_picture_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def choke(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", choke)
    assert refusal(encode(flat(RED), "PNG")) == "not enough memory to decode the image"


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP", "many"])
def test_large_texts_and_profiles_do_not_cost_the_picture(kind: str, place: str) -> None:
    text = np.random.default_rng(0).bytes(3 << 20).replace(b"\0", b"1")
    body = {
        "tEXt": b"key\0" + text,
        "zTXt": b"key\0\0" + zlib.compress(text),
        "iTXt": b"key\0\1\0\0\0" + zlib.compress(text),
        "iCCP": b"key\0\0" + zlib.compress(text),
    }
    many = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**6))) * 80
    data = encode(flat(RED), "PNG")
    start = 33 if place == "first" else data.index(b"IEND") - 4
    extra = many if kind == "many" else chunk(kind.encode(), body[kind])
    np.testing.assert_array_equal(array(data[:start] + extra + data[start:])[8, 8], RED)


@pytest.mark.skipif(not images.READS_HEIF, reason="pillow-heif is not installed")
def test_heic_is_read() -> None:
    pixels = array(encode(Image.fromarray(UPRIGHT).resize((64, 64)), "HEIF", quality=100))
    np.testing.assert_allclose(pixels[8, 8], UPRIGHT[0, 0], atol=8)
    assert {".heic", ".heif"} <= SUFFIXES


def test_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "READS_HEIF", False)
    monkeypatch.setattr(images, "FORMATS", [name for name in images.FORMATS if name != "HEIF"])
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    assert "pip install 'captioner[heif]'" in refusal(data)


def test_plain_rgb_is_untouched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    path = tmp_path / "plain.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(array(path), pixels)
    np.testing.assert_array_equal(array(path.read_bytes()), pixels)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (flat(100, "L"), "PNG", (100, 100, 100)),
        (flat(100, "L"), "JPEG", (100, 100, 100)),
        (flat(1, "1"), "PNG", WHITE),
        (flat(0, "1"), "TIFF", BLACK),
        (flat((255, 0, 0, 255), "RGBA"), "PNG", RED),
        (flat((255, 0, 0, 0), "RGBA"), "PNG", WHITE),
        (flat((0, 0, 0, 51), "RGBA"), "WEBP", (204, 204, 204)),
        (flat((0, 0, 0, 51), "RGBA"), "TIFF", (204, 204, 204)),
        (flat((0, 0), "LA"), "PNG", WHITE),
        (flat((0, 51), "LA"), "PNG", (204, 204, 204)),
        (flat((0, 255, 255, 0), "CMYK"), "TIFF", RED),
        (flat((0, 0, 0, 255), "CMYK"), "TIFF", BLACK),
        (flat((255, 0, 0)).quantize(2), "PNG", RED),
        (flat((255, 0, 0)).quantize(2), "GIF", RED),
        (flat((255, 0, 0)).quantize(2), "BMP", RED),
    ],
    ids=lambda value: getattr(value, "mode", str(value)),
)
def test_modes(image: Image.Image, format: str, expected: tuple[int, int, int]) -> None:
    pixels = array(encode(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile(expected, (256, 1)), atol=1)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE, BLACK])
def test_adobe_cmyk_jpeg(colour: tuple[int, int, int]) -> None:
    ink = (*(255 - value for value in colour), 0)
    data = encode(flat(ink, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data  # these files store the inks inverted
    np.testing.assert_allclose(array(data)[8, 8], colour, atol=3)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entries_are_white(format: str) -> None:
    image = flat(0, "P")
    image.putpalette([*BLACK, *RED])
    image.paste(1, (0, 0, 8, 16))
    pixels = array(encode(image, format, transparency=0))
    assert tuple(pixels[8, 4]) == RED
    assert tuple(pixels[8, 12]) == WHITE


def test_half_transparent_palette_entries_are_mixed_with_white() -> None:
    image = flat(1, "P")
    image.putpalette([*RED, *BLACK])
    pixels = array(encode(image, "PNG", transparency=bytes([255, 51])))
    np.testing.assert_allclose(pixels[8, 8], 204, atol=1)


@pytest.mark.parametrize(("image", "key"), [(flat(BLACK), BLACK), (flat(7, "L"), 7)])
def test_a_transparent_colour_key_is_white(image: Image.Image, key: Any) -> None:
    assert tuple(array(encode(image, "PNG", transparency=key))[8, 8]) == WHITE


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("top", "white"),
    [(65535, 65535), (30000, 65535), (9000, 16383), (4095, 4095), (900, 1023), (100, 255)],
)
def test_grey_of_10_to_16_bits_is_scaled_and_not_clipped(format: str, top: int, white: int) -> None:
    values = np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16)
    pixels = array(encode(Image.fromarray(values), format))
    expected = np.rint(values * (255 / white))
    np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, 2))


def test_16_bit_grey_of_the_other_byte_order() -> None:
    values = np.arange(0, 256, dtype=">u2").reshape(16, 16)
    for scale in (1, 257):
        body = (values * scale).astype(">u2").tobytes()
        image = Image.frombytes("I;16B", (16, 16), body)
        pixels = np.asarray(to_rgb(image))
        np.testing.assert_array_equal(pixels[..., 0], values)
        np.testing.assert_array_equal(array(encode(image, "TIFF")), pixels)


def test_32_bit_grey() -> None:
    for values in (np.arange(256, dtype=np.int32), np.arange(256, dtype=np.int32) * 257):
        pixels = array(encode(Image.fromarray(values.reshape(16, 16)), "TIFF"))
        np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_float_tiff(top: int) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    pixels = array(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 1].ravel(), np.arange(256))


def test_float_tiff_with_holes() -> None:
    values = np.full((16, 16), 0.5, np.float32)
    values[0, 0], values[0, 1] = np.nan, -3
    pixels = array(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0, 0, 0] == pixels[0, 1, 0] == 0
    assert pixels[8, 8, 0] == 128


@pytest.mark.parametrize("top", [1, 255, 4095, 65535])
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 3.4e38, -9999, 1e6, "overshoot"])
def test_one_odd_float_does_not_make_the_picture_black(top: int, odd: float | str) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    values[3, 3] = top * 1.01 if isinstance(odd, str) else odd
    pixels = array(encode(Image.fromarray(values), "TIFF"))[..., 0].ravel()
    np.testing.assert_array_equal(np.delete(pixels, 51), np.delete(np.arange(256), 51))
    assert pixels[51] in (0, 255)


def test_a_float_picture_on_a_scale_of_its_own_is_not_black() -> None:
    for top in (10, 1e6):
        values = np.linspace(0, top, 4096, dtype=np.float32).reshape(64, 64)
        assert 120 < array(encode(Image.fromarray(values), "TIFF")).mean() < 135


@pytest.mark.parametrize("black", [-30.0, -1.0, -1024.0, -1e5])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_negative_pixels_are_not_black(black: float, kind: type) -> None:
    for white in (black / 8, 0, -black, -3 * black):
        values = np.linspace(1000 * black, 1000 * white, 4096).astype(kind).reshape(64, 64)
        pixels = array(encode(Image.fromarray(values), "TIFF"))
        assert 120 < pixels.mean() < 135 and pixels.min() == 0 and pixels.max() == 255


@pytest.mark.parametrize("mark", [-9999, -3.4e38, 3.4e38, 1e20, -np.inf, np.nan])
@pytest.mark.parametrize("top", [1, 200])
def test_marks_of_missing_pixels_do_not_count(mark: float, top: int) -> None:
    values = np.linspace(0, top, 4096, dtype=np.float32).reshape(64, 64)
    values[::3] = mark
    pixels = array(encode(Image.fromarray(values), "TIFF"))[1::3]
    assert 0.45 < pixels.mean() / (255 if top == 1 else top) < 0.55


def test_a_white_page_of_floats_keeps_its_ink() -> None:
    values = np.ones((64, 64), np.float32)
    values[20:30] = np.linspace(0, 0.1, 640).reshape(10, 64)
    pixels = array(encode(Image.fromarray(values), "TIFF"))
    assert pixels[20:30].max() < 30 and pixels[0, 0, 0] == 255


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383])
@pytest.mark.parametrize("layout", ["RGB", "RGBA"])
@pytest.mark.parametrize("order", [">", "<"])
def test_colours_of_10_to_14_bits_are_scaled(white: int, layout: str, order: str) -> None:
    channels = [np.linspace(0, white, 256).reshape(16, 16)] * 3
    channels[1] = channels[1][::-1]
    if layout == "RGBA":
        channels.append(np.full((16, 16), white))
    values = np.rint(np.stack(channels, 2)).astype(np.uint16)
    pixels = array(sixteen_bits(values, order))
    np.testing.assert_allclose(pixels, values[..., :3] * (255 / white), atol=0.51)
    full = np.rint(values * (65535 / white)).astype(np.uint16)
    np.testing.assert_allclose(array(sixteen_bits(full, order)), pixels, atol=1)


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383])
@pytest.mark.parametrize("kind", ["LA", "P6", "P3", "P5", "P2"])
def test_grey_with_alpha_and_ppm_of_10_to_14_bits_are_scaled(white: int, kind: str) -> None:
    values = np.rint(np.linspace(0, white, 256)).astype(np.uint16).reshape(16, 16, 1)
    pixels = np.repeat(values * (255 / white), 3, 2)
    if kind == "LA":
        data = sixteen_bits(np.dstack([values, np.full_like(values, 65535)]), ">")
    else:
        colours = np.repeat(values, 3 if kind in ("P6", "P3") else 1, 2)
        text = "\n".join(" ".join(map(str, row)) for row in colours.reshape(16, -1))
        body = (
            f"{text} # {kind}\n".encode()
            if kind in ("P3", "P2")
            else colours.astype(">u2").tobytes()
        )
        data = f"{kind}\n16 16\n65535\n".encode() + body
    np.testing.assert_allclose(array(data), pixels, atol=0.51)


def sixteen_bits(values: np.ndarray, order: str) -> bytes:
    """Write a PNG (big endian) or a TIFF of 16 bits per channel; Pillow writes neither."""
    height, width, channels = values.shape
    body = values.astype(f"{order}u2")
    if order == ">":
        header = struct.pack(">IIBBBBB", width, height, 16, (4, 2, 6)[channels - 2], 0, 0, 0)
        rows = b"".join(b"\0" + row.tobytes() for row in body)
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + chunks
    tags = {256: width, 257: height, 259: 1, 262: 2, 273: 150, 277: channels, 278: height}
    tags |= {258: 142, 279: body.nbytes} | ({338: 2} if channels == 4 else {})
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
        for tag, value in sorted(tags.items())
    )
    start = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return start.ljust(142, b"\0") + struct.pack("<4H", 16, 16, 16, 16) + body.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_is_padding_is_ignored(mode: str) -> None:
    picture = Image.fromarray(UPRIGHT)
    padded = picture.convert(mode[:-1])
    expected = np.asarray(padded.convert("RGB"))
    padded.putalpha(0)
    np.testing.assert_array_equal(array(encode(padded, "PNG")), expected)


def test_a_white_drawing_is_drawn_on_black() -> None:
    logo = flat((255, 255, 255, 0), "RGBA")
    logo.paste((255, 255, 255, 255), (4, 4, 12, 12))
    pixels = array(encode(logo, "PNG"))
    assert tuple(pixels[8, 8]) == WHITE
    assert tuple(pixels[0, 0]) == BLACK


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(
        flat(RED), format, save_all=True, append_images=[flat(BLUE), flat(GREEN)], **options
    )
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    np.testing.assert_array_equal(array(data)[8, 8], RED)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_truncated_files(format: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    refusal(data[: int(len(data) * kept)])


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    assert refusal(text) == "not an image, or an unsupported image format"
    (tmp_path / "empty.jpg").touch()
    assert refusal(tmp_path / "empty.jpg") == "empty file"
    assert refusal(tmp_path) == "cannot be read: Is a directory"
    assert refusal(tmp_path / "missing.jpg") == "cannot be read: No such file or directory"
    assert refusal(Path("a\0b")).startswith("cannot be read: ")
    assert refusal(Path("x" * 5000)) == "cannot be read: File name too long"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert refusal(tmp_path / "loop.jpg").startswith("cannot be read: Too many levels")


def test_a_file_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "photo.jpg").touch()
    monkeypatch.setattr(images, "no_stream", refuse)
    assert refusal(tmp_path / "photo.jpg") == "cannot be read: Permission denied"


def test_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal(png_header(0, 5))
    # Pillow refuses these itself today; a plugin that does not must do no harm.
    monkeypatch.setattr(Image, "open", lambda *_, **__: Image.new("RGB", (0, 5)))
    assert refusal(b"anything") == "0 x 5 pixels: the image is empty"


@pytest.mark.parametrize("side", [9_460, 60_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    message = refusal(png_header(side, side))
    assert "pixels" in message
    assert f"limit of {MAX_PIXELS:,}" in message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_limit_of_ones_own() -> None:
    data = encode(flat(RED), "PNG")
    assert refusal(data, max_pixels=255) == "16 x 16 pixels, more than the limit of 255"
    assert read_image(data, max_pixels=256).size == (16, 16)
    assert "9460 x 9460 pixels" in refusal(png_header(9_460, 9_460))


VALID = [
    encode(Image.fromarray(UPRIGHT), format)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO")
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))])


@settings(max_examples=300)
@given(st.binary(max_size=64) | damaged())
def test_no_bytes_raise_anything_but_an_image_error(data: bytes) -> None:
    try:
        image = read_image(data, max_pixels=10_000)
    except ImageError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
        assert image.width * image.height > 0


def test_pillow_keeps_quiet() -> None:
    script = "import sys; from captioner.images.decode import read_image; "
    script += "read_image(sys.stdin.buffer.read())"
    data = encode(flat(RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, check=True
    )
    assert done.stderr == b""


def test_suffixes_are_lower_case_and_known_to_pillow() -> None:
    Image.init()
    assert {suffix.lower() for suffix in SUFFIXES} == SUFFIXES
    assert set(Image.registered_extensions()) >= SUFFIXES - {".avif"}
