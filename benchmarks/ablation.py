"""What each part of the Flickr8k recipe earns: one row for each change, seeds for the noise.

    python benchmarks/ablation.py [--set K=V ...] [--seeds 3] [--output runs/ablation]
        [--only ROW ...] [--table FILE]

Each row trains `configs/flickr8k.yaml` with one thing changed, once for each seed, and scores the
dev split; rows about search and ensembles use the recipe's own models, and
"self-critical" begins with them. `--set` says where data and weights lie. Runs that are finished
are not repeated, so rows can be added one by one; a run of another recipe or of other data is
refused. A row holds the mean over the seeds, the half-width of its 95% interval (Student's t), and
its differences in BLEU-4 and CIDEr from the recipe, seed by seed; where the interval of a
difference holds zero it is a tie. Rows that begin with "words tied," are changes of the recipe as
it was before, with words tied, and are compared with that. Of an ensemble there is one: its
interval is over images (bootstrap), and it has no differences. Cost is the seconds of training one
model, dev scores included, and those of captioning the dev split, both from stored features.
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
from captioner.model_dir import fingerprint, model_folder
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
TIED = "words tied"  # the recipe before it was seen that they had better not be
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
TRAINING: dict[str, tuple[str, ...]] = {
    "recipe": (),
    TIED: ("decoder.tie_weights=true",),
    # One change more each; they are compared with "words tied".
    **{f"{TIED}, {name}": ("decoder.tie_weights=true", *each) for name, each in CHANGES.items()},
}
SEARCH: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1, "neighbours": 0},
    "beam 3, no votes": {"beam_size": 3, "neighbours": 0},
    "beam 5, no votes": {"beam_size": 5, "neighbours": 0},
    "beam 20, no votes": {"neighbours": 0},
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
# Of all seeds' models of some rows.
TOGETHER: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ensemble": (("recipe",), {}),
    "ensemble, beam 5": (("recipe",), {"beam_size": 5}),
    "ensemble, beam 5, no votes": (("recipe",), {"beam_size": 5, "neighbours": 0}),
    "ensemble with words tied": (("recipe", TIED), {}),
    "ensemble with words tied, beam 5": (("recipe", TIED), {"beam_size": 5}),
    "words tied, ensemble": ((TIED,), {}),
    "words tied, ensemble with GRUs": ((TIED, f"{TIED}, GRU"), {}),
}
ROWS = (*TRAINING, *SEARCH, *TOGETHER)

Row = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    parser.add_argument("--seeds", type=int, default=3, choices=QUANTILES)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--only", action="append", default=[], choices=ROWS, help="rows to fill; else all"
    )
    parser.add_argument("--table", type=Path, help="also write the table here")
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
            places = {"{runs}": runs, "{seed}": str(seed), "{first}": first}
            overrides = [*given.overrides, *changes, f"training.seed={seed}"]
            for place, value in places.items():
                overrides = [each.replace(place, value) for each in overrides]
            if (found := trained(folder, overrides, wanted=name in wanted)) is not None:
                print(f"{name}, seed {seed}: {found}", flush=True)
                rows[name].append(found)
    for name, settings in SEARCH.items():
        if name in wanted:
            rows[name] = [scored([model], settings, given.overrides) for model in models["recipe"]]
    for name, (members, settings) in TOGETHER.items():
        if name in wanted:
            together = [model for member in members for model in models[member]]
            rows[name] = [scored(together, settings, given.overrides, resamples=1000)]
    table = as_table(rows)
    print(table)
    if given.table:
        given.table.write_text(table + "\n", encoding="utf-8")


def model_of(output: Path, name: str, seed: int) -> Path:
    """Return where the model of a row and a seed is."""
    return output / f"{name.replace(' ', '-')}-{seed}"


def trained(folder: Path, overrides: list[str], *, wanted: bool) -> dict[str, float] | None:
    """Train and score one model, or read what was found before."""
    config = load_config("flickr8k", overrides)
    known, own = folder / "ablation.json", folder / "config.yaml"
    if own.is_file() and load_config(str(own)) != config:
        sys.exit(f"{folder}: a run of another recipe or other data; --output DIR begins elsewhere")
    if not known.is_file():
        if not wanted:
            return None
        seconds = train(config, folder, resume=True).seconds
        known.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    took = json.loads(known.read_text(encoding="utf-8"))["seconds"]
    return scored([folder], {}, overrides) | {"training": took}


def scored(
    models: list[Path], settings: dict[str, Any], overrides: list[str], resamples: int = 0
) -> dict[str, float]:
    """Score the dev split as captioned by one model, or by several together."""
    config = load_config("flickr8k", overrides)
    mirrored = settings.get("mirrored")
    # As the recipe searches now, whatever the models were trained to do.
    settings = {key: value for key, value in settings.items() if key != "mirrored"}
    decoding = DecodingConfig.model_validate(config.decoding.model_dump() | settings)
    prints = [fingerprint(model_folder(model)) for model in models]
    data = config.data.model_dump(mode="json")
    how = json.dumps([prints, data, decoding.model_dump(), mirrored, resamples])
    output = models[0] / "scores" / hashlib.blake2b(how.encode(), digest_size=8).hexdigest()
    known = output / "ablation.json"
    if not known.is_file():
        captioner = Captioner.load(models)
        if mirrored is not None:
            captioner.encoder.mirrored = mirrored
        search, found = captioner.search_each, {"captioning": 0.0}

        def timed(*args: Any, **options: Any) -> Any:
            began = perf_counter()
            captions = search(*args, **options)
            found["captioning"] += perf_counter() - began
            return captions

        captioner.search_each = timed  # type: ignore[method-assign]
        result = evaluate(captioner, config, output, decoding, split="dev", resamples=resamples)
        for each in SCORES:
            score = result.scores[each]
            found[each] = score.value
            if score.interval:
                found[f"{each} ±"] = (score.interval[1] - score.interval[0]) / 2
        known.write_text(json.dumps(found), encoding="utf-8")
    known_scores: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
    return known_scores


def as_table(rows: dict[str, Row]) -> str:
    """Lay the rows out as Markdown."""
    lines = [
        "| | BLEU-1 | BLEU-4 | CIDEr | BLEU-4 less the recipe's | CIDEr less | training, s "
        "| captioning, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if not row:
            continue
        cells = [interval(row, each) for each in SCORES]
        apart = ["", ""]
        base = rows[TIED if name.startswith(f"{TIED}, ") else "recipe"]
        if row is not base and len(row) == len(base):
            apart = [difference(row, base, each) for each in ("bleu_4", "cider")]
        costs = [
            f"{mean(scores[cost] for scores in row):.0f}" if cost in row[0] else ""
            for cost in ("training", "captioning")
        ]
        lines.append(f"| {' | '.join([name, *cells, *apart, *costs])} |")
    return "\n".join(lines)


def interval(row: Row, name: str) -> str:
    """Show a mean, and the half-width of its interval where there is one."""
    values = [scores[name] for scores in row]
    width = half_width(values) if len(row) > 1 else row[0].get(f"{name} ±", math.inf)
    return f"{mean(values):.3f}" + (f" ± {width:.3f}" if width < math.inf else "")


def difference(row: Row, recipe: Row, name: str) -> str:
    """Show by how much a row is above the recipe, seed by seed."""
    apart = [scores[name] - own[name] for scores, own in zip(row, recipe, strict=True)]
    width = half_width(apart)
    tie = " (a tie)" if width >= abs(mean(apart)) else ""
    return f"{mean(apart):+.3f} ± {width:.3f}{tie}"


def half_width(values: list[float]) -> float:
    """Return that of the 95% interval of a mean."""
    count = len(values)
    return QUANTILES[count] * stdev(values) / math.sqrt(count) if count > 1 else math.inf


if __name__ == "__main__":
    main()
