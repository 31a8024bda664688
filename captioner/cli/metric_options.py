"""Options and output that the commands with metrics share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.cli.options import say, show

if TYPE_CHECKING:
    from captioner.metrics import Comparison, Score, WordUse

# Which metrics read an option.
_READERS = {
    "train": ("novel",),
    "images": ("clip_score",),
    "clip": ("clip_score",),
    "bert": ("bert_score",),
}


class CaptionsPath(click.Path):
    """A file or folder that exists, or tar files by a name with braces, such as `{00..09}.tar`."""

    def __init__(self) -> None:
        """Set what it takes."""
        super().__init__(path_type=Path, exists=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        if "{" in str(value):
            from captioner.data.formats.webdataset import is_pattern

            if is_pattern(Path(value)):  # the reader says which are missing
                return Path(value)
        return super().convert(value, param, ctx)


MOST_RESAMPLES = 10**6  # as in metrics.bootstrap, not imported here to keep --help fast
metrics_option = click.option(
    "--metrics",
    default="bleu,rouge_l,cider",
    show_default=True,
    help="Any of bleu, rouge_l, cider, cider_d; with Java, meteor and spice; all stands for these. "
    "Others: diversity, self_cider, novel (several captions an image); clip_score, bert_score "
    "(pretrained models); those of plug-ins.",
)
clip_option = click.option(
    "--clip",
    metavar="NAME:TAG",
    help="CLIP model of open_clip, or NAME:PATH of its weights.  [default: ViT-B-32:openai]",
)
bert_option = click.option(
    "--bert",
    metavar="NAME[@REVISION][:LAYER]",
    help="Model of BERTScore on the Hugging Face Hub, or a folder.  [default: roberta-large:17]",
)
_OPTIONS = (
    metrics_option,
    click.option(
        "--train",
        type=CaptionsPath(),
        help="Data set or captions that the system learnt from, for novel.",
    ),
    click.option(
        "--images",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder of the pictures, for clip_score.  [default: where the captions say they are]",
    ),
    clip_option,
    bert_option,
    click.option("--output", type=click.Path(path_type=Path), help="JSON file to write."),
    click.option(
        "--resamples",
        type=click.IntRange(0, MOST_RESAMPLES),
        default=1000,
        show_default=True,
        help="Bootstrap resamples for the confidence intervals; 0: no intervals.",
    ),
    click.option(
        "--tokenizer",
        type=click.Choice(["ptb", "unicode", "characters", "bpe"]),
        help="What scores compare: English words (ptb), words of any language (unicode, bpe), "
        "characters.  [default: that of the scores beside the captions, else ptb]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        show_default=True,
        help="Random seed of the bootstrap.",
    ),
)


def metric_names(metrics: str) -> list[str]:
    """Return the names in `--metrics`, each once; `all` stands for those of words."""
    from captioner.metrics import OF_WORDS

    names = [name for part in metrics.split(",") if (name := part.strip().lower())]
    if not names:
        raise click.UsageError("--metrics: name at least one metric")
    each = (OF_WORDS if name == "all" else [name] for name in names)
    return list(dict.fromkeys(chain.from_iterable(each)))


def refuse_unread(names: Sequence[str], **options: object) -> None:
    """Refuse an option that none of the metrics reads."""
    for option, value in options.items():
        if value is not None and not set(_READERS[option]) & {*names}:
            readers = " or ".join(_READERS[option])
            raise click.UsageError(f"--{option}: only {readers} reads it; name it in --metrics")


def metric_options(
    kind: str,
) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., None]]:
    """Add the options of metrics; the command receives `MetricOptions` and `MetricSources`.

    `--output` names a file of this kind of `ownership.FILES`; it gets the dictionary that the
    command returns.
    """

    def decorate(command: Callable[..., dict[str, Any]]) -> Callable[..., None]:
        @wraps(command)
        def run(
            *,
            metrics: str,
            train: Path | None,
            images: Path | None,
            clip: str | None,
            bert: str | None,
            output: Path | None,
            resamples: int,
            tokenizer: str | None,
            seed: int,
            **rest: Any,
        ) -> None:
            from captioner.scoring.metric_sources import MetricSources
            from captioner.system.escapes import to_json
            from captioner.system.files import write_text
            from captioner.system.ownership import check

            names = metric_names(metrics)
            given = {"train": train, "images": images, "clip": clip, "bert": bert}
            refuse_unread(names, **given)
            if output:
                check(output, kind)
            scoring = {"metrics": names, "resamples": resamples, "seed": seed}
            scoring |= {"tokenizer": tokenizer} if tokenizer else {}
            sources = MetricSources(images=images, train=train, clip=clip, bert=bert)
            content = command(scoring=scoring, sources=sources, **rest)
            if output:
                write_text(output, to_json(content, indent=2) + "\n", kind)
                say(f"wrote {output}")

        for option in reversed(_OPTIONS):
            run = option(run)
        return run

    return decorate


def show_scores(scores: Mapping[str, object], **others: str) -> None:
    """Print one line for each score and each other result."""
    width = max(map(len, scores))
    for name, score in {**scores, **others}.items():
        show(f"{name:{width}}  {score}")


def show_word_use(word_use: Mapping[str, WordUse]) -> None:
    """Print one line for each number of `WordUse`, of captions and of first references."""
    captions, first = (use.as_text() for use in word_use.values())
    show_scores({key: f"{text} (first references: {first[key]})" for key, text in captions.items()})


def show_signatures(scores: Mapping[str, Score] | Mapping[str, Comparison]) -> None:
    """Print the signatures; scores with equal settings share a line."""
    from captioner.metrics.signature import joined

    for line in joined(score.signature for score in scores.values()):
        show(line)
