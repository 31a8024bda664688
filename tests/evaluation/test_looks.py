"""A trained model looks at what it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.captioner import Captioner
from captioner.config import bundled, load_config
from captioner.evaluation.evaluate import evaluate
from captioner.training.run import train

PICTURES = {"train": 300, "dev": 100}


@pytest.mark.slow
def test_a_word_for_a_thing_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most captions are wrong after so few steps; where the model looks is right by then."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    scenes, left, lines = bundled("data/scenes"), dict(PICTURES), []
    for line in (scenes / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if left.get(record["split"]):
            left[record["split"]] -= 1
            lines.append(json.dumps(record | {"file_name": str(scenes / record["file_name"])}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(
        "scenes",
        [
            f"data.root={tmp_path}",
            "decoder.attention=spatial",
            "encoder.image_size=96",  # at 64 pixels each place knows most of the image
            "training.epochs=8",
        ],
    )
    train(config, tmp_path / "run", device="cpu")
    captioner = Captioner.load(tmp_path / "run", "cpu")
    result = evaluate(captioner, config, tmp_path / "scores", split="dev", resamples=10)
    two = result.pointing["different_things"]
    assert two.words > 100
    assert two.accuracy > 0.8  # 0.95 with this seed
    assert two.chance < 0.25
    assert two.largest_thing < 0.7
    stored = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert stored["pointing"]["different_things"]["accuracy"] == two.accuracy
