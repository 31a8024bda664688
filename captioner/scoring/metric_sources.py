"""Finds what some metrics read besides captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from captioner.data.load import load_dataset, recognised
from captioner.metrics import MetricInputs
from captioner.scoring.systems import read_references
from captioner.text import words_of


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where some metrics read: options of `captioner score` and `captioner compare`."""

    train: Path | None = None  # data set, or file of captions, that the system learnt from


def gather(sources: MetricSources, tokenizer: str) -> MetricInputs:
    """Find what the metrics need.

    Raises:
        DataError: if there are no train captions.
    """
    words = words_of(tokenizer)
    return MetricInputs(
        train=[*map(words, _train_captions(sources.train))] if sources.train else ()
    )


def _train_captions(path: Path) -> list[str]:
    """Return the captions of the train split of a data set, or all of a caption file.

    Raises:
        DataError: if there is none.
    """
    if not recognised(path):
        return [text for row in read_references([path]).images for text in row.captions]
    dataset = load_dataset(path, images=False, holdout=0)
    return [text for example in dataset.split("train") for text in example.captions]
