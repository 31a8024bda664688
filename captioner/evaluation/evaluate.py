"""Caption a split, score the captions, and write `predictions.jsonl` and `scores.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from captioner.captioner import SEARCH_BATCH, Captioner
from captioner.config import Config, DecodingConfig
from captioner.data.dataset import Dataset, Region, split_name
from captioner.data.prepare import SplitTable, open_dataset, read_split
from captioner.embedding.models import with_models
from captioner.encoder.preprocess import Preprocess
from captioner.errors import (
    DataError,
    ImageError,
    ModelError,
    checked_names,
    must_be,
    within_memory,
)
from captioner.evaluation.word_maps import WordMaps, maps_of_split
from captioner.images.decode import read_image
from captioner.metrics import (
    Calibration,
    MetricInputs,
    Pointing,
    PreparedReferences,
    Score,
    SystemCaptions,
    Thing,
    WordUse,
    calibration,
    compare_word_use,
    pointing,
    score_captions,
)
from captioner.model_dir import plugin_label
from captioner.system.escapes import to_json, utf8_name
from captioner.system.files import write_text
from captioner.system.foreign import plain
from captioner.system.ownership import check_files
from captioner.text import Caption

METRICS_OF_EVALUATE = ("bleu", "rouge_l", "cider")
ALTERNATIVES = 4  # of each word, in the report


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The captions and scores of a model on a split."""

    dataset: Dataset
    split: str
    table: SplitTable
    captions: list[list[Caption]]  # n-best of each image
    scores: dict[str, Score]
    word_use: dict[str, WordUse]  # of the captions and of the first references
    pointing: dict[str, Pointing]  # of all words, and in images of different things; see `pointing`
    truth: float | None  # fraction of captions that are true of their image; drawn scenes only
    output: Path  # folder with `predictions.jsonl` and `scores.json`
    calibration: Calibration | None = None  # of the words of the best captions
    maps: Sequence[WordMaps | None] = ()  # of each image's best caption; none without `explain`


@within_memory("to evaluate")
@checked_names
def evaluate(
    captioner: Captioner,
    config: Config,
    output: Path,
    options: DecodingConfig | None = None,
    *,
    split: str | None = None,
    n_best: int = 1,
    metrics: Sequence[str] = METRICS_OF_EVALUATE,
    clip: str | None = None,
    bert: str | None = None,
    resamples: int = 1000,
    explain: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Caption a split, score the captions and write both into `output`.

    By default the split is the test split if there is one, else dev. With `explain`, each best
    caption has the maps of its words. Metrics of several captions read all `n_best`. For the models
    `clip` and `bert` see `with_models`.

    Raises:
        DataError: if the split cannot be used.
        ConfigError: if the options do not fit the model, a metric is unknown, or the output path
            is taken.
        ImageError: if the model computes NaN or infinity for an image.
        ModelError: with explain, if the CNN sees images as a single place.
    """
    must_be("explain", explain, bool)
    must_be("config", config, Config)
    check_files(output, "evaluation")
    if explain:
        captioner.encoder.preprocess  # noqa: B018 a model of features sees no pictures
    options = options or captioner.settings(n_best=n_best)
    dataset, split, table = _read(captioner, config, split, say)
    tokenizer = captioner.vocabulary.tokenizer
    maps = dataset.regions is not None and _has_maps(captioner, say)
    captions = caption_split(captioner, table, options, n_best=n_best, maps=maps)
    written = SystemCaptions([[c.text for c in best] for best in captions], tokenizer.words)
    inputs = _inputs(captioner, config, dataset, table, metrics, clip=clip, bert=bert)
    models = f",models{captioner.num_models}" if captioner.num_models > 1 else ""
    scores = score_captions(
        written,
        PreparedReferences(table.references),
        metrics=metrics,
        inputs=inputs,
        resamples=resamples,
        tokenizer=tokenizer.name,
        decode=options.summary() + models + plugin_label(captioner.encoder, captioner.decoder),
        split=split,
    )
    truth = dataset.truth(table.examples, [best[0].text for best in captions])
    words = compare_word_use(written.best, table.references)
    points = _pointing(captioner, dataset, table, captions) if maps else {}
    fields = (dataset, split, table, captions, scores, words, points, truth, output)
    calibrated = calibration((best[0] for best in captions), table.tokens, tokenizer.shown)
    found = maps_of_split(captioner, table, captions) if explain else []
    result = Evaluation(*fields, calibrated, found)
    _write(result)
    return result


def _read(
    captioner: Captioner, config: Config, split: str | None, say: Callable[[str], None]
) -> tuple[Dataset, str, SplitTable]:
    """Read the split, by default the usual one; also return its data set and name."""
    size, given = config.encoder.batch_size, config.encoder.features
    dataset = open_dataset(config.data, given)
    for note in dataset.notes:
        say(f"note: {note}")
    split = split or _usual_split(dataset, config)
    encoder, tokenizer = captioner.encoder, captioner.vocabulary.tokenizer
    table = read_split(dataset, split, encoder, tokenizer, batch_size=size, say=say, features=given)
    return dataset, split, table


def _inputs(
    captioner: Captioner,
    config: Config,
    dataset: Dataset,
    table: SplitTable,
    metrics: Sequence[str],
    *,
    clip: str | None,
    bert: str | None,
) -> MetricInputs:
    """Return what metrics read besides words: references and train, pictures, models."""
    words_of = captioner.vocabulary.tokenizer.words
    train = split_name(config.data.split_train) if "novel" in metrics else None
    learnt = (text for e in dataset.examples if e.split == train for text in e.captions)
    written = [[text for text in e.captions if words_of(text)] for e in table.examples]
    return with_models(
        MetricInputs(references=written, train=map(words_of, learnt)),
        metrics,
        lambda: (read_image(example.image) for example in table.examples),
        clip=clip,
        bert=bert,
        device=str(captioner.device),
    )


def _usual_split(dataset: Dataset, config: Config) -> str:
    """Return the test split, or else dev; a DataError if there is neither."""
    usual = (config.data.split_test, config.data.split_dev)
    if found := next((name for name in usual if name in dataset.splits), None):
        return found
    raise DataError(
        f"{dataset.root}: no split {config.data.split_test} or {config.data.split_dev}; "
        f"choose one with --split: {', '.join(dataset.splits) or 'none'}"
    )


def _has_maps(captioner: Captioner, say: Callable[[str], None]) -> bool:
    try:
        return captioner.map_size() > 0
    except ModelError as error:  # an ensemble of several grids
        say(f"no pointing accuracy: {error}")
        return False


def _pointing(
    captioner: Captioner, dataset: Dataset, table: SplitTable, captions: list[list[Caption]]
) -> dict[str, Pointing]:
    """Compute pointing accuracy of the best captions, where a word counts."""
    size, rows = captioner.map_size(), []
    for example, (best, *_) in zip(table.examples, captions, strict=True):
        regions = dataset.regions(example.image_id) if dataset.regions else []
        rows.append((best.words, things_of(regions, captioner.encoder.preprocess, size)))
    found = {
        "all": pointing(rows),
        "different_things": pointing(row for row in rows if len(row[1]) > 1),
    }
    return {name: point for name, point in found.items() if point}


def things_of(regions: list[Region], preprocess: Preprocess, size: int) -> list[Thing]:
    """Return the things of an image on size x size places of what the CNN sees."""
    things = []
    for region in regions:
        seen = preprocess.pixels(Image.fromarray(region.mask).convert("RGB"))[:1] > 127
        cells = functional.adaptive_max_pool2d(seen.float(), size)[0] > 0
        things.append(Thing(region.words, cells.numpy(), float(seen.sum())))
    return things


def caption_split(
    captioner: Captioner,
    table: SplitTable,
    options: DecodingConfig,
    *,
    n_best: int = 1,
    maps: bool = False,
) -> list[list[Caption]]:
    """Caption every image of a split from its stored features, with words; `maps`: with attention.

    Raises:
        ImageError: if the model computes NaN or infinity for an image; names the first one.
    """
    captions: list[list[Caption]] = []
    with tqdm(total=len(table.examples), desc="captioning", unit="image", disable=None) as bar:
        for features in table.features.split(SEARCH_BATCH):
            for best in captioner.search_each(
                features, options, n_best=n_best, alternatives=ALTERNATIVES, maps=maps
            ):
                if isinstance(best, ImageError):
                    image = table.examples[len(captions)].image
                    raise ImageError(f"{plain(image)}: {best}; no scores written", kind=best.kind)
                captions.append(best)
            bar.update(len(features))
    return captions


def _write(result: Evaluation) -> None:
    columns = [score.per_image.tolist() for score in result.scores.values()]
    rows = zip(result.table.examples, result.captions, *columns, strict=True)
    lines = [
        {
            "file_name": utf8_name(str(example.image)),
            "image_id": utf8_name(example.image_id),
            "caption": captions[0].text,
            "score": round(captions[0].score, 6),
            "status": "ok",
            "references": list(example.captions),
            "scores": {
                name: None if math.isnan(value) else round(value, 6)
                for name, value in zip(result.scores, values, strict=True)
            },
            "n_best": [
                {
                    "caption": c.text,
                    "log_prob": round(c.log_prob, 6),
                    "score": round(c.score, 6),
                    "finished": c.finished,
                }
                for c in captions
            ],
        }
        for example, captions, *values in rows
    ]
    text = "".join(f"{to_json(line)}\n" for line in lines)
    write_text(result.output / "predictions.jsonl", text, "predictions")
    scores: dict[str, Any] = {name: score.as_dict() for name, score in result.scores.items()}
    scores["word_use"] = {name: asdict(use) for name, use in result.word_use.items()}
    if result.truth is not None:
        scores["truth"] = {"value": result.truth, "signature": f"truth|split:{result.split}"}
    if result.calibration:
        scores["calibration"] = asdict(result.calibration)
    if result.pointing:
        scores["pointing"] = {
            "value": result.pointing["all"].accuracy,
            "signature": f"pointing|split:{result.split}",
        } | {name: asdict(point) for name, point in result.pointing.items()}
    write_text(result.output / "scores.json", json.dumps(scores, indent=2) + "\n", "scores")
