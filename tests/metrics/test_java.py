"""METEOR is Java's own; where Java, the package or the models are missing, one line says so."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
import types

import numpy as np
import pytest

from captioner.metrics import score_captions
from captioner.metrics.java import Meteor, Spice

pytestmark = pytest.mark.slow

REFERENCES = [
    [c.split() for c in captions]
    for captions in (
        ["a dog runs on the grass", "a brown dog is running through grass"],
        ["two men play football", "men playing soccer on a field"],
        ["a girl smiles", "a girl"],
    )
]
HYPOTHESES = [c.split() for c in ("a dog is running on grass", "two men in a field", "a girl")]


def test_meteor_equals_the_official_scorer() -> None:
    official = pytest.importorskip("pycocoevalcap.meteor.meteor")
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    scorer = official.Meteor()
    corpus, per_image = scorer.compute_score(
        {i: [" ".join(c) for c in captions] for i, captions in enumerate(REFERENCES)},
        {i: [" ".join(caption)] for i, caption in enumerate(HYPOTHESES)},
    )
    scorer.meteor_p.stdout.close()
    scorer.meteor_p.stderr.close()
    score = score_captions(HYPOTHESES, REFERENCES, metrics=["meteor"], resamples=100)["meteor"]
    assert score.value == pytest.approx(corpus, abs=1e-9)
    np.testing.assert_allclose(score.per_image, per_image, atol=1e-9)
    assert score.interval[0] <= score.value <= score.interval[1]
    assert score.note == ""


# The statistics METEOR 1.5 printed for the captions above, and its scores for them.
STATISTICS = [
    [6, 6, 3, 3, 2, 2, 2, 2, 1, 1, *[0] * 10, 3, 5, 5],
    [5, 6, 3, 2, 2, 2, 1, 1, *[0] * 12, 2, 3, 3],
]
METEOR = [0.37425524545742395, 0.23601107711522595]


def test_meteor_combines_matches_as_java_does() -> None:
    metric = Meteor(REFERENCES)
    np.testing.assert_allclose(metric.combine(np.array(STATISTICS, float))[:, 0], METEOR, atol=1e-9)
    assert metric.combine(np.zeros(23)).tolist() == [0]


@pytest.mark.parametrize("name", ["meteor", "spice"])
@pytest.mark.parametrize("missing", ["java", "pycocoevalcap"])
def test_what_is_missing_is_said_and_other_scores_still_come(
    name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    there = None if missing == "pycocoevalcap" else real("captioner")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: there if n == "pycocoevalcap" else real(n, *a)
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    scores = score_captions(HYPOTHESES, REFERENCES, metrics=[name, "bleu"], resamples=10)
    assert math.isnan(scores[name].value)
    assert scores[name].interval is None
    assert missing in scores[name].note.lower()
    assert "\n" not in scores[name].note
    assert scores["bleu_1"].value > 0


@pytest.mark.parametrize(
    ("script", "mode", "note"),
    [
        ("cat > /dev/null\necho Error: no room >&2\nexit 1", 0o755, "Error: no room"),
        (f"cat > /dev/null\nfor i in 1 2 3; do echo{' x' * 23}; done", 0o755, "could not convert"),
        ("exit 0", 0o755, ""),  # closes its standard input at once
        ("", 0o644, "ermission denied"),
    ],
)
def test_meteor_that_fails_says_its_last_line(
    tmp_path, monkeypatch: pytest.MonkeyPatch, script: str, mode: int, note: str
) -> None:
    (tmp_path / "meteor").mkdir()
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if mode == 0o755 else str(tmp_path))
    monkeypatch.setattr("captioner.metrics.java._missing", lambda _: "")
    monkeypatch.setattr("captioner.metrics.java._package", lambda: tmp_path)
    score = score_captions(HYPOTHESES, REFERENCES, metrics=["meteor"], resamples=10)["meteor"]
    assert score.note.startswith("METEOR failed: ")
    assert note in score.note
    assert math.isnan(score.value)


def test_spice_without_its_models_says_how_to_get_them(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.metrics.java._missing", lambda _: "")
    monkeypatch.setattr("captioner.metrics.java._package", lambda: tmp_path)
    assert "get_stanford_models" in Spice(REFERENCES).note


@pytest.mark.parametrize("value", [math.nan, None, KeyError("All")])
def test_spice_without_a_number_is_undefined_and_says_so(
    tmp_path, monkeypatch: pytest.MonkeyPatch, value
) -> None:
    class Stub:
        def compute_score(self, truths, written):
            if isinstance(value, Exception):
                raise value
            return 0.0, [{"All": {"f": f}} for f in (0.5, value, 0.0)]

    package = types.ModuleType("pycocoevalcap.spice.spice")
    package.Spice = Stub
    monkeypatch.setitem(sys.modules, "pycocoevalcap", types.ModuleType("pycocoevalcap"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice", types.ModuleType("spice"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", package)
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr("captioner.metrics.java._missing", lambda _: "")
    monkeypatch.setattr("captioner.metrics.java._package", lambda: tmp_path)
    score = score_captions(HYPOTHESES, REFERENCES, metrics=["spice"])["spice"]
    assert math.isnan(score.value)
    assert score.note.startswith("SPICE failed: ")


def test_spice_averages_the_official_f_scores(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = pytest.importorskip("pycocoevalcap.spice.spice")
    asked = []

    class Stub:
        def compute_score(self, truths, written):
            asked.append((truths, written))
            return 0.0, [{"All": {"f": f}} for f in (0.5, 0.25, 0.0)]

    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr("captioner.metrics.java._missing", lambda _: "")
    monkeypatch.setattr("captioner.metrics.java._package", lambda: tmp_path)
    monkeypatch.setattr(official, "Spice", Stub)
    score = score_captions(HYPOTHESES, REFERENCES, metrics=["spice"])["spice"]
    assert score.value == 0.25
    assert score.per_image.tolist() == [0.5, 0.25, 0.0]
    assert asked[0][0][2] == ["a girl smiles", "a girl"]
    assert asked[0][1][2] == ["a girl"]
