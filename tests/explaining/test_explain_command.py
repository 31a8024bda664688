"""`captioner explain`: a table, and a picture with a map for each word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import draw
from PIL import Image

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.system.ownership import owns

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looking") / "model"
    toys.captioner(toys.encoder(grid=3), attention="spatial").save(folder)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*arguments)` of `captioner explain` -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    draw(0, (90, 60)).save(tmp_path / "photo.png")

    def explain(*arguments: str) -> tuple[int, str, str]:
        command = ["explain", "--model", str(model), "--device", "cpu", *arguments]
        result = CliRunner().invoke(main, command)
        return result.exit_code, result.stdout, result.stderr

    return explain


def test_the_table_holds_what_python_computes(run: Run, model: Path) -> None:
    code, out, _ = run("photo.png", "--caption", "A red square.", "--alternatives", "2")
    found = Captioner.load(model, "cpu").explain("photo.png", "a red square", alternatives=2)
    caption, _, head, *rows, _, note = out.splitlines()
    assert (code, caption) == (0, "a red square")
    assert head.split() == [
        "word",
        "probability",
        "from",
        "image",
        "strongest",
        "at",
        "alternatives",
    ]
    for word, places, row in zip(found.caption.words, found.maps, rows, strict=True):
        text = "(end)" if word.text == "<eos>" else word.text
        nats = re.escape(f"{places.sum():+.2f}")
        others = ", ".join(r"\S+ [\d.]+%" for _ in word.alternatives)
        assert re.fullmatch(
            rf"{re.escape(text)} +[\d.]+% +{nats} +row [1-3], column [1-3] +{others}", row
        )
    assert note.startswith("from image: nats that the image adds")


def test_the_best_caption_is_that_of_caption(run: Run, model: Path) -> None:
    code, out, _ = run("photo.png", "--max-length", "5", "--alternatives", "0")
    result = CliRunner().invoke(
        main, ["caption", "photo.png", "--model", str(model), "--max-length", "5"]
    )
    assert code == 0
    assert out.splitlines()[0] == result.stdout.splitlines()[0].partition("\t")[2]
    assert "%," not in out


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_a_picture_shows_the_maps_of_gradient_and_attention(run: Run, method: str) -> None:
    code, _, said = run("photo.png", "--method", method, "--output", "out/maps.png",
                        "--caption", "a red square")  # fmt: skip
    assert (code, "wrote out/maps.png" in said) == (0, True)
    assert owns(Path("out/maps.png"), "explanation")
    with Image.open("out/maps.png") as image:
        assert image.format == "PNG" and image.width > 300
    assert run("photo.png", "--output", "out/maps.png")[0] == 0  # captioner's own


def test_a_page_is_written_where_the_name_ends_in_html(run: Run) -> None:
    code, _, said = run("photo.png", "--output", "explained.HTML", "--caption", "a red square")
    assert (code, "wrote explained.HTML" in said) == (0, True)
    text = Path("explained.HTML").read_text(encoding="utf-8")
    assert "photo.png, captioned by looking" in text.replace("0", "")
    assert "a red square" in text
    assert "How it was written" not in text  # nothing was searched
    assert run("photo.png", "--output", "explained.HTML", "--beam-size", "5")[0] == 0
    text = Path("explained.HTML").read_text(encoding="utf-8")
    assert "How it was written" in text and '"beam_size": 5' in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no.png"], 1, r"no\.png: cannot be read: No such file"),
        (["photo.png", "--output", "photo.png"], 2, r"photo\.png: already exists and is not"),
        (["photo.png", "--output", "a.svg"], 2, r"a\.svg must end in \.html or \.png"),
        (["photo.png", "--method", "magic"], 2, r"'magic' is not one of"),
        (["photo.png", "--caption", "a", "--beam-size", "3"], 2, r"--caption excludes search"),
        (["photo.png", "--caption", "a " * 300], 2, r"--caption: must have 1 to 200 words"),
        (["photo.png", "--beam-size", "0"], 2, r"beam.size"),
        ([], 2, "Missing argument 'IMAGE'"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, said = run(*arguments)
    assert (found, out) == (code, "")
    assert re.search(message, said)
    assert "Traceback" not in said
    with Image.open("photo.png") as image:
        assert image.size == (90, 60)


def test_words_cannot_steer_the_terminal(run: Run) -> None:
    code, out, _ = run("photo.png", "--caption", "a \x1b[31m square")
    assert code == 0
    assert "\x1b" not in out
