"""`captioner data` as a user types it: text, JSON and the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from captioner.cli import main
from captioner.config import bundled

import toys

HOSTILE = '<b>bold</b> "quotes" \x1b[31m'


def data(*words: object) -> Result:
    result = CliRunner().invoke(main, ["data", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Return a data set with a leak, a broken picture and an unusable row."""
    folder = tmp_path / "messy"
    for number, colour in enumerate(toys.COLOURS):
        toys.draw(folder / f"{number}.png", colour, shade=number)
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "6.png").write_bytes((folder / "1.png").read_bytes()[:-40])
    rows: list[dict[str, Any]] = [
        {"file_name": f"{number}.png", "split": split, "captions": captions}
        for number, (split, captions) in enumerate(
            [
                ("train", ["a red square", "A red square ."]),
                ("train", ["a green square", HOSTILE]),
                ("train", ["a blue square"]),
                ("train", ["a white square"]),
                ("dev", ["a black square"]),
                ("dev", ["a red square"]),
                ("test", ["a broken square"]),
                ("test", ["a missing square"]),
            ]
        )
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "captions.jsonl").write_text(text)
    return folder


def test_the_text_says_what_is_wrong(messy: Path) -> None:
    text = data(messy).stdout
    assert "train              4          6" in text
    assert "1 missing image" in text
    assert re.search(r"leakage +1 picture\(s\) stand in more than one split", text)
    assert "0.png (train) = 5.png (dev)" in text
    assert "50.0% of the captions in dev stand in train, word for word" in text
    assert "1 caption(s) have the tokens of another of their image" in text
    assert "7 (headers read; --images decodes them): PNG 7" in text
    assert "broken     0 picture(s)" in text
    assert "\x1b" not in text
    decoded = data(messy, "--images").stdout
    assert "broken     1 picture(s)" in decoded
    assert "6.png: damaged image" in decoded


def test_json_holds_all_findings(messy: Path) -> None:
    found = json.loads(data(messy, "--images", "--json").stdout)
    assert found["splits"]["dev"]["images"] == 2
    assert found["splits"]["dev"]["captions_word_for_word_in_train"] == 0.5
    assert [each["kind"] for each in found["problems"]] == ["missing image"]
    assert [each["image"] for each in found["pictures"]["broken"]] == ["6.png"]
    [group] = found["pictures"]["same_content"]
    assert [(each["image"], each["split"]) for each in group] == [
        ("0.png", "train"),
        ("5.png", "dev"),
    ]
    assert found["vocabulary"]["coverage"][0]["unknown"]["dev"] == pytest.approx(1 / 6)
    assert found["suggestions"] == []


def test_the_page_shows_everything_and_asks_nobody(messy: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    result = data(messy, "--images", "--html", page)
    assert f"wrote {page}" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert "//" not in re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    policy = re.search(r"style-src 'sha256-([^']+)'", text)
    assert style and policy
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() == policy[1]
    assert "<script" not in text and "style=" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text and "\x1b" not in text
    assert text.count('<article class="card">') == 7
    assert text.count("cannot be read") == 1  # the broken one
    assert "same content, in several splits" in text
    assert "6.png: damaged image" in text
    assert "0.png (train) = 5.png (dev)" in text
    assert data(messy, "--html", page).exit_code == 0  # in place of its own
    page.write_text("<p>mine</p>")
    refused = data(messy, "--html", page)
    assert refused.exit_code == 2
    assert "not a page of a data set that captioner wrote" in refused.stderr
    assert refused.stdout == ""  # before any work


def test_the_drawn_scenes_are_the_default() -> None:
    assert data("--json").stdout == data(bundled("data/scenes"), "--json").stdout


def test_a_page_of_one_split_and_of_captions_without_words(tmp_path: Path) -> None:
    toys.draw(tmp_path / "set" / "train" / "1.png", "red")
    (tmp_path / "set" / "train" / "1.txt").write_text("one\n")
    page = tmp_path / "page.html"
    text = data(tmp_path / "set", "--html", page).stdout
    assert "train: 1 an image; 1, 1, 1 tokens" in text
    assert "suggestion: 100% of the captions in train are one token" in text
    assert '<polyline class="line second"' not in page.read_text()
    toys.draw(tmp_path / "set" / "dev" / "2.png", "red")
    # A digit of its own is a letter to the reader and no token to the tokeniser.
    (tmp_path / "set" / "dev" / "2.txt").write_text("𝟙\n")
    text = data(tmp_path / "set", "--html", page).stdout
    assert "1 caption(s) have no word and are left out" in text
    assert "dev: 1 an image; 0, 0, 0 tokens" in text


def test_settings_of_train_apply_and_others_are_refused(messy: Path) -> None:
    assert "(text.min_count)" in data(messy, "--set", "text.min_count=4").stdout
    named = data(
        "--set",
        f"data.root={messy}",
        "--set",
        "data.split_train=dev",
        "--set",
        "data.split_dev=test",
    ).stdout
    assert "stand in dev, word for word" in named
    strict = data(messy, "--set", "data.strict=true")
    assert (strict.exit_code, strict.stdout) == (1, "")
    other = data(messy, "--set", "training.epochs=3")
    assert other.exit_code == 2
    assert "--set training.epochs: only settings of data and text are used" in other.stderr


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    missing = data(tmp_path / "none")
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    toys.draw(tmp_path / "set" / "1.png", "red")
    (tmp_path / "set" / "1.txt").write_text("☃1\n")
    assert data(tmp_path / "set", "--export", tmp_path / "x.csv").exit_code == 2


def test_the_export_is_announced(messy: Path, tmp_path: Path) -> None:
    result = data(messy, "--export", tmp_path / "all.jsonl")
    assert f"wrote {tmp_path / 'all.jsonl'}" in result.stderr
    again = json.loads(data(tmp_path / "all.jsonl", "--json").stdout)
    assert again["splits"] == json.loads(data(messy, "--json").stdout)["splits"]
