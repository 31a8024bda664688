"""A job loads the model, and torch, only for what its journal lacks; nothing else changes."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.captioner import Captioner
from captioner.cli import main

import toys

JOB = ("caption", "pictures", "--model", "model", "--output", "out.jsonl", "--batch-size", "4")
FILES = ("out.jsonl", "errors.jsonl")
WITHOUT_TORCH = """
import json, sys
from captioner.cli import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted({"torch", "torchvision"} & sys.modules.keys())))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a model, ten pictures, one of them broken, and a finished job."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("model", "other"):
        toys.captioner(toys.encoder()).save(folder / name)
    for number in range(10):
        toys.draw(folder / "pictures" / f"{number}.png", list(toys.COLOURS)[number % 6], number)
    (folder / "pictures" / "7.png").write_bytes(b"no picture")
    with toys.inside(folder):
        assert run(*JOB).exit_code == 1
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def loads(monkeypatch) -> list[int]:
    """Grows with each model that is loaded."""
    loaded: list[int] = []
    load = Captioner.load.__func__

    def counted(cls, *args, **named):
        loaded.append(1)
        return load(cls, *args, **named)

    monkeypatch.setattr(Captioner, "load", classmethod(counted))
    return loaded


def run(*words: str):
    return CliRunner().invoke(main, list(words))


def outcome(*words: str) -> tuple[int, str, dict[str, bytes]]:
    """Exit code, messages without the rate, and files."""
    done = run(*words)
    said = re.sub(r"[\d,.]+ images per second", "", done.stderr)
    return done.exit_code, said, {f: Path(f).read_bytes() for f in FILES if Path(f).exists()}


def nothing() -> None:
    pass


def changed() -> None:
    toys.draw(Path("pictures/3.png"), "white", 77)


def touched() -> None:
    os.utime("pictures/3.png", (1, 1))


def new() -> None:
    toys.draw(Path("pictures/99.png"), "red", 99)


def removed() -> None:
    Path("pictures/3.png").unlink()


def renamed() -> None:
    Path("pictures/3.png").rename("pictures/three.png")


def mended() -> None:
    toys.draw(Path("pictures/7.png"), "blue", 1)


def unreadable() -> None:
    Path("pictures/3.png").unlink()
    Path("pictures/3.png").symlink_to("nowhere")


def another_model() -> None:
    shutil.rmtree("model")
    toys.captioner(toys.encoder(), hidden_size=16).save("model")


def no_model() -> None:
    shutil.rmtree("model")


def damaged_model() -> None:
    Path("model/config.json").write_text("{}")


def edited() -> None:
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    rows[0]["caption"] = "mine"
    Path("out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def no_output() -> None:
    Path("out.jsonl").unlink()


def foreign_output() -> None:
    Path("out.jsonl").write_text("mine")


def foreign_journal() -> None:
    Path("out.jsonl.journal").write_text("mine")


def no_journal() -> None:
    Path("out.jsonl.journal").unlink()


def no_failures() -> None:
    Path("errors.jsonl").unlink()


def unfinished() -> None:
    with sqlite3.connect("out.jsonl.journal") as db:
        db.execute("DELETE FROM records WHERE name >= ?", (b"pictures/5.png",))
    Path("out.jsonl").unlink()


def wrong_row() -> None:
    with sqlite3.connect("out.jsonl.journal") as db:
        db.execute("UPDATE records SET row = 'x' WHERE name = ?", (b"pictures/5.png",))


@pytest.mark.parametrize(
    ("change", "options", "needs_model"),
    [
        (nothing, (), False),
        (touched, (), False),
        (removed, (), False),
        (edited, (), False),
        (no_output, (), False),
        (foreign_output, (), False),
        (foreign_journal, (), False),
        (no_failures, (), False),
        (nothing, ("--format", "csv"), False),
        (nothing, ("--device", "cpu"), False),
        (nothing, ("--num-workers", "2", "--max-memory", "64M"), False),
        (nothing, ("--no-such-option",), False),
        (no_model, (), False),
        (damaged_model, (), False),
        (changed, (), True),
        (new, (), True),
        (renamed, (), True),
        (mended, (), True),
        (unreadable, (), True),
        (another_model, (), True),
        (no_journal, (), True),
        (unfinished, (), True),
        (nothing, ("--beam-size", "2"), True),
        (nothing, ("--n-best", "2"), True),
        (nothing, ("--max-pixels", "1000"), True),
        (nothing, ("--model", "other"), True),
        (nothing, ("--search", "sample"), True),
        (nothing, ("--retry-errors",), True),
        (nothing, ("--on-error", "fail"), True),
        (nothing, ("--overwrite",), True),
        (nothing, ("--device", "banana"), False),
    ],
)
def test_the_outcome_is_that_of_a_job_that_loads_the_model_first(
    change, options, needs_model, here, loads
):
    change()
    shutil.copytree(here, here.with_name("again"), symlinks=True)
    found = outcome(*JOB, *options)
    assert bool(loads) == needs_model
    os.chdir(here.with_name("again"))
    first = () if "--overwrite" in options else ("--salvage",)  # which loads the model first
    assert outcome(*JOB, *options, *first) == found


def test_a_damaged_journal_is_refused_without_the_model(here, loads):
    wrong_row()
    code, said, files = outcome(*JOB)
    assert code == 1
    assert "damaged journal (the checksum of a row does not match); --salvage" in said
    assert not loads
    assert outcome(*JOB, "--salvage")[2] == files
    assert loads


def test_a_model_that_is_replaced_meanwhile_captions_nothing(here, loads, monkeypatch):
    new()
    load = Captioner.load.__func__

    def replaced(cls, *args, **named):
        another_model()
        return load(cls, *args, **named)

    monkeypatch.setattr(Captioner, "load", classmethod(replaced))
    before = Path("out.jsonl").read_bytes()
    code, said, files = outcome(*JOB)
    assert (code, files["out.jsonl"]) == (1, before)
    assert "the model changed meanwhile; run the same command again" in said


@pytest.mark.parametrize(
    ("source", "needs_model"),
    [("zip", False), ("tar", False), ("tar.gz", True), ("csv", False), ("empty", False)],
)
def test_archives_and_tables(source, needs_model, here, loads):
    names = sorted(str(path) for path in Path("pictures").iterdir())
    place = f"images.{source}"
    if source == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name in names:
                archive.write(name)
    elif source.startswith("tar"):
        with tarfile.open(place, f"w:{source[4:]}") as archive:
            for name in names:
                archive.add(name)
    elif source == "csv":
        rows = "".join(f"{name},id{number}\n" for number, name in enumerate(names))
        Path(place).write_text(f"image,image_id\n{rows}")
    else:
        Path(place).mkdir()
    job = ("caption", place, "--model", "model", "--output", "out2.jsonl")
    assert run(*job).exit_code == 1
    before = Path("out2.jsonl").read_bytes()
    loads.clear()
    done = run(*job)
    assert done.exit_code == 0, done.output
    assert "nothing new; 1 known failure(s)" in done.stderr
    assert Path("out2.jsonl").read_bytes() == before
    assert bool(loads) == needs_model


def test_paths_on_stdin_load_the_model_first(here, loads):
    names = "".join(f"{path}\n" for path in sorted(Path("pictures").iterdir()))
    job = ("caption", "-", "--model", "model", "--output", "out.jsonl")
    assert CliRunner().invoke(main, job, input=names).exit_code == 0
    assert loads


@pytest.mark.parametrize(
    "words", [JOB, ("caption", "pictures", "--model", "model", "--format", "txt")]
)
def test_a_finished_job_imports_no_torch(words, here):
    Path("pictures/7.png").unlink()
    run(*words)
    before = {path: path.read_bytes() for path in here.rglob("*.txt")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    assert "9 image(s) (9 in earlier runs)" in done.stderr or "9 skipped" in done.stderr
    assert before == {path: path.read_bytes() for path in here.rglob("*.txt")}
