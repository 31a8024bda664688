"""What each part of the Flickr8k recipe earns: one row for each change, seeds for the noise.

    python benchmarks/ablation.py [--set K=V ...] [--seeds 3] [--output runs/ablation]
        [--only ROW ...] [--table FILE]

Each row trains `configs/flickr8k.yaml` with one thing changed, once for each seed, and scores the
dev split; rows about search and ensembles use the recipe's own models, "distilled" and
"self-critical" begin with them (and want three seeds). `--set` says where data and
weights lie. Runs that are finished are not repeated, so rows can be added one by one. A row holds
the mean over the seeds, the half-width of its 95% interval (Student's t), and its difference in
CIDEr from the recipe, seed by seed; where the interval of that difference holds zero it is a tie.
Cost is the training time of one model, dev scores included, features stored.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import describe_machine

from captioner.config import DecodingConfig, load_config
from captioner.evaluation.run import evaluate
from captioner.models.captioner import Captioner
from captioner.training.run import train

SCORES = ("bleu_1", "bleu_4", "cider")
# Two-sided 95% quantiles of Student's t, by the number of seeds.
QUANTILES = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
SELF_CRITICAL = (
    "training.objective=scst",
    "training.start_from={runs}/recipe-{seed}",
    "training.warmup_steps=20",
    "training.ema_decay=0.98",
    "training.epochs=4",
)
TRAINING: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "one CNN": ("encoder.beside=[]",),
    "weight decay 0.01": ("training.weight_decay=0.01",),
    "no mirrored pictures": ("encoder.flip=false",),
    "feature dropout 0": ("decoder.feature_dropout=0",),
    "feature dropout 0.5": ("decoder.feature_dropout=0.5",),
    "no moving average": ("training.ema_decay=0",),
    "no label smoothing": ("training.label_smoothing=0",),
    "features as they are": ("decoder.feature_norm=none",),
    "words not tied": ("decoder.tie_weights=false",),
    "GRU": ("decoder.cell=gru",),
    "plain RNN": ("decoder.cell=rnn",),
    "15 epochs": ("training.epochs=15",),
    "distilled from three": (
        "training.teachers=[{runs}/recipe-0, {runs}/recipe-1, {runs}/recipe-2]",
    ),
    "then self-critical": (*SELF_CRITICAL, "training.learning_rate=1e-5"),
    "then self-critical, 1e-4": (*SELF_CRITICAL, "training.learning_rate=1e-4"),
}
SEARCH: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1, "neighbours": 0},
    "beam 3, no votes": {"beam_size": 3, "neighbours": 0},
    "beam 5, no votes": {"beam_size": 5, "neighbours": 0},
    "beam 20, no votes": {"neighbours": 0},
    "consensus instead of votes": {"neighbours": 0, "consensus": 0.15},
    "consensus and votes": {"consensus": 0.15},
    "beam 3": {"beam_size": 3},
    "beam 5": {"beam_size": 5},
    "beam 10": {"beam_size": 10},
    "votes count 3": {"neighbours": 3},
    "votes count 12": {"neighbours": 12},
    "length penalty 0.7": {"length_penalty": 0.7},
    "length penalty 0.9": {"length_penalty": 0.9},
    "no three words twice": {"no_repeat_ngram_size": 3},
    "search in fp32": {"precision": "fp32"},
    "from the plain view alone": {"mirrored": False},
}
# Of all seeds' models: one figure each, so without an interval over seeds.
TOGETHER: dict[str, dict[str, Any]] = {
    "ensemble": {},
    "ensemble, beam 5": {"beam_size": 5},
    "ensemble, beam 5, no votes": {"beam_size": 5, "neighbours": 0},
    "ensemble, consensus instead of votes": {"neighbours": 0, "consensus": 0.15},
}

Row = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", action="append", default=[], help="rows to fill; else all")
    parser.add_argument("--table", type=Path, help="also write the table here")
    given = parser.parse_args()
    print(describe_machine())
    rows: dict[str, Row] = {}
    for name, changes in TRAINING.items():
        wanted = not given.only or name in given.only
        overrides = [*given.overrides, *changes]
        found = [
            trained(given.output, name, seed, overrides, wanted) for seed in range(given.seeds)
        ]
        rows[name] = [scores for scores in found if scores]
    models = [model_of(given.output, "recipe", seed) for seed in range(given.seeds)]
    for name, settings in SEARCH.items():
        if not given.only or name in given.only:
            rows[name] = [scored([model], settings, given.overrides) for model in models]
    for name, settings in TOGETHER.items():
        if not given.only or name in given.only:
            rows[name] = [scored(models, settings, given.overrides)]
    table = as_table(rows)
    print(table)
    if given.table:
        given.table.write_text(table + "\n", encoding="utf-8")


def model_of(output: Path, name: str, seed: int) -> Path:
    """Return where the model of a row and a seed is."""
    return output / f"{name.replace(' ', '-')}-{seed}"


def trained(
    output: Path, name: str, seed: int, overrides: list[str], wanted: bool
) -> dict[str, float] | None:
    """Train and score one model, or read what was found before."""
    folder = model_of(output, name, seed)
    known = folder / "ablation.json"
    places = {"{runs}": str(output.absolute()), "{seed}": str(seed)}
    for place, value in places.items():
        overrides = [each.replace(place, value) for each in overrides]
    if not known.is_file():
        if not wanted:
            return None
        config = load_config("flickr8k", [*overrides, f"training.seed={seed}"])
        seconds = train(config, folder, resume=True).seconds
        known.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    took = json.loads(known.read_text(encoding="utf-8"))["seconds"]
    found = scored([folder], {}, overrides) | {"seconds": took}
    print(f"{name}, seed {seed}: {found}", flush=True)
    return found


def scored(models: list[Path], settings: dict[str, Any], overrides: list[str]) -> dict[str, float]:
    """Score the dev split as captioned by one model, or by several together."""
    config = load_config("flickr8k", overrides)
    mirrored = settings.get("mirrored")
    # As the recipe searches now, whatever the models were trained to do.
    settings = {key: value for key, value in settings.items() if key != "mirrored"}
    decoding = DecodingConfig.model_validate(config.decoding.model_dump() | settings)
    how = f"{decoding.summary()},{decoding.precision},mirrored={mirrored},{len(models)}"
    output = models[0] / "scores" / how
    known = output / "ablation.json"
    if not known.is_file():
        captioner = Captioner.load(models)
        if mirrored is not None:
            captioner.encoder.mirrored = mirrored
        result = evaluate(
            captioner, config, output, split="dev", resamples=0, **decoding.model_dump()
        )
        scores = {each: result.scores[each].value for each in SCORES}
        known.write_text(json.dumps(scores), encoding="utf-8")
    found: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
    return found


def as_table(rows: dict[str, Row]) -> str:
    """Lay the rows out as Markdown."""
    lines = [
        "| | seeds | BLEU-1 | BLEU-4 | CIDEr | CIDEr less the recipe's | s |",
        "|---|---|---|---|---|---|---|",
    ]
    recipe = rows["recipe"]
    for name, row in rows.items():
        if not row:
            continue
        cells = [interval([scores[each] for scores in row]) for each in SCORES]
        apart = ""
        if name != "recipe" and len(row) == len(recipe):
            pairs = zip(row, recipe, strict=True)
            differences = [scores["cider"] - own["cider"] for scores, own in pairs]
            width = half_width(differences)
            tie = " (a tie)" if width >= abs(mean(differences)) else ""
            apart = f"{mean(differences):+.3f} ± {width:.3f}{tie}"
        seconds = f"{mean(s['seconds'] for s in row):.0f}" if "seconds" in row[0] else ""
        lines.append(f"| {name} | {len(row)} | {' | '.join(cells)} | {apart} | {seconds} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Show a mean, and the half-width of its interval where there is one."""
    width = half_width(values)
    return f"{mean(values):.3f}" + (f" ± {width:.3f}" if width < math.inf else "")


def half_width(values: list[float]) -> float:
    """Return that of the 95% interval of a mean."""
    count = len(values)
    return QUANTILES[count] * stdev(values) / math.sqrt(count) if count > 1 else math.inf


if __name__ == "__main__":
    main()
