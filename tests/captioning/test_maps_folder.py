"""`captioner caption --maps`: one PNG per image, beside the captions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from captioner.captioner import Captioner
from captioner.captioning import maps
from captioner.captioning.maps import MapFolder, _figure, draw_maps
from captioner.captioning.records import CaptioningOptions, Record, caption_files
from captioner.captioning.sources import list_images
from captioner.cli import main
from captioner.cli.messages import say_maps
from captioner.encoder.preprocess import Preprocess
from captioner.errors import ConfigError
from captioner.explanation.panels import LONGEST
from captioner.system.ownership import owns
from captioner.text import Caption, Word, WordAttention

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

Run = Callable[..., tuple[int, str, str]]


def looking() -> Captioner:
    return toys.captioner(toys.encoder(grid=3), attention="spatial")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looking") / "model"
    looking().save(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*arguments)` of `captioner caption` -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def caption(*arguments: str, model: Path = model) -> tuple[int, str, str]:
        command = ["caption", "--model", str(model), "--device", "cpu", *arguments]
        result = CliRunner().invoke(main, command)
        return result.exit_code, result.stdout, result.stderr

    toys.draw(tmp_path / "photo.png", "red")
    toys.draw(tmp_path / "more" / "photo.png", "blue")
    return caption


def test_letters_that_no_font_has_are_kept_for_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maps, "missing", lambda text: {*text} & {"狗"})
    folder = MapFolder(tmp_path)
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    caption = Caption("a 狗", -1.0, -1.0, True, (word("a", (1.0,)), word("狗", (1.0,))))
    record = Record("1.png", captions=(caption,), pixels=pixels)
    folder.add(record)
    assert folder.letters == {"狗"}
    say_maps(folder)
    assert "no installed font has 狗 (Han), so boxes are drawn" in capsys.readouterr().err


def word(text: str, *places: tuple[float, ...], sentinel: float = 0.1) -> Word:
    return Word(text, -0.5, attention=WordAttention(places, sentinel))


def words(*weights: float) -> tuple[Word, ...]:
    return tuple(word(f"w{w}", (w, 0.1), (0.0, 0.0), sentinel=0.9 - w) for w in weights)


def record(text: str = "w0.2 w0.7", spelled: tuple[Word, ...] = ()) -> Record:
    spelled = (*(spelled or words(0.2, 0.7)), word("<eos>", (0.9,)))
    caption = Caption(text, -1.0, -1.0, True, spelled)
    return Record("a/photo.jpg", (caption,), pixels=torch.full((3, 8, 8), 200, dtype=torch.uint8))


def texts(figure: object) -> list[str]:
    from matplotlib.text import Text

    return [each.get_text() for each in figure.findobj(Text) if each.get_text()]


def test_a_picture_is_drawn_beside_its_caption(run: Run, tmp_path: Path) -> None:
    code, plain, _ = run("photo.png")
    assert (code, run("photo.png", "--maps", "maps")[:2]) == (0, (0, plain))
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["photo.png"]
    with Image.open(tmp_path / "maps" / "photo.png") as image:
        assert image.format == "PNG"
        assert image.width > 300


@pytest.mark.parametrize("output", [[], ["--output", "captions.jsonl"]])
def test_pictures_of_one_name_have_two_files(run: Run, tmp_path: Path, output: list[str]) -> None:
    code, _, said = run("photo.png", "more/photo.png", "--maps", "maps", *output)
    assert code == 0
    assert "2 map(s) in maps" in said
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"photo.png", "photo-2.png"}


def test_a_map_is_replaced_only_with_overwrite(run: Run, tmp_path: Path) -> None:
    run("photo.png", "--maps", "maps")
    place = tmp_path / "maps" / "photo.png"
    before = place.stat().st_ino
    code, out, said = run("photo.png", "--maps", "maps")
    assert (code, place.stat().st_ino) == (0, before)
    assert out.startswith("photo.png\t")
    assert "1 map(s) kept, such as maps/photo.png; --overwrite draws them again" in said
    run("photo.png", "--maps", "maps", "--overwrite")
    assert place.stat().st_ino != before


def test_a_file_of_the_user_is_never_replaced(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "photo.png"
    before = place.read_bytes()
    code, _, said = run("photo.png", "--maps", ".", "--overwrite")
    assert (code, place.read_bytes()) == (0, before)
    assert "1 map(s) not drawn, captioner did not draw the file of their name" in said


def test_a_resumed_job_names_and_counts_what_it_does_not_draw(run: Run, tmp_path: Path) -> None:
    run("photo.png", "--output", "captions.jsonl")
    images = ("photo.png", "more/photo.png")
    code, _, said = run(*images, "--output", "captions.jsonl", "--maps", "maps")
    assert code == 0
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["photo-2.png"]
    assert "1 image(s) without a map, earlier runs captioned them" in said


def test_the_output_is_the_same_with_maps(run: Run, tmp_path: Path) -> None:
    run("photo.png", "--output", "a.jsonl", "--n-best", "3")
    run("photo.png", "--output", "b.jsonl", "--n-best", "3", "--maps", "maps")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_model_without_attention_is_refused_before_any_caption(run: Run, tmp_path: Path) -> None:
    toys.captioner().save(tmp_path / "blind")
    code, out, said = run("photo.png", "--maps", "maps", model=tmp_path / "blind")
    assert (code, out) == (2, "")
    assert "decoder.attention=spatial" in said
    assert "Traceback" not in said
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maps", "photo.png"], r"photo\.png: not a folder"),
        (
            ["--maps", "m", "--engine", "ray", "--output", "x.jsonl"],
            r"--engine ray does not support .*--maps",
        ),
    ],
)
def test_impossible_maps_are_refused(run: Run, arguments: list[str], message: str) -> None:
    code, _, said = run("photo.png", *arguments)
    assert code == 2
    assert re.search(message, said)


def test_a_broken_image_takes_its_name_and_has_no_map(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    code, _, _ = run("photo.jpg", "photo.png", "--maps", "maps")
    assert code == 1
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["photo-2.png"]


def test_every_word_has_its_map_its_sentinel_and_one_scale() -> None:
    look = words(0.2, 0.7)
    figure = _figure(record().pixels.permute(1, 2, 0).numpy(), "a caption", look, 0.66)
    said = texts(figure)
    for expected in ("a caption", "w0.2", "w0.7", "not the image: 0.70", "not the image: 0.20"):
        assert expected in said
    assert "the middle 66% of it" in said
    scales = {image.norm.vmax for axes in figure.axes for image in axes.images if image.get_alpha()}
    assert scales == {0.7}


@pytest.mark.parametrize("length", [1, 5, 6, 13, 50])
def test_long_captions_wrap_into_rows(length: int) -> None:
    look = words(*[0.5] * length)
    figure = _figure(record().pixels.permute(1, 2, 0).numpy(), "w " * length, look, 1.0)
    panels = [axes.get_position().bounds for axes in figure.axes[:-1]]
    assert len(panels) == length + 1
    boxes = [tuple(round(edge, 6) for edge in box) for box in panels]
    assert len(set(boxes)) == length + 1
    assert all(min(x, y) >= 0 and max(x + w, y + h) <= 1 for x, y, w, h in boxes)
    assert len({box[1] for box in boxes}) == -(-(length + 1) // 6)


@pytest.mark.parametrize("text", ["$x^", "$a$", "\\frac", "x" * 200, "\u72d7", "<b>&"])
def test_any_word_can_be_drawn(text: str, tmp_path: Path) -> None:
    look = word(text, (0.5, 0.2), (0.1, 0.1))
    draw_maps(record(f"{text} {text}", (look, look)), tmp_path / "map.png")
    assert owns(tmp_path / "map.png", "map")
    figure = _figure(record().pixels.permute(1, 2, 0).numpy(), text, (look,), 1.0)
    assert max(len(axes.get_title()) for axes in figure.axes) <= LONGEST


def test_names_are_unique_whatever_the_case_and_the_letters(tmp_path: Path) -> None:
    maps = MapFolder(tmp_path)
    names = [maps._name(name) for name in ("a/x.jpg", "b/X.png", "x-2.jpg", "a\nb.jpg", "é" * 200)]
    assert names[:4] == ["x.png", "X-2.png", "x-2-2.png", "a_b.png"]
    assert len(names[4].encode()) < 255


def test_without_maps_there_is_nothing_to_draw(tmp_path: Path) -> None:
    toys.draw(tmp_path / "red.png", "red")
    for captioner, how in (
        (looking(), CaptioningOptions()),
        (toys.captioner(), CaptioningOptions(maps=True)),
    ):
        [found] = caption_files(captioner, list_images([str(tmp_path / "red.png")]), how=how)
        with pytest.raises(ConfigError, match=r"decoder\.attention"):
            draw_maps(found, tmp_path / "map.png")
    with pytest.raises(ConfigError, match="damaged"):
        draw_maps(replace(record(), captions=(), error="damaged"), tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("size", "share"), [((100, 100), 0.25), ((200, 100), 0.125), ((100, 1000), 0.025)]
)
def test_the_share_that_the_crop_leaves(size: tuple[int, int], share: float) -> None:
    assert Preprocess(64, 32).visible(*size) == pytest.approx(share)
    assert Preprocess(64, 64).visible(*size) == pytest.approx(share * 4)
