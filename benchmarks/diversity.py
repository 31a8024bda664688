"""Quality against diversity of a model's captions, over the temperature of sampling.

    python benchmarks/diversity.py models/photos/model flickr8k --images 300 --figure docs/pictures

Captions the first images of a split: an n-best list of a beam, and as many samples at each
temperature. One row each: CIDEr and BLEU-4, the means over the captions of an image in turn, and
the diversity of the captions. The last row is people: the references. Intervals are bootstrap over
images. `--figure FOLDER` draws CIDEr over self-CIDEr as SVG, for light and dark pages.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean

from common import describe_machine

from captioner import Captioner, PreparedReferences, score_captions
from captioner.data.load import load_dataset
from captioner.data.prepare import SplitTable, read_split
from captioner.evaluation.evaluate import caption_split
from captioner.metrics import MetricInputs, SystemCaptions
from captioner.metrics.scores import Score

TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2)
SETS = ("diversity", "self_cider", "novel")
COLUMNS = {"div_1": "Div-1", "div_2": "Div-2", "mbleu_4": "mBLEU-4"}
COLUMNS |= {"self_cider": "self-CIDEr", "novel": "novel"}
COLOURS = {"light": "#1f2328", "dark": "#e6edf3"}


def captions_by_row(
    captioner: Captioner, table: SplitTable, count: int
) -> dict[str, SystemCaptions]:
    """Return the captions of each row: a beam's, those at each temperature, and people's."""
    settings = {f"beam {2 * count}": captioner.settings(beam_size=2 * count, n_best=count)}
    for temperature in TEMPERATURES:
        options = captioner.settings(search="sample", temperature=temperature, n_best=count)
        settings[f"{temperature:g}"] = options
    words = captioner.vocabulary.tokenizer.words
    rows = {}
    for name, options in settings.items():
        found = caption_split(captioner, table, options, n_best=count)
        rows[name] = SystemCaptions([[c.text for c in best] for best in found], words)
    people = [[*example.captions[:count]] for example in table.examples]
    return rows | {"people": SystemCaptions(people, words)}


def quality(captions: SystemCaptions, references: PreparedReferences) -> dict[str, float]:
    """Return the mean of CIDEr and of BLEU-4 over the captions of an image in turn."""
    scores = [
        score_captions([each[place] for each in captions.tokens], references)
        for place in range(min(map(len, captions.texts)))
    ]
    return {name: mean(each[name].value for each in scores) for name in ("cider", "bleu_4")}


def draw(points: dict[str, tuple[float, float]], folder: Path) -> None:
    """Draw CIDEr over self-CIDEr; the samples are joined by a line."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    for theme, colour in COLOURS.items():
        names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(names, colour) | {"svg.fonttype": "none", "svg.hashsalt": "captioner"}
        with pyplot.rc_context(style):
            figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
            samples = [point for name, point in points.items() if not name.startswith("beam")]
            axes.plot(*zip(*samples, strict=True), "o-", color="#5c6bc0")
            for name, (x, y) in points.items():
                beam = name.startswith("beam")
                if beam:
                    axes.plot(x, y, "s", color="#c2410c")
                label = name if beam else f"T = {name}"
                axes.annotate(label, (x, y), textcoords="offset points", xytext=(8, 4))
            axes.set(xlabel="self-CIDEr: more diverse to the right", ylabel="CIDEr: better above")
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.12)
            path = folder / f"diversity-{theme}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            pyplot.close(figure)
            print(f"wrote {path}")


def cell(score: Score) -> str:
    low, high = score.interval or (score.value, score.value)
    return f"{score.value:.3f} ± {(high - low) / 2:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    print(describe_machine())
    captioner = Captioner.load(given.model, "cpu")
    tokenizer = captioner.vocabulary.tokenizer
    dataset = load_dataset(given.data)
    train = [tokenizer.words(text) for e in dataset.split("train") for text in e.captions]
    inputs = MetricInputs(train=train)
    few = replace(dataset, examples=dataset.split(given.split)[: given.images])
    table = read_split(few, given.split, captioner.encoder, tokenizer, batch_size=64, say=print)
    references = PreparedReferences(table.references)
    points = {}
    print(f"| | CIDEr | BLEU-4 | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * 7}")
    rows = captions_by_row(captioner, table, given.captions)
    for name, captions in rows.items():
        sets = score_captions(captions, references, metrics=SETS, inputs=inputs, resamples=1000)
        cells = [cell(sets[column]) for column in COLUMNS]
        good = {"cider": "", "bleu_4": ""}
        if name != "people":  # who would be scored against their own captions
            numbers = quality(captions, references)
            good = {key: f"{value:.3f}" for key, value in numbers.items()}
            points[name] = sets["self_cider"].value, numbers["cider"]
        print(f"| {name} | {good['cider']} | {good['bleu_4']} | {' | '.join(cells)} |", flush=True)
    print(sets["self_cider"].signature)
    if given.figure:
        draw(points, given.figure)


if __name__ == "__main__":
    main()
