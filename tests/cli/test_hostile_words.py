"""Whatever names and captions hold, no verb prints or writes what a terminal would obey."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from captioner.cli import main

import toys

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")
EVIL = "\x1b[31mEVIL\x9b32m\u202egpj\u2066x\u2028y\x07\x7f\r\n"


def clean(text: str) -> bool:
    return not OBEYED.search(text)


def run(*words: str, **options: object) -> Result:
    result = CliRunner().invoke(main, list(words), **options)  # type: ignore[arg-type]
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert clean(result.stdout)
    assert clean(result.stderr)
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set in which every text is hostile, and a run on it."""
    folder = tmp_path_factory.mktemp("home")
    data = folder / f"data{EVIL}"
    data.mkdir()
    rows: list[dict[str, object]] = []
    for number in range(18):
        colour = "red" if number % 2 else "blue"
        name = f"{'=' if number % 3 else '@'}{EVIL}{number}.png"
        toys.draw(data / name, colour, number)
        split = "train" if number < 12 else "dev" if number < 17 else f"odd{EVIL}"
        row = {"file_name": name, "split": split, "image_id": f"+{EVIL}{number}"}
        rows += [{**row, "caption": f"a {colour} square{EVIL}{text}"} for text in "xy"]
    (data / f"empty{EVIL}.png").touch()
    (data / f"unnamed{EVIL}.png").touch()
    twice = {**rows[0], "split": "dev"}
    gone = {**rows[0], "file_name": f"gone{EVIL}.png", "image_id": f"gone{EVIL}"}
    empty = {**rows[0], "file_name": f"empty{EVIL}.png", "image_id": f"empty{EVIL}"}
    odd = [{**rows[0], "caption": value} for value in ([EVIL, 1], {EVIL: EVIL}, "  ")]
    rows += [twice, gone, empty, *odd]
    lines = [*map(json.dumps, rows), EVIL.strip(), json.dumps([EVIL]), '"\\ud83d"']
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    config = toys.config(folder, epochs=1)
    changed = config.data.model_copy(update={"root": str(data), "format": "auto"})
    config = config.model_copy(update={"data": changed})
    (folder / "hostile.yaml").write_text(config.to_yaml())
    with toys.inside(folder):
        result = run("train", "hostile.yaml", "--device", "cpu", "--output", f"run{EVIL}")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("skipped") >= 5
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("CAPTIONER_MODEL", f"run{EVIL}")


def test_training_and_evaluation_write_nothing_that_is_obeyed(home: Path) -> None:
    folder = home / f"run{EVIL}"
    assert run("evaluate", "--device", "cpu").exit_code == 0
    assert run("evaluate", "--data", f"data{EVIL}", "--split", "train", "--output", f"to{EVIL}")
    assert run("doctor", "--device", "cpu").exit_code in (0, 1)
    assert run("evaluate", "--split", EVIL).exit_code == 1
    written = [path for top in (folder, home / f"to{EVIL}") for path in top.rglob("*.*")]
    texts = [
        path for path in written if path.suffix in (".log", ".yaml", ".json", ".jsonl", ".html")
    ]
    assert len(texts) >= 10
    assert [path.name for path in texts if not clean(path.read_text("utf-8"))] == []


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "coco"])
def test_captions_of_hostile_names(home: Path, format: str) -> None:
    bad = os.fsdecode(b"bad\xff\x9b.png")
    result = run("caption", f"data{EVIL}", f"no{EVIL}", bad, "--format", format)
    assert result.exit_code == 1
    assert result.stderr.count("captioner: ") == 4
    out = f"out.{ {'text': 'tsv', 'coco': 'json'}.get(format, format) }"
    assert run("caption", f"data{EVIL}", f"no{EVIL}", bad, "--output", out).exit_code == 1
    assert clean((home / out).read_text("utf-8"))
    assert clean((home / "errors.jsonl").read_text("utf-8"))
    assert run("caption", f"data{EVIL}", bad, "--output", "x.jsonl", "--on-error", "fail")


def test_scores_and_comparisons_of_hostile_files(home: Path) -> None:
    rows = [
        {
            "file_name": f"{EVIL}{n}",
            "image_id": f"{EVIL}{n}",
            "caption": f"{EVIL} {n}",
            "references": [EVIL],
        }
        for n in range(20)
    ]
    for name, some in ((f"a{EVIL}", rows), (f"b{EVIL}", rows[:-1]), (f"c{EVIL}", rows[:2])):
        Path(name).mkdir(exist_ok=True)
        text = "".join(
            json.dumps({**row, "caption": f"{row['caption']} {name}"}) + "\n" for row in some
        )
        Path(name, "predictions.jsonl").write_text(text)
        signature = f"bleu4|refs:2|decode:{EVIL}|n:{len(some)}|split:{EVIL}"
        Path(name, "scores.json").write_text(json.dumps({"bleu_4": {"signature": signature}}))
    assert run("score", f"a{EVIL}").exit_code == 0
    assert run("score", f"a{EVIL}", f"b{EVIL}").exit_code == 1
    assert run("compare", f"a{EVIL}", f"b{EVIL}").exit_code == 1
    assert run("compare", f"a{EVIL}", f"a{EVIL}", "--output", f"cmp{EVIL}.json").exit_code == 0
    assert clean(Path(f"cmp{EVIL}.json").read_text("utf-8"))
    for suffix in ("json", "jsonl", "csv", "tsv", "txt"):
        hostile = Path(f"h{EVIL}.{suffix}")
        for content in (
            EVIL,
            json.dumps([EVIL]),
            json.dumps({EVIL: EVIL}),
            f"{EVIL},b\n{EVIL}\n",
            "a\xff",
        ):
            hostile.write_bytes(
                content.encode("latin-1", "replace") + b"\xff" * (content == "a\xff")
            )
            assert run("score", str(hostile), f"a{EVIL}").exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        (f"--{EVIL}",),
        (EVIL,),
        ("caption", f"--{EVIL}"),
        ("caption", "x", "--format", EVIL),
        ("caption", "x", "--beam-size", EVIL),
        ("caption", "x", "--template", EVIL),
        ("caption", "x", "--map", EVIL),
        ("caption", "x", "--existing", EVIL),
        ("caption", "x", "--device", EVIL),
        ("caption", "x", "--model", EVIL),
        ("caption", "x", "--precision", EVIL),
        ("caption", "x", "--output", f"{EVIL}/"),
        ("caption", f"pipe:false {EVIL}"),
        ("train", EVIL),
        ("train", "--set", EVIL),
        ("train", "--set", f"{EVIL}.{EVIL}={EVIL}"),
        ("train", "--set", f"data.root={EVIL}"),
        ("train", "--set", f"data.{EVIL}=1"),
        ("train", "--set", f"encoder.weights='{EVIL}'"),
        ("train", "--set", f"encoder.backbone='{EVIL}'"),
        ("train", "--set", f"training.epochs='{EVIL}'"),
        ("evaluate", "--data", EVIL),
        ("score", EVIL),
        ("compare", EVIL, EVIL),
        ("score", "hostile.yaml", "--metrics", EVIL),
    ],
)
@pytest.mark.parametrize("size", [1, 20_000])
def test_hostile_arguments_are_refused_in_few_characters(words: tuple[str, ...], size: int) -> None:
    longest = 100_000 if "--output" in words or "pipe" in words[-1] else size
    result = run(*(word.replace(EVIL, EVIL * min(size, longest)) for word in words))
    assert result.exit_code in (1, 2)
    assert result.stderr
    assert len(result.stderr) < 3000


def test_a_setting_of_megabytes_is_shown_short(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    for text in (
        f"data: {'x' * 1_000_000}",
        f"'{'k' * 1_000_000}': 1",
        f"data:\n  '{'k' * 1_000_000}': 1",
        f"data:\n  root: 1{'0' * 1_000_000}",
        "x" * 1_000_000,
        "[" * 10_000,
        "a: [" + "&a [1]," * 9,
    ):
        path.write_text(text)
        result = run("train", str(path))
        assert result.exit_code == 2
        assert len(result.stderr) < 1000


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    wrong = "".join(f"  wrong{n}: 1\n" for n in range(99))
    path.write_text("".join(f"{name}:\n{wrong}" for name in ("data", "text", "training")))
    result = run("train", str(path))
    lines = result.stderr.splitlines()
    assert "297 mistake(s)" in lines[0]
    assert lines[-1] == "... and 199 more"
    assert len(lines) < 110


def test_a_file_name_that_is_no_text_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    for name in ([2], {"a": 1}, 7, True):
        content = {
            "annotations": [{"image_id": 1, "caption": "a dog"}],
            "images": [{"id": 1, "file_name": name}],
        }
        path.write_text(json.dumps(content))
        assert run("score", str(path), str(path)).exit_code == 0
