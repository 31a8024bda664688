"""Trains a model that travels with the package; `train_scenes_model.py` shows how.

A bundled model is a small run directory in `models/`: the model in fp16, whose card holds the
scores of what was written, `config.yaml` (so that `captioner evaluate --model scenes` finds the
data) and the epochs of `metrics.jsonl` (so that `captioner models` shows the scores).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from captioner.captioner import Captioner
from captioner.config import Config, load_config, resolve_path
from captioner.encoder.weights import read_state_dict
from captioner.evaluation.evaluate import evaluate
from captioner.model_card import Results, add_results, without_folders
from captioner.system.ownership import CARD
from captioner.training.run import train

ROOT = Path(__file__).resolve().parent.parent


def bundle(
    name: str,
    config: str,
    overrides: Iterable[str] = (),
    *,
    most_bytes: int,
    splits: Iterable[str] = ("dev",),
) -> None:
    """Train a configuration on the CPU, write `models/NAME`, and score what was written.

    The CNNs are rounded to fp16 before training, so that the decoder learns from the features that
    the bundled model computes.

    Args:
        name: of the model, for --model.
        config: name or path of the configuration; encoder.weights must be a file.
        overrides: such as "training.seed=1".
        most_bytes: an error if all files together take more.
        splits: to score.
    """
    settings = load_config(config, overrides)
    target = ROOT / "models" / name
    with tempfile.TemporaryDirectory() as aside:
        rounded = [
            _rounded(cnn.weights, Path(aside) / str(number))
            for number, cnn in enumerate(settings.encoder.cnns)
        ]
        cnns = [
            cnn.model_copy(update={"weights": str(weights)})
            for cnn, weights in zip(settings.encoder.cnns, rounded, strict=True)
        ]
        encoder = settings.encoder.model_copy(update={"cnns": cnns})
        run = train(settings.model_copy(update={"encoder": encoder}), Path(aside) / "run").folder
        Captioner.load(run, "cpu").save(target / "model", storage="fp16")
        without = Config.model_validate(without_folders(settings)[0])
        (target / "config.yaml").write_text(without.to_yaml(), encoding="utf-8")
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        epochs = "".join(line for line in lines if '"kind": "epoch"' in line)
        (target / "metrics.jsonl").write_text(epochs, encoding="utf-8")
        written = Captioner.load(target, "cpu")
        card = written.card
        for split in splits:
            found = evaluate(written, settings, Path(aside) / split, split=split)
            for key in ("bleu_4", "cider"):
                print(f"{split} {key:7} {found.scores[key]}")
            if found.truth is not None:
                print(f"{split} truth   {found.truth:.3f}")
            results = Results(split, found.scores, found.word_use, found.truth)
            card = add_results(card, results) or card
        (target / "model" / CARD).write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size:,} bytes")
    if size > most_bytes:
        raise SystemExit(f"{target}: {size:,} bytes, more than {most_bytes:,}")


def _rounded(weights: str, folder: Path) -> Path:
    """Write the weights of a CNN in fp16, under the name of their file."""
    path = resolve_path(weights)
    folder.mkdir()
    state = read_state_dict(path)
    half = {k: (t.half() if t.is_floating_point() else t).contiguous() for k, t in state.items()}
    save_file(half, folder / path.name)
    return folder / path.name
