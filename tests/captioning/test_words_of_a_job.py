"""A job with words: the journal holds them, and other settings are another job."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

from captioner.captioner import Captioner
from captioner.captioning.job import caption_to_file
from captioner.captioning.journal import journals_of
from captioner.captioning.sources import list_images
from captioner.cli import main
from captioner.errors import ConfigError

import toys

IMAGES = 18


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and pictures, one of them broken."""
    toys.captioner().save(tmp_path / "model")
    for number in range(IMAGES):
        colour = list(toys.COLOURS)[number % len(toys.COLOURS)]
        toys.draw(tmp_path / "pictures" / f"{number:02}.png", colour, 5 * number)
    (tmp_path / "pictures" / "07.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def work(output: Path, stop_after: int = 0, **wish: object) -> None:
    made = 0

    def tell(_: object) -> None:
        nonlocal made
        made += 1
        if made == stop_after:
            raise KeyboardInterrupt

    captioner = Captioner.load("model", "cpu")
    options = toys.options(captioner, batch_size=4, n_best=2, **wish)
    items = list_images(["pictures"])
    caption_to_file(lambda: captioner, items, output, *options, model="toy", tell=tell)


def middle(**wish: object) -> float:
    """A confidence that some of the captions have, and others have not."""
    captioner = Captioner.load("model", "cpu")
    images = sorted(set(Path("pictures").iterdir()) - {Path("pictures/07.png")})
    options = captioner.settings(**wish)
    found = captioner.search(captioner.encode(images), options, words=True)
    return median(caption.confidence for [caption] in found) + 1e-5


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("search", ["beam", "sample"])
def test_an_interrupted_job_ends_with_the_same_bytes(search: str, words: bool, here: Path) -> None:
    asked = {"words": True} if words else {"min_confidence": middle(search=search)}
    work(here / "whole.jsonl", search=search, **asked)
    whole = (here / "whole.jsonl").read_bytes()
    for stop_after in (1, 6, 13):
        output = here / f"{stop_after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            work(output, stop_after, search=search, **asked)
        assert not output.exists()
        work(output, search=search, **asked)
        assert output.read_bytes() == whole
    rows = [json.loads(line) for line in whole.splitlines()]
    if words:
        for row in rows:
            for caption in row["n_best"]:
                total = sum(log_prob for _, log_prob in caption["words"])
                assert total == pytest.approx(caption["log_prob"], abs=1e-5)
            assert row.get("words") == (row["n_best"][0]["words"] if row["n_best"] else None)
    else:
        assert {row.get("confident") for row in rows} == {True, False, None}
        assert not any("words" in row for row in rows)


def test_words_before_or_now_is_another_job(here: Path) -> None:
    output = here / "out.jsonl"
    work(output)
    before = output.read_bytes()
    for asked in ({"words": True}, {"min_confidence": 0.5}):
        with pytest.raises(ConfigError, match=r"\(without --words, --min-confidence\)"):
            work(output, **asked)
        assert output.read_bytes() == before
    work(output, overwrite=True, words=True)
    with pytest.raises(ConfigError, match=r"settings \(with --words or --min-confidence\)"):
        work(output)


def test_another_confidence_captions_nothing_again(here: Path) -> None:
    command = ["caption", "pictures", "--model", "model", "--output", "out.jsonl"]
    marks = []
    for least in ("0", f"{middle():.5f}", "1"):
        done = CliRunner().invoke(main, [*command, "--min-confidence", least])
        rows = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
        unsure = [row.get("confident") for row in rows].count(False)
        said = f"{unsure:,} of {IMAGES - 1} caption(s) are not confident: below {float(least):g}\n"
        assert done.stderr.endswith(said) or said in done.stderr
        assert (f"({IMAGES} in earlier runs)" in done.stderr) == bool(marks)
        marks.append(unsure)
    assert marks[0] == 0 < marks[1] < marks[2] == IMAGES - 1


def test_a_job_without_words_is_what_it_was(here: Path) -> None:
    """The identity seals the rows of journals: a new setting must not change the old ones."""
    work(here / "out.jsonl")
    [journal] = journals_of(here / "out.jsonl")
    with sqlite3.connect(journal) as db:
        [(identity,)] = db.execute("SELECT identity FROM job")
        [(row,)] = db.execute("SELECT row FROM records LIMIT 1")
    assert "words" not in json.loads(identity)
    assert {len(caption) for caption in json.loads(row)[0]} <= {4}
