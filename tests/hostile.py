"""Files that do harm, or look as if they did: what strangers, crashes and old cameras leave behind.

    python tests/hostile.py

prints each case and what captioning it gives, as a Markdown table. Everything is made here from
numbers, the same on every run; nothing is taken from anywhere.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile_files import (
    BLACK,
    BLOCK,
    BLUE,
    EXIF,
    GREEN,
    ORIENTATION,
    RED,
    UPRIGHT,
    WHITE,
    Pixels,
    blocks,
    encode,
    extended,
    flat,
    formats,
    frame,
    gif,
    icon,
    jpeg,
    noise,
    one,
    png,
    rows,
    segment,
    tiff,
    turned,
    webp,
    without_adobe,
    ycck,
)


@dataclass(frozen=True)
class Case:
    """One file and what should come of it.

    Attributes:
        name: short, unique.
        what: what it is, for people.
        path: the file; it may not exist.
        expected: the outcomes that are right: "ok", or kinds of `ImageError`. There are several
            where Pillow's versions may differ, or where damage may go unnoticed.
        layout: of an ok case, the colours of its blocks when upright, (rows, columns, 3).
        tolerance: by how much a colour may be off, of 255.
    """

    name: str
    what: str
    path: Path
    expected: tuple[str, ...]
    layout: Pixels | None = None
    tolerance: int = 0


def make_cases(folder: Path) -> list[Case]:
    """Write every case into a folder, and return them; those this system cannot hold are left out.

    Args:
        folder: empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for i, (name, what, file, content, expected, *good) in enumerate(_files()):
        path = folder / f"{i:03}-{file}"
        path.write_bytes(content)
        cases.append(Case(name, what, path, tuple(expected.split()), *good))
    for name, what, file in NAMES:
        path = folder / os.fsdecode(file)
        try:
            path.write_bytes(jpeg())
        except (OSError, UnicodeError):
            continue
        cases.append(Case(f"name-{name}", what, path, ("ok",), UPRIGHT, 6))
    return cases + list(_no_files(folder))


NAMES: Sequence[tuple[str, str, str | bytes]] = (
    ("newline", "a newline in its name", "a\nb.jpg"),
    ("return", "a carriage return in its name", "a\rb.jpg"),
    ("tab", "a tab in its name", "a\tb.jpg"),
    ("quotes", "quotes in its name", 'it\'s "a" `photo`.jpg'),
    ("emoji", "emoji in its name", "\N{DOG FACE}\N{ZERO WIDTH JOINER}\N{PALM TREE}.jpg"),
    ("bytes", "invalid UTF-8 in its name", b"\xff\xfe caf\xe9.jpg"),
    ("escape", "a terminal's escape codes in its name", "\x1b[2J\x1b[31m.jpg"),
    ("dash", "a name like an option", "--help.jpg"),
    ("spaces", "spaces around its name", " photo .jpg "),
    ("shell", "a shell's command for a name", "$(touch x); rm *.jpg"),
    ("pattern", "a name like a pattern", "[a-z]*?.jpg"),
    ("backslash", "backslashes in its name", "a\\b\\n.jpg"),
    ("reversed", "a name that reads backwards", "a\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe"),
    ("comma", "a name like a row of CSV", 'a,"b",=1+1.jpg'),
    ("long", "a name of 255 bytes", "" + "x" * 251 + ".jpg"),
)

# --- the cases: name, what it is, file name, content, outcomes, layout, tolerance


def _files() -> Iterator[tuple[Any, ...]]:
    yield from _not_images()
    yield from _broken()
    yield from _sizes()
    yield from _metadata()
    yield from _colours()
    yield from _frames()


def _not_images() -> Iterator[tuple[Any, ...]]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("photo.jpg"), jpeg())
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
    other = (
        ("one-byte", "a single byte", "photo.jpg", b"\xff"),
        ("text", "text named .jpg", "photo.jpg", b"not a picture\n"),
        ("html", "an error page named .png", "photo.png", b"<!doctype html><h1>404</h1>\n" * 9),
        ("json", "JSON named .webp", "photo.webp", b'{"error": "not found"}'),
        ("svg", "a vector drawing named .png", "photo.png", svg),
        ("pdf", "a PDF named .jpg", "photo.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n"),
        ("eps", "PostScript named .jpg; Pillow would run Ghostscript", "photo.jpg", eps),
        ("zip", "a ZIP archive named .jpg", "photo.jpg", archive.getvalue()),
        ("pickle", "a pickle named .png", "photo.png", pickle.dumps({"never": "loaded"}, 4)),
        ("zeros", "4,096 zero bytes, as a full disk leaves them", "photo.jpg", bytes(4096)),
        ("random", "random bytes named .gif", "photo.gif", noise().tobytes()),
        ("magic-jpeg", "the first three bytes of a JPEG", "photo.jpg", b"\xff\xd8\xff"),
        ("magic-png", "the signature of a PNG", "photo.png", b"\x89PNG\r\n\x1a\n"),
        ("magic-gif", "the signature of a GIF", "photo.gif", b"GIF89a"),
        ("magic-webp", "the signature of a WebP", "photo.webp", b"RIFF\x10\0\0\0WEBPVP8 "),
    )
    yield "empty", "no bytes", "photo.jpg", b"", "empty"
    for name, what, file, content in other:
        yield name, what, file, content, "damaged" if "magic" in name else "not_an_image"
    named = (("PNG", "photo.jpg"), ("JPEG", "photo.png"), ("GIF", "photo.webp"), ("TIFF", "photo"))
    for format, file in (*named, ("BMP", "photo.txt")):
        data = jpeg() if format == "JPEG" else encode(blocks(), format)
        what = f"{format} named {file}"
        yield f"named-{format.lower()}", what, file, data, "ok", UPRIGHT, 6


def _broken() -> Iterator[tuple[Any, ...]]:
    unchecked = ("JPEG", "BMP", "PPM", "TGA", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF")
    for format, data in formats().items():
        file, half = f"photo.{format.lower()}", len(data) // 2
        cut = data[:half]
        yield f"cut-{format.lower()}", f"{format}, second half missing", file, cut, "damaged"
        either = "damaged not_an_image"
        start = data[: 30 if format != "AVIF" else 60]
        yield f"start-{format.lower()}", f"{format}, only its header", file, start, either
        wrong = data[:half] + bytes(byte ^ 0x5A for byte in data[half : half + 200])
        wrong += data[half + 200 :]
        outcome = "ok damaged" if format in unchecked else "damaged"
        yield f"wrong-{format.lower()}", f"{format}, 200 bytes wrong", file, wrong, outcome
    whole = encode(blocks(), "PNG")
    yield "png-crc", "PNG, checksum of its pixels wrong", "photo.png", _bad_crc(whole), "ok damaged"
    yield "png-no-end", "PNG without its last chunk", "photo.png", whole[:-12], "ok damaged"
    no_palette = png(16, 16, 8, 3, rows(b"\1"))
    yield "png-no-palette", "palette PNG without palette", "photo.png", no_palette, "ok damaged"
    short = (b"PLTE", bytes((255, 0, 0)))
    outside = png(16, 16, 8, 3, rows(b"\xf0"), short)
    yield "png-outside", "PNG, colours outside its palette", "photo.png", outside, "ok damaged"
    nothing = png(16, 16, 8, 2, b"")
    yield "png-no-pixels", "PNG whose compressed pixels are none", "photo.png", nothing, "damaged"
    ending = "JPEG without its end marker"
    yield "jpeg-no-end", ending, "photo.jpg", jpeg()[:-2], "ok damaged", UPRIGHT, 6
    more = jpeg() + b"\0trailing" * 99
    yield "jpeg-more", "JPEG with bytes behind its end", "photo.jpg", more, "ok", UPRIGHT, 6
    twelve = frame(48, 32, precision=12)
    yield "jpeg-12", "JPEG that claims 12 bits", "photo.jpg", twelve, "damaged"
    lossless = frame(48, 32, marker=0xC3)
    yield "jpeg-sof3", "JPEG that claims to be lossless", "photo.jpg", lossless, "ok damaged"
    yield "tiff-loop", "TIFF whose next page is itself", "photo.tif", tiff(next=8), "ok"
    far = tiff(offset=2**31)
    yield "tiff-far", "TIFF whose pixels lie beyond its end", "photo.tif", far, "damaged"
    strip = tiff(bytes=2**32 - 1)
    yield "tiff-strip", "TIFF with a strip of 4 GiB", "photo.tif", strip, "ok damaged"
    kind = tiff(compression=4711)
    yield "tiff-kind", "TIFF of an unknown compression", "photo.tif", kind, "damaged"


def _bad_crc(data: bytes) -> bytes:
    at = len(data) - 13  # the last byte in front of the IEND chunk
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _sizes() -> Iterator[tuple[Any, ...]]:
    bits = png(20_000, 20_000, 1, 0, (b"\0" + bytes(2500)) * 20_000)
    huge = 2**31 - 1
    large = (
        ("bomb-png", "50 kB of PNG that are 400 million pixels", "photo.png", bits),
        ("huge-png", "PNG, 2^31 - 1 square", "photo.png", png(huge, huge, 8, 2, b"")),
        ("wide-png", "PNG, 2^31 - 1 x 1", "photo.png", png(huge, 1, 8, 0, b"")),
        ("huge-jpeg", "JPEG, 65,500 square", "photo.jpg", frame(65_500, 65_500)),
        ("huge-gif", "GIF, 65,535 square", "photo.gif", gif(65_535, 65_535)),
        ("huge-webp", "WebP, 16,384 square", "photo.webp", webp(16_384, 16_384)),
        ("huge-tiff", "TIFF, 2^31 square", "photo.tif", tiff(width=2**31, height=2**31)),
        ("huge-bmp", "BMP, 100,000 square", "photo.bmp", _bmp(100_000, 100_000)),
        ("huge-ppm", "PPM, 10^9 square", "photo.ppm", b"P6 1000000000 1000000000 255 "),
    )
    for name, what, file, content in large:
        yield name, what, file, content, "too_large"
    inside = icon(png(9_500, 9_500, 1, 0, (b"\0" + bytes(1188)) * 9_500), 16)
    what = "icon of 16 x 16 around a PNG of 9,500 square"
    yield "bomb-ico", what, "photo.ico", inside, "too_large"
    none = (
        ("no-width-png", "PNG, 0 x 5", "photo.png", png(0, 5, 8, 2, bytes(5))),
        ("no-height-png", "PNG, 5 x 0", "photo.png", png(5, 0, 8, 2, b"")),
        ("no-width-gif", "GIF, 0 x 0", "photo.gif", gif(0, 0)),
        ("no-height-jpeg", "JPEG, 48 x 0", "photo.jpg", frame(48, 0)),
        ("no-width-bmp", "BMP, 0 x 16", "photo.bmp", _bmp(0, 16)),
        ("no-width-ppm", "PPM, 0 x 5", "photo.ppm", b"P6 0 5 255 "),
        ("no-width-tiff", "TIFF, 0 x 16", "photo.tif", tiff(width=0)),
    )
    for name, what, file, content in none:
        yield name, what, file, content, "no_pixels not_an_image damaged"
    dot = encode(flat(RED, size=(1, 1)), "PNG")
    yield "dot", "a single pixel", "photo.png", dot, "ok", one(*RED)
    thread = encode(flat(RED, size=(60_000, 2)), "PNG")
    yield "thread", "a PNG of 60,000 x 2", "photo.png", thread, "ok", one(*RED)
    tall = jpeg(flat(RED, size=(1, 65_000)))
    yield "tall", "a JPEG of 1 x 65,000", "photo.jpg", tall, "ok", one(*RED), 3


def _bmp(width: int, height: int) -> bytes:
    data = bytearray(encode(flat(RED), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def _metadata() -> Iterator[tuple[Any, ...]]:
    for i in (*range(1, 9), 0, 9):
        what = f"JPEG of EXIF orientation {i}" + ("" if 1 <= i <= 8 else ", which there is not")
        yield f"exif-{i}", what, "photo.jpg", turned(i), "ok", UPRIGHT, 6
    for format in ("PNG", "WEBP", "TIFF"):
        what = f"{format} of EXIF orientation 6"
        file = f"photo.{format.lower()}"
        yield f"exif-{format.lower()}", what, file, turned(6, format), "ok", UPRIGHT
    big = EXIF + b"MM\0*\0\0\0\x08"
    orientation = struct.pack(">HHH", 1, ORIENTATION, 2)
    blocks_of_exif = (
        ("exif-rubbish", "EXIF of random bytes", EXIF + noise(8).tobytes()),
        ("exif-cut", "EXIF that ends in its header", big + b"\xff\xff"),
        ("exif-text", "EXIF orientation that is a word", big + orientation + b"\0\0\0\4up!\0"),
        ("exif-loop", "EXIF whose next block is itself", big + b"\0\0\0\0\0\x08"),
        ("exif-far", "EXIF that points beyond its end", EXIF + b"II*\0\xff\xff\xff\x7f"),
        ("exif-many", "EXIF of 65,535 entries, none there", big + b"\xff\xff" + b"\x01\x12"),
        ("exif-empty", "EXIF of no bytes", EXIF),
    )
    for name, what, body in blocks_of_exif:
        yield name, f"JPEG, {what}", "photo.jpg", segment(0xE1, body), "ok", UPRIGHT, 6
    profile = b"ICC_PROFILE\0"
    for name, what, body in (
        ("icc-rubbish", "colour profile of random bytes", profile + b"\1\1" + noise(8).tobytes()),
        ("icc-part", "part 3 of 9 of a colour profile", profile + b"\3\x09" + bytes(64)),
        ("icc-empty", "colour profile of no bytes", profile),
    ):
        # Pillow 13 stumbles over the last; that it is a JPEG is seen nonetheless.
        outcome = "ok damaged" if body == profile else "ok"
        yield name, f"JPEG, {what}", "photo.jpg", segment(0xE2, body), outcome, UPRIGHT, 6
    bomb = zlib.compress(bytes(80_000_000), 9)
    for name, what, kind, body, outcome in (
        ("icc-png", "colour profile not compressed", b"iCCP", b"x\0\0rubbish", "ok"),
        ("icc-bomb", "colour profile of 80 MB", b"iCCP", b"x\0\0" + bomb, "ok damaged"),
        ("text-bomb", "comment of 80 MB", b"zTXt", b"x\0\0" + bomb, "ok damaged"),
        ("exif-rubbish-png", "EXIF of random bytes", b"eXIf", noise(8).tobytes(), "ok"),
    ):
        yield name, f"PNG, {what}", "photo.png", extended(kind, body), outcome, UPRIGHT


def _colours() -> Iterator[tuple[Any, ...]]:
    inks = np.concatenate([255 - np.asarray(blocks()), np.zeros((32, 48, 1), np.uint8)], 2)
    cmyk = jpeg(Image.fromarray(inks, "CMYK"))
    yield "cmyk", "CMYK JPEG as Photoshop writes it", "photo.jpg", cmyk, "ok", UPRIGHT, 6
    yield "ycck", "YCCK JPEG", "photo.jpg", ycck(), "ok", UPRIGHT, 12
    # Nothing says that these inks are inverted; all viewers take them so.
    what, plain = "CMYK JPEG without Adobe's mark", without_adobe(cmyk)
    yield "cmyk-plain", what, "photo.jpg", plain, "ok", UPRIGHT, 6
    paper = encode(Image.fromarray(inks, "CMYK"), "TIFF")
    yield "cmyk-tiff", "CMYK TIFF", "photo.tif", paper, "ok", UPRIGHT
    steps = jpeg(progressive=True)
    yield "progressive", "progressive JPEG", "photo.jpg", steps, "ok", UPRIGHT, 6
    yield "grey", "grey JPEG", "photo.jpg", jpeg(flat(100, "L")), "ok", one(100, 100, 100), 1
    half = Image.fromarray(np.full((BLOCK, BLOCK), 32_896, np.uint16))
    yield "grey-16", "16-bit grey PNG", "photo.png", encode(half, "PNG"), "ok", one(128, 128, 128)
    deep = png(16, 16, 16, 2, rows(struct.pack(">HHH", 65_535, 32_896, 0)))
    yield "rgb-16", "16-bit RGB PNG", "photo.png", deep, "ok", one(255, 128, 0)
    clear = png(16, 16, 16, 6, rows(struct.pack(">HHHH", 0, 0, 0, 13_107)))
    what = "16-bit RGBA PNG, a fifth opaque"
    yield "rgba-16", what, "photo.png", clear, "ok", one(204, 204, 204), 1
    bit = encode(flat(1, "1"), "PNG")
    yield "bit", "1-bit PNG", "photo.png", bit, "ok", one(*WHITE)
    two = png(16, 16, 2, 0, (b"\0" + b"\xaa" * 4) * 16)
    yield "two-bits", "2-bit grey PNG", "photo.png", two, "ok", one(170, 170, 170)
    palette = flat(0, "P")
    palette.putpalette([*BLACK, *RED])
    palette.paste(1, (0, 0, 8, 16))
    layout = np.array([[RED, WHITE]], np.uint8)
    for format in ("PNG", "GIF"):
        data = encode(palette, format, transparency=0)
        what = f"palette {format}, one entry transparent"
        yield f"palette-{format.lower()}", what, f"photo.{format.lower()}", data, "ok", layout
    mixed = encode(flat(0, "P"), "PNG", transparency=bytes([51]))
    what = "palette PNG, an entry a fifth opaque"
    yield "palette-mixed", what, "photo.png", mixed, "ok", one(204, 204, 204), 1
    key = encode(flat(RED), "PNG", transparency=RED)
    yield "colour-key", "PNG, its one colour transparent", "photo.png", key, "ok", one(*WHITE)
    values = np.full((BLOCK, BLOCK), 0.5, np.float32)
    values[0, 0] = np.nan
    holes = encode(Image.fromarray(values), "TIFF")
    yield "float", "float TIFF with a NaN", "photo.tif", holes, "ok", one(128, 128, 128)
    hand = tiff()
    yield "tiff-by-hand", "the smallest TIFF", "photo.tif", hand, "ok", one(200, 200, 200)


def _frames() -> Iterator[tuple[Any, ...]]:
    others = {"save_all": True, "append_images": [flat(GREEN), flat(BLUE)]}
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        more = {"lossless": True} if format == "WEBP" else {}
        data = encode(flat(RED), format, **others, **more)
        what = f"{format} of three frames: the first counts"
        yield f"frames-{format.lower()}", what, f"photo.{format.lower()}", data, "ok", one(*RED)
        cut = data[: len(data) - len(data) // 4]
        outcome = "ok damaged not_an_image"
        what = f"{format} of three frames, cut in the last"
        yield f"frames-cut-{format.lower()}", what, f"photo.{format.lower()}", cut, outcome
    mpo = encode(blocks(), "MPO", quality=100, subsampling=0, **others)
    what = "MPO: two views of a stereo camera, or a phone's preview"
    yield "mpo", what, "photo.jpg", mpo, "ok", UPRIGHT, 6
    outside = bytearray(encode(flat(1, "P"), "GIF"))
    struct.pack_into("<HH", outside, 6, 4, 4)
    what = "GIF whose frame is larger than its screen"
    yield "gif-outside", what, "photo.gif", bytes(outside), "ok damaged"


def _no_files(folder: Path) -> Iterator[Case]:
    """Make what is no ordinary file: links, folders, pipes, nothing at all."""

    def case(name: str, what: str, path: Path, expected: str, *good: Any) -> Case:
        return Case(name, what, path, tuple(expected.split()), *good)

    good = folder / "good.jpg"
    good.write_bytes(jpeg())
    yield case("missing", "a file that is not there", folder / "nowhere.jpg", "missing")
    yield case("through", "a path through a file", good / "photo.jpg", "missing unreadable")
    yield case("zero", "a path with a zero byte", folder / "a\0b.jpg", "missing")
    yield case("too-long", "a name of 5,000 letters", folder / ("x" * 5000), "unreadable missing")
    (folder / "folder.jpg").mkdir()
    yield case("folder", "a folder named .jpg", folder / "folder.jpg", "unreadable")
    sparse = folder / "sparse.jpg"
    try:
        with sparse.open("wb") as file:
            file.truncate(2**40)
        yield case("sparse", "a file of 1 TiB that takes no space", sparse, "too_large")
    except OSError:
        sparse.unlink(missing_ok=True)
    if os.name != "posix":
        return
    links = (("loop.jpg", "loop.jpg"), ("ping.jpg", "pong.jpg"), ("pong.jpg", "ping.jpg"))
    for link, target in (*links, ("broken.jpg", "nothing.jpg"), ("link.jpg", "good.jpg")):
        (folder / link).symlink_to(target)
    yield case("loop", "a link to itself", folder / "loop.jpg", "unreadable")
    yield case("loops", "two links to each other", folder / "ping.jpg", "unreadable")
    yield case("broken-link", "a link to nothing", folder / "broken.jpg", "missing")
    yield case("link", "a link to a picture", folder / "link.jpg", "ok", UPRIGHT, 6)
    os.mkfifo(folder / "pipe.jpg")
    yield case("pipe", "a pipe nobody writes to", folder / "pipe.jpg", "unreadable")
    (folder / "device.jpg").symlink_to("/dev/zero")
    yield case("device", "a link to /dev/zero", folder / "device.jpg", "unreadable")
    locked = folder / "locked.jpg"
    locked.write_bytes(jpeg())
    locked.chmod(0)
    # Nothing is locked for root.
    expected = "ok" if os.access(locked, os.R_OK) else "unreadable"
    yield case("locked", "a file without permissions", locked, expected, UPRIGHT, 6)


# --- the table


def main() -> int:
    from captioner.errors import ImageError
    from captioner.images.decode import read_image

    wrong = 0
    print("| case | what it is | what came of it |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for case in make_cases(Path(name)):
            try:
                image = read_image(case.path)
                outcome, came = "ok", f"a picture of {image.width} x {image.height}"
            except ImageError as error:
                outcome, came = error.kind, f"`{error.kind}`: {error}"
            wrong += outcome not in case.expected
            mark = "" if outcome in case.expected else " (WRONG)"
            print(f"| {case.name} | {case.what} | {came.replace('|', '/')}{mark} |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
