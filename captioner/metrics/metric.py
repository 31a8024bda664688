"""What all metrics share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from captioner.errors import ConfigError
from captioner.metrics.inputs import MetricInputs, SystemCaptions
from captioner.metrics.references import Floats, PreparedReferences, Tokens, prepare


class Metric:
    """A metric: statistics of each image, summed over images and combined to K scores.

    A metric of words implements `score` or `statistics`. One that reads more implements `measure`.

    Args:
        references: the tokens of each image's reference captions, or prepared references.

    Raises:
        DataError: see `PreparedReferences`.
    """

    names: ClassVar[tuple[str, ...]]  # of the K scores
    formula: ClassVar[Mapping[str, str]]  # fields of the signature
    one_caption: ClassVar[bool] = True  # scores each image's first caption; False: all of them
    plugin: str | None = None  # name of a plug-in's metric; captioner sets it
    note = ""  # reason why the scores are undefined; empty if they are defined

    def __init__(self, references: PreparedReferences | Sequence[Sequence[Tokens]]) -> None:
        self._references = prepare(references)

    def use(self, inputs: MetricInputs, tokenizer: str) -> None:
        """Take what the metric needs besides words; a `note` says what is missing.

        Raises:
            ConfigError: if an input is wrong.
        """

    def fields(self) -> Mapping[str, str]:
        """Return the metric's fields of the signature, once captions are measured."""
        return self.formula

    def measure(self, captions: SystemCaptions | Sequence[Tokens]) -> Floats:
        """Return the statistics of each image, (N, S), for captions as written or their tokens.

        Raises:
            ConfigError: if the metric needs captions as written.
            DataError: if there is not one caption for each image.
        """
        return self.statistics(captions.best if isinstance(captions, SystemCaptions) else captions)

    def score(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Score each image, (N,); only for metrics of which the score is the mean over images."""
        raise NotImplementedError("it must define score, or statistics and combine")

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Return the statistics of each image, (N, S): here its score and the count 1.

        Raises:
            DataError: if there is not one caption for each image.
        """
        return with_count(self.score(hypotheses))

    def combine(self, sums: Floats) -> Floats:
        """Compute scores, (..., K), from statistics of one image or summed, (..., S)."""
        return np.asarray(sums[..., :-1] / sums[..., -1:])


def with_count(scores: Floats) -> Floats:
    """Return statistics of which `Metric.combine` makes the mean: scores, (N,) or (N, K), and 1."""
    return np.column_stack([scores, np.ones(len(scores))])


def as_written(captions: SystemCaptions | Sequence[Tokens], metric: str) -> SystemCaptions:
    """Return captions as written.

    Raises:
        ConfigError: if they are tokens.
    """
    if not isinstance(captions, SystemCaptions):
        raise ConfigError(f"{metric}: needs the captions as written; give SystemCaptions")
    return captions
