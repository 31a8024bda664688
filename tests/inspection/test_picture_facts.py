"""Pictures that are the same, alike, or broken, found by their headers or by their pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from captioner.data.dataset import Example
from captioner.inspection.picture_facts import START, PictureFacts, look_at_pictures

Draw = Callable[..., Image.Image]


def examples(folder: Path, *splits: str) -> list[Example]:
    names = sorted(path for path in folder.iterdir() if path.is_file())
    chosen = splits or ("train",) * len(names)
    return [Example(p, ("a",), s, p.name) for p, s in zip(names, chosen, strict=True)]


def ids(groups: list[list[Example]]) -> list[list[str]]:
    return [[example.image_id for example in group] for group in groups]


@pytest.mark.parametrize("decode", [False, True])
def test_the_same_content_is_found_in_any_folder_and_split(
    tmp_path: Path, picture: Draw, decode: bool
) -> None:
    for number, name in enumerate("abc"):
        picture(number, (90, 80)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "e.png").write_bytes((tmp_path / "b.png").read_bytes())
    found = look_at_pictures(
        examples(tmp_path, "train", "train", "dev", "dev", "train"), decode=decode
    )
    assert ids(found.same) == [["a.png", "d.jpg"], ["b.png", "e.png"]]
    assert ids(found.leaks) == [["a.png", "d.jpg"]]
    assert (found.count, found.copies, found.decoded) == (5, 2, decode)
    assert found.alike == []
    assert found.formats == {"PNG": 5} and found.modes == {"RGB": 5}


def test_equal_sizes_and_starts_are_not_yet_equal_contents(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    pixels[0, 0] = 255  # the first row is the last in the file
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.bmp", "b.bmp"))
    assert first[:START] == second[:START] and len(first) == len(second) and first != second
    assert look_at_pictures(examples(tmp_path), decode=False).same == []


@pytest.mark.parametrize("decode", [False, True])
def test_two_ids_of_one_file_are_the_same(tmp_path: Path, picture: Draw, decode: bool) -> None:
    picture(0).save(tmp_path / "a.png")
    pair = [Example(tmp_path / "a.png", ("a",), split, split) for split in ("train", "dev")]
    found = look_at_pictures(pair, decode=decode)
    assert found.count == 1
    assert ids(found.leaks) == [["train", "dev"]]


def broken(folder: Path, picture: Draw) -> Path:
    folder.mkdir()
    picture(0, (200, 200)).save(folder / "0.jpg")
    data = (folder / "0.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(data[: len(data) // 2])
    (folder / "2.jpg").touch()
    (folder / "3.jpg").write_text("<!doctype html>")
    (folder / "4.jpg").write_text("no image")
    return folder


def test_headers_show_some_broken_pictures_and_pixels_all(tmp_path: Path, picture: Draw) -> None:
    listed = examples(broken(tmp_path / "x", picture))
    listed.append(Example(tmp_path / "gone.jpg", ("a",), "train", "gone"))

    def reasons(found: PictureFacts) -> dict[str, str]:
        return {Path(str(image)).name: reason for image, reason in found.broken}

    by_header = reasons(look_at_pictures(listed, decode=False))
    assert list(by_header) == ["2.jpg", "3.jpg", "4.jpg", "gone.jpg"]
    assert by_header["2.jpg"] == "empty file"
    assert "web page" in by_header["3.jpg"]
    assert "No such file" in by_header["gone.jpg"]
    decoded = look_at_pictures(listed, decode=True)
    assert reasons(decoded) == by_header | {"1.jpg": reasons(decoded)["1.jpg"]}
    assert "damaged" in reasons(decoded)["1.jpg"]
    assert decoded.formats == {"JPEG": 1}
    assert decoded.same == []


def test_all_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    found = look_at_pictures(examples(tmp_path), decode=True)
    assert (found.width, found.formats, len(found.broken)) == (None, {}, 1)


@pytest.mark.parametrize("decode", [False, True])
def test_a_png_with_a_long_text_is_sound(tmp_path: Path, picture: Draw, decode: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (2 << 20), zip=True)
    picture(0).save(tmp_path / "a.png", pnginfo=text)
    found = look_at_pictures(examples(tmp_path), decode=decode)
    assert found.broken == [] and found.formats == {"PNG": 1}


def test_pictures_written_again_look_the_same(tmp_path: Path, picture: Draw) -> None:
    for number in range(20):
        picture(number, (240, 200)).save(tmp_path / f"{number:02}.jpg", quality=95)
    for number in range(0, 20, 5):
        copy = Image.open(tmp_path / f"{number:02}.jpg")
        copy.resize((180, 150), Image.Resampling.BICUBIC).save(
            tmp_path / f"{number:02}x.jpg", quality=60
        )
    listed = examples(tmp_path)
    found = look_at_pictures(listed, decode=True)
    assert ids(found.alike) == [[f"{n:02}.jpg", f"{n:02}x.jpg"] for n in range(0, 20, 5)]
    assert found.same == []
    assert look_at_pictures(listed, decode=False).alike == []


def test_the_same_shapes_in_other_colours_do_not_look_the_same(tmp_path: Path) -> None:
    for name, colour in (("a", (200, 40, 40)), ("b", (40, 82, 200)), ("c", (200, 40, 40))):
        image = Image.new("RGB", (90, 80), "white")
        image.paste(colour, (20, 20, 60, 60))
        image.save(tmp_path / f"{name}.png", optimize=name == "c", compress_level=1)
    found = look_at_pictures(examples(tmp_path), decode=True)
    assert ids([*found.alike, *found.same]) == [["a.png", "c.png"]]


def test_one_colour_is_seen_in_pixels(tmp_path: Path, picture: Draw) -> None:
    picture(0).save(tmp_path / "a.png")
    Image.new("L", (60, 30), 7).save(tmp_path / "b.png")
    found = look_at_pictures(examples(tmp_path), decode=True)
    assert found.blank == [tmp_path / "b.png"]
    assert found.modes == {"RGB": 1, "L": 1}
    assert found.width and (found.width.least, found.width.most) == (48, 60)
