"""`captioner score` and `captioner compare` as people type them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import captioner
from captioner.cli import main
from captioner.metrics import METRICS

SAID = ["a dog runs on the grass", "two men play a game", "a red car on a road"]
TRUE = [
    ["a dog is running on the grass", "two men are playing a game", "a car on a road"],
    ["the dog runs on grass", "men play football", "a red car drives down the road"],
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hyp.txt").write_text("\n".join(SAID) + "\n")
    for number, lines in enumerate(TRUE, start=1):
        (tmp_path / f"ref{number}.txt").write_text("\n".join(lines) + "\n")
    for name, captions in (("a", ["a cat", "a cat", SAID[2]]), ("b", SAID)):
        (tmp_path / name).mkdir()
        rows = [
            {"image_id": f"<{i}>", "caption": c, "references": [TRUE[0][i], TRUE[1][i]]}
            for i, c in enumerate(captions)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "predictions.jsonl").write_text(text)
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_score_prints_aligned_scores_with_intervals_and_signatures(here):
    result = run("score", "hyp.txt", "ref1.txt", "ref2.txt", "--output", "scores.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    scores = dict(line.split(maxsplit=1) for line in lines if "+-" in line)
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert all(re.fullmatch(r"\d\.\d{3} \+- \d\.\d{3} \(95%\)", score) for score in scores.values())
    assert len({line.index("+-") for line in lines if "+-" in line}) == 1
    assert any(line.startswith("bleu1,bleu2,bleu3,bleu4|refs:2|tok:ptb") for line in lines)
    assert "3 images matched by line with 2 reference files" in result.stderr
    stored = json.loads((here / "scores.json").read_text())
    words = stored.pop("word_use")
    assert words["captions"] == {
        **{"captions": 3, "different_captions": 3, "words": 13, "content_words": 5},
        **{"content_words_used": 5, "distinct_1": 13 / 17, "distinct_2": 1.0},
    }
    assert words["first_references"]["content_words"] == 0  # one other reference an image
    assert "captions       3 of 3 different (first references: 3 of 3 different)" in lines
    assert lines[-1].startswith("content_words  5 of 5, 100.0% (first references: ")
    assert stored.keys() == scores.keys()
    for name, entry in stored.items():
        assert scores[name].startswith(f"{entry['value']:.3f}")
        assert entry["signature"].startswith(name.replace("_", "") + "|refs:2|")
        assert len(entry["interval"]) == 2


def test_score_follows_its_options():
    first = run("score", "a", "--metrics", "ROUGE_L, cider_d", "--resamples", "0")
    assert first.exit_code == 0, first.output
    assert [line.split()[0] for line in first.stdout.splitlines()[:2]] == ["rouge_l", "cider_d"]
    assert "+-" not in first.stdout
    assert "their own references in a/predictions.jsonl" in first.stderr
    intervals = []
    for seed in "001":
        run("score", "a", "--resamples", "5", "--seed", seed, "--output", "s.json")
        intervals.append(json.loads(Path("s.json").read_text())["bleu_1"]["interval"])
    assert intervals[0] == intervals[1] != intervals[2]


def test_score_without_java_still_gives_the_other_scores(monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = run("score", "a", "--metrics", "bleu,meteor,spice", "--output", "out.json")
    assert result.exit_code == 0, result.output
    undefined = [line for line in result.stdout.splitlines() if "undefined" in line]
    assert [line.split()[0] for line in undefined] == ["meteor", "spice"]
    assert "bleu_4" in result.stdout
    stored = json.loads(Path("out.json").read_text())
    assert stored["meteor"]["value"] is None and stored["bleu_4"]["value"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["score", "hyp.txt"], 1, "no references in the file; give reference files"),
        (["score", "hyp.txt", "a"], 1, "has image ids"),
        (["score", "hyp.txt", "nothing.txt"], 2, "does not exist"),
        (["score", "a", "--metrics", "blue"], 2, "metrics: unknown blue; choose from bleu"),
        (["score", "a", "--metrics", ","], 2, "--metrics: name at least one"),
        (["compare", "a", "hyp.txt"], 1, "has image ids"),
        (["compare", "a", "b", "--resamples", "0"], 2, "needs at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(words, code, says):
    result = run(*words)
    assert result.exit_code == code
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_empty_captions_are_scored_and_told(here):
    (here / "hyp.txt").write_text(SAID[0] + "\n\n...\n")
    result = run("score", "hyp.txt", "ref1.txt")
    assert result.exit_code == 0
    assert "2 captions are empty and score 0" in result.stderr


def test_compare_shows_table_changes_and_verdict(here):
    result = run("compare", "a", "b", "--examples", "1", "--output", "c.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["A: a/predictions.jsonl", "B: b/predictions.jsonl"]
    row = next(line for line in lines if line.startswith("bleu_1 "))
    assert re.search(r"0\.\d{3}  1\.000  \+0\.\d{3} \+- 0\.\d{3} \(95%\)  0\.\d{3}", row)
    assert lines.count("          A  a cat") == 1  # one example; nothing got worse
    assert "improved most (cider, B - A)" in lines
    assert not any("got worse" in line for line in lines)
    assert lines[-1].startswith("Verdict: ")
    assert any(line.startswith("cider|refs:2|") for line in lines)
    stored = json.loads((here / "c.json").read_text())
    assert stored["bleu_1"]["difference"] == stored["bleu_1"]["b"] - stored["bleu_1"]["a"] > 0
    assert {"interval", "p_bootstrap", "p_randomization", "signature"} <= stored["cider"].keys()
    assert stored["verdict"] == lines[-1].removeprefix("Verdict: ")
    assert stored["improved"][0]["a"] == "a cat" and stored["worsened"] == []


def test_compare_takes_references_and_says_what_is_undefined(monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = ["compare", "hyp.txt", "hyp.txt", "--metrics", "bleu,meteor", "--resamples", "10"]
    result = run(*words, "--references", "ref1.txt", "--references", "ref2.txt")
    assert result.exit_code == 0, result.output
    assert "bleu_1" in result.stdout and "meteor: undefined (METEOR needs" in result.stdout
    assert "the same" in result.stdout
    assert result.stdout.endswith("Verdict: A and B score the same on every image.\n")


@pytest.mark.parametrize("words", [["score", "a"], ["compare", "a", "b"]])
def test_scoring_files_does_not_import_torch(words):
    code = (
        "import sys; from captioner.cli import main\n"
        f"main({words!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(captioner.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "bleu_4" in done.stdout


@pytest.mark.parametrize("verb", ["score", "compare"])
def test_help_names_every_metric(verb):
    words = re.findall(r"\w+", run(verb, "--help").stdout)
    assert [name for name in METRICS if name not in words] == []


def test_compare_takes_any_number_of_systems(here):
    result = run("compare", "a", "b", "a", "--metrics", "bleu", "--output", "c.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[2] == "C: a/predictions.jsonl"
    assert next(line for line in lines if line.startswith("B  ")).split()[1] == "1.000"
    assert (
        lines[-1] == "  B, C: " + json.loads((here / "c.json").read_text())["pairs"][2]["verdict"]
    )
    assert "  A, C: A and C score the same on every image." in lines
    shown = {line.split()[0]: line.split()[1:] for line in lines[4:10]}
    bleu = [float(shown[name][3]) for name in "ABC"]
    assert float(shown["mean"][3]) == pytest.approx(np.mean(bleu), abs=1e-3)
    assert float(shown["std"][3]) == pytest.approx(np.std(bleu, ddof=1), abs=1e-3)
    saved = json.loads((here / "c.json").read_text())
    assert saved["std"]["bleu_4"] == pytest.approx(float(shown["std"][3]), abs=1e-3)
    again = run("compare", "a", "b", "a", "--metrics", "bleu", "--output", "c.json")
    assert again.exit_code == 0, again.output  # captioner replaces what it wrote
    alone = run("compare", "a")
    assert alone.exit_code == 2 and "two systems or more" in alone.stderr


def test_all_metrics_are_a_choice(monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = run("score", "a", "--metrics", "all", "--resamples", "0")
    assert result.exit_code == 0, result.output
    shown = {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert {"bleu_4", "rouge_l", "cider", "cider_d", "meteor", "spice"} <= shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_path(here):
    result = run("score", "a", "--resamples", "0", "--output", "/dev/full")
    assert result.exit_code == 1
    assert "/dev/full: No space left" in result.stderr
