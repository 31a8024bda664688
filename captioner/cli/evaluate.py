"""`captioner evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captioner.cli.metric_options import (
    bert_option,
    clip_option,
    metric_names,
    metrics_option,
    refuse_unread,
    show_scores,
    show_signatures,
    show_word_use,
)
from captioner.cli.options import (
    decoding_options,
    device_option,
    models_option,
    say,
    set_option,
    with_stream_kept,
)

if TYPE_CHECKING:
    from captioner.config import DecodingOverrides
    from captioner.evaluation.evaluate import Evaluation


@click.command("evaluate")
@models_option
@click.option("--data", help="Data set to caption.  [default: the model's training data set]")
@click.option("--split", help="Split to caption.  [default: test if it exists, else dev]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for report, predictions and scores.  [default: evaluation/ in the run]",
)
@set_option
@click.option("--n-best", type=click.IntRange(1, 1000), default=1, help="Captions per image.")
@metrics_option
@clip_option
@bert_option
@click.option(
    "--explain", is_flag=True, help="Maps in the report: where each word came from; slow."
)
@decoding_options
@device_option
def command(
    models: tuple[Path, ...],
    data: str | None,
    split: str | None,
    output: Path | None,
    overrides: tuple[str, ...],
    n_best: int,
    metrics: str,
    clip: str | None,
    bert: str | None,
    explain: bool,
    device: str,
    decoding: DecodingOverrides,
) -> None:
    """Caption a split of a data set and score the captions."""
    if len(models) > 1 and not output:
        raise click.UsageError("several --model need --output FOLDER: they share no run folder")
    names = metric_names(metrics)
    refuse_unread(names, clip=clip, bert=bert)
    from captioner.captioner import Captioner
    from captioner.evaluation.evaluate import METRICS_OF_EVALUATE, evaluate
    from captioner.evaluation.report import write_report
    from captioner.run_dir import config_of_model, find_models, results_folder

    folders = find_models(models, say)
    folder = folders[0]
    config = with_stream_kept(config_of_model(folder, data, overrides), overrides, data)
    captioner = Captioner.load(folders, device)
    options = captioner.settings(n_best=n_best, **decoding)
    _tell_beam(options.beam_size, captioner.decoding.beam_size, "beam_size" in decoding, n_best)
    output = output or results_folder(folder, "evaluation")
    evaluated = partial(evaluate, split=split, n_best=n_best, explain=explain, say=say)
    result = evaluated(captioner, config, output, options, metrics=names, clip=clip, bert=bert)
    train = config.data.split_train
    report = write_report(result, captioner.vocabulary, model=folder, split_train=train)
    _show(result, f"captioned by {' and '.join(map(str, folders))}")
    say(f"report: {report}")
    usual = names == [*METRICS_OF_EVALUATE] and options == captioner.decoding
    if usual and not (data or overrides or folders[1:]):
        _record(result, folder)


def _tell_beam(size: int, default: int, given: bool, n_best: int) -> None:
    """Say that the beam is wider than the model's, unless the user set its size."""
    if size > default and not given:
        say(f"beam size: {size} instead of {default}, because of --n-best {n_best}")


def _record(result: Evaluation, folder: Path) -> None:
    """Add scores of a run's own data and settings to the model card."""
    from captioner.model_card import Results, record

    results = Results(result.split, result.scores, result.word_use, result.truth)
    if card := record(folder, results):
        say(f"scores added to the model card: {card}")


def _show(result: Evaluation, by: str) -> None:
    say(f"{result.split}: {len(result.captions):,} images {by}")
    others = {}
    if result.truth is not None:
        others["truth"] = f"{result.truth:.3f} of the captions are true in every attribute"
    for name, point in result.pointing.items():
        others["pointing" if name == "all" else "pointing, different things"] = str(point)
    show_scores(result.scores, **others)
    show_signatures(result.scores)
    show_word_use(result.word_use)
    say(f"wrote {result.output / 'predictions.jsonl'} and {result.output / 'scores.json'}")
