"""Ablation of the Flickr8k recipe: one row for each change, several seeds per row.

    python benchmarks/ablation.py [--set K=V ...] [--seeds 3] [--output runs/ablation]
        [--only ROW ...] [--table FILE]

Each row trains `configs/flickr8k.yaml` with one change, once per seed, and scores the dev split.
Rows about search and ensembles use the models of the recipe, or those with attention. "then
self-critical" starts from the models with tied words. `--set` gives the paths of data and weights.
Finished runs are not repeated, so rows can be added one by one. A run folder with other settings is
an error.

A row holds the mean over the seeds, the half-width of its 95% interval (Student's t), and the
differences in BLEU-4 and CIDEr from the recipe, paired by seed. A difference whose interval holds
zero is a tie. A row that starts with the name of another one and a comma changes that one, and is
compared with it: "one CNN, attention" with "one CNN". A row has one ensemble: its interval is over
images (bootstrap), and it has no differences. The cost is the seconds to train one model, dev
scores included, and the seconds to caption the dev split, both from stored features.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from common import describe_machine

from captioner.captioner import Captioner
from captioner.config import DecodingConfig, load_config
from captioner.evaluation.evaluate import evaluate
from captioner.model_config import fingerprint, model_folder
from captioner.training.run import train

SCORES = ("bleu_1", "bleu_4", "cider")
# Two-sided 95% quantiles of Student's t, by the number of seeds.
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
SELF_CRITICAL = (
    "training.objective=scst",
    "training.start_from={runs}/words-tied-{seed}",
    "training.warmup_steps=20",
    "training.ema_decay=0.98",
    "training.epochs=4",
)
TIED = "words tied"  # the older recipe; without tied words the scores are better
CHANGES: dict[str, tuple[str, ...]] = {
    "one CNN": ("encoder.cnns=[{first}]",),
    "weight decay 0.01": ("training.weight_decay=0.01",),
    "no mirrored pictures": ("encoder.flip=false",),
    "feature dropout 0": ("decoder.feature_dropout=0",),
    "no moving average": ("training.ema_decay=0",),
    "no label smoothing": ("training.label_smoothing=0",),
    "features as they are": ("decoder.feature_norm=none",),
    "GRU": ("decoder.cell=gru",),
    "plain RNN": ("decoder.cell=rnn",),
    "then self-critical": (*SELF_CRITICAL, "training.learning_rate=1e-5"),
    "then self-critical, 1e-4": (*SELF_CRITICAL, "training.learning_rate=1e-4"),
}
ATTENTION = ("decoder.attention=spatial",)  # `configs/flickr8k-attention.yaml`
ONE = ("encoder.cnns=[{first}]",)
LOOKING = "one CNN, attention"
LOOKS: dict[str, tuple[str, ...]] = {
    "no places dropped": ("decoder.place_dropout=0",),
    "two fifths of the places dropped": ("decoder.place_dropout=0.4",),
    "feature dropout 0.5": ("decoder.feature_dropout=0.5",),
    "128 channels": ("encoder.grid_channels=128",),
    "512 channels": ("encoder.grid_channels=512",),
    "all channels": ("encoder.grid_channels=65536",),
    "5 x 5 places": ("encoder.grid=5",),
    "10 x 10 places": ("encoder.grid=10", "encoder.image_size=320"),
    "words from 3 times on": ("text.min_count=3",),
}
TRAINING: dict[str, tuple[str, ...]] = {
    "recipe": (),
    TIED: ("decoder.tie_weights=true",),
    # "words tied" with one more change.
    **{f"{TIED}, {name}": ("decoder.tie_weights=true", *each) for name, each in CHANGES.items()},
    "one CNN": ONE,
    LOOKING: (*ONE, *ATTENTION),
    **{f"{LOOKING}, {name}": (*ONE, *ATTENTION, *each) for name, each in LOOKS.items()},
    "attention": ATTENTION,
}
# The recipe's search until the repeat penalty.
EARLIER = {"beam_size": 20, "neighbours": 6, "length_penalty": 0.8, "repeat_penalty": 0}
SEARCH: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1, "neighbours": 0},
    "beam 3, no votes": {"beam_size": 3, "neighbours": 0},
    "beam 5, no votes": {"beam_size": 5, "neighbours": 0},
    "beam 10, no votes": {"neighbours": 0},
    "beam 3": {"beam_size": 3},
    "beam 5": {"beam_size": 5},
    "beam 20": {"beam_size": 20},
    "votes count 6": {"neighbours": 6},
    "votes count 24": {"neighbours": 24},
    "length penalty 0.8": {"length_penalty": 0.8},
    "length penalty 1": {"length_penalty": 1.0},
    "no repeat penalty": {"repeat_penalty": 0},
    "repeat penalty 1": {"repeat_penalty": 1},
    "beam 20, votes count 6, length penalty 0.8, no repeat penalty": EARLIER,
    "no three words twice": {"no_repeat_ngram_size": 3, "repeat_penalty": 0},
    "search in fp32": {"precision": "fp32"},
    "from the plain view alone": {"mirrored": False},
}
# Ensembles of the models of all seeds of some rows, with search settings.
ENSEMBLES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ensemble": (("recipe",), {}),
    "ensemble, beam 5, no votes": (("recipe",), {"beam_size": 5, "neighbours": 0}),
    "ensemble with words tied": (("recipe", TIED), {}),
    "attention, ensemble": (("attention",), {}),
    "attention, ensemble, beam 20": (("attention",), {"beam_size": 20}),
    "attention, ensemble with pooled models": (("attention", "recipe"), {}),
    "words tied, ensemble": ((TIED,), {}),
    "words tied, ensemble with GRUs": ((TIED, f"{TIED}, GRU"), {}),
}
ROWS = (*TRAINING, *SEARCH, *(f"attention, {name}" for name in SEARCH), *ENSEMBLES)

Row = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    parser.add_argument("--seeds", type=int, default=3, choices=QUANTILES)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--only", action="append", default=[], choices=ROWS, help="compute only this row"
    )
    parser.add_argument("--table", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    print(describe_machine())
    rows: dict[str, Row] = {}
    seeds = range(given.seeds)
    models = {name: [model_of(given.output, name, seed) for seed in seeds] for name in TRAINING}
    wanted = set(given.only or ROWS)
    for name, changes in TRAINING.items():
        rows[name] = []
        for seed, folder in enumerate(models[name]):
            runs = str(given.output.absolute())
            first = load_config("flickr8k", given.overrides).encoder.cnns[0].model_dump_json()
            values = {"{runs}": runs, "{seed}": str(seed), "{first}": first}
            overrides = [*given.overrides, *changes, f"training.seed={seed}"]
            for placeholder, value in values.items():
                overrides = [override.replace(placeholder, value) for override in overrides]
            if (scores := trained(folder, overrides, wanted=name in wanted)) is not None:
                print(f"{name}, seed {seed}: {scores}", flush=True)
                rows[name].append(scores)
    for name, settings in SEARCH.items():
        for row, of in ((name, "recipe"), (f"attention, {name}", "attention")):
            if row in wanted:
                rows[row] = [scored([model], settings, given.overrides) for model in models[of]]
    for name, (members, settings) in ENSEMBLES.items():
        if name in wanted:
            ensemble = [model for member in members for model in models[member]]
            rows[name] = [scored(ensemble, settings, given.overrides, resamples=1000)]
    table = as_table(rows)
    print(table)
    if given.table:
        given.table.write_text(table + "\n", encoding="utf-8")


def model_of(output: Path, name: str, seed: int) -> Path:
    """Return the run folder of a row and a seed."""
    return output / f"{name.replace(' ', '-')}-{seed}"


def trained(folder: Path, overrides: list[str], *, wanted: bool) -> dict[str, float] | None:
    """Train and score one model, or read the stored results.

    Returns:
        Scores and costs by name; None if the row is not wanted and not trained.
    """
    config = load_config("flickr8k", overrides)
    stored, config_file = folder / "ablation.json", folder / "config.yaml"
    if config_file.is_file() and load_config(str(config_file)) != config:
        sys.exit(f"{folder}: a run with other settings; choose another folder with --output")
    if not stored.is_file():
        if not wanted:
            return None
        seconds = train(config, folder, resume=True).progress.seconds
        stored.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    seconds = json.loads(stored.read_text(encoding="utf-8"))["seconds"]
    return scored([folder], {}, overrides) | {"training": seconds}


def scored(
    models: list[Path], settings: dict[str, Any], overrides: list[str], resamples: int = 0
) -> dict[str, float]:
    """Score one model or an ensemble on the dev split, or read the stored scores."""
    config = load_config("flickr8k", overrides)
    mirrored = settings.get("mirrored")
    # The search settings of the recipe, not those stored in the models.
    settings = {key: value for key, value in settings.items() if key != "mirrored"}
    decoding = DecodingConfig.model_validate(config.decoding.model_dump() | settings)
    prints = [fingerprint(model_folder(model)) for model in models]
    data = config.data.model_dump(mode="json")
    key = json.dumps([prints, data, decoding.model_dump(), mirrored, resamples])
    output = models[0] / "scores" / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    stored = output / "ablation.json"
    if not stored.is_file():
        captioner = Captioner.load(models)
        if mirrored is not None:
            captioner.encoder.mirrored = mirrored
        search, results = captioner.search_each, {"captioning": 0.0}

        def timed(*args: Any, **options: Any) -> Any:
            started = perf_counter()
            captions = search(*args, **options)
            results["captioning"] += perf_counter() - started
            return captions

        captioner.search_each = timed  # type: ignore[method-assign]
        result = evaluate(captioner, config, output, decoding, split="dev", resamples=resamples)
        for name in SCORES:
            score = result.scores[name]
            results[name] = score.value
            if score.interval:
                results[f"{name} ±"] = (score.interval[1] - score.interval[0]) / 2
        stored.write_text(json.dumps(results), encoding="utf-8")
    scores: dict[str, float] = json.loads(stored.read_text(encoding="utf-8"))
    return scores


def as_table(rows: dict[str, Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| | BLEU-1 | BLEU-4 | CIDEr | BLEU-4 - recipe | CIDEr - recipe | training, s "
        "| captioning, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if not row:
            continue
        cells = [interval(row, each) for each in SCORES]
        differences = ["", ""]
        changed = [each for each in TRAINING if name.startswith(f"{each}, ")]
        base = rows[max(changed, key=len, default="recipe")]
        if row is not base and len(row) == len(base):
            differences = [difference(row, base, score) for score in ("bleu_4", "cider")]
        costs = [
            f"{mean(scores[cost] for scores in row):.0f}" if cost in row[0] else ""
            for cost in ("training", "captioning")
        ]
        lines.append(f"| {' | '.join([name, *cells, *differences, *costs])} |")
    return "\n".join(lines)


def interval(row: Row, name: str) -> str:
    """Format a mean and, if there is one, the half-width of its interval."""
    values = [scores[name] for scores in row]
    width = half_width(values) if len(row) > 1 else row[0].get(f"{name} ±", math.inf)
    return f"{mean(values):.3f}" + (f" ± {width:.3f}" if width < math.inf else "")


def difference(row: Row, recipe: Row, name: str) -> str:
    """Format the mean difference of a row from the recipe, paired by seed."""
    differences = [scores[name] - base[name] for scores, base in zip(row, recipe, strict=True)]
    width = half_width(differences)
    tie = " (a tie)" if width >= abs(mean(differences)) else ""
    return f"{mean(differences):+.3f} ± {width:.3f}{tie}"


def half_width(values: list[float]) -> float:
    """Return the half-width of the 95% interval of a mean."""
    count = len(values)
    return QUANTILES[count] * stdev(values) / math.sqrt(count) if count > 1 else math.inf


if __name__ == "__main__":
    main()
