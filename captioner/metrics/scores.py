"""Score a set of captions, or compare two sets, by several metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

from captioner.errors import ConfigError, DataError, checked_names, must_be
from captioner.metrics import bootstrap
from captioner.metrics.bert_score import BertScore
from captioner.metrics.bleu import Bleu
from captioner.metrics.cider import Cider, CiderD
from captioner.metrics.clip_score import ClipScore
from captioner.metrics.diversity import Diversity, Novel, SelfCider
from captioner.metrics.inputs import MetricInputs, SystemCaptions
from captioner.metrics.java import Meteor, Spice
from captioner.metrics.metric import Metric
from captioner.metrics.references import Floats, PreparedReferences, Tokens, prepare
from captioner.metrics.rouge import RougeL
from captioner.metrics.signature import sign
from captioner.system.foreign import excerpt
from captioner.system.plugins import guarded, load, names, plugin, tell_unused
from captioner.system.version import __version__

METRICS: Mapping[str, type[Metric]] = {
    "bleu": Bleu,
    "rouge_l": RougeL,
    "cider": Cider,
    "cider_d": CiderD,
    "meteor": Meteor,
    "spice": Spice,
    "diversity": Diversity,
    "self_cider": SelfCider,
    "novel": Novel,
    "clip_score": ClipScore,
    "bert_score": BertScore,
}
OF_WORDS = ("bleu", "rouge_l", "cider", "cider_d", "meteor", "spice")  # of one caption an image
DEFAULT_METRICS = ("bleu", "rouge_l", "cider", "cider_d")


def metric_named(name: str) -> type[Metric] | None:
    """Return the metric of a name in `METRICS` or of a plug-in; None if there is none.

    Raises:
        ConfigError: if a plug-in cannot be used.
    """
    if name in METRICS:
        tell_unused("metrics", name)
        return METRICS[name]
    if plugin("metrics", name) is None:
        return None
    metric: type[Metric] = load("metrics", name, Metric)
    return metric


@dataclass(frozen=True, eq=False)
class _Result:
    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the JSON file; undefined values are None."""
        names = [f.name for f in fields(self) if f.name not in ("name", "per_image")]
        values = {name: getattr(self, name) for name in names}
        return {name: None if _is_nan(value) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class Score(_Result):
    """One score of a set of captions."""

    name: str  # such as `bleu_4`
    value: float  # NaN if undefined
    per_image: Floats  # score of each image alone, float64 (N,)
    interval: tuple[float, float] | None  # 95% confidence interval; None without resampling
    signature: str
    note: str = ""  # reason why the score is undefined; empty if it is defined

    def __str__(self) -> str:
        if self.note:
            return f"undefined ({self.note})"
        return _with_interval(f"{self.value:.3f}", self.interval)


@dataclass(frozen=True, eq=False)
class Comparison(_Result):
    """One score of two systems on the same images; see `bootstrap.PairedTest`."""

    name: str  # such as `bleu_4`
    a: float  # score of the first system
    b: float  # score of the second system
    difference: float  # b minus a
    interval: tuple[float, float]  # 95% confidence interval of the difference
    p_bootstrap: float  # two-sided
    p_randomization: float  # two-sided
    per_image: Floats  # b minus a for each image, float64 (N,)
    signature: str
    note: str = ""  # reason why the scores are undefined; empty if they are defined

    def __str__(self) -> str:
        if self.note:
            return f"undefined ({self.note})"
        difference = _with_interval(f"{self.difference:+.3f}", self.interval)
        return f"{difference}, p = {self.p_randomization:.3f}"


@checked_names
def score_captions(
    hypotheses: SystemCaptions | Sequence[Tokens],
    references: PreparedReferences | Sequence[Sequence[Tokens]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    inputs: MetricInputs | None = None,
    resamples: int = 0,
    seed: int = 0,
    tokenizer: str = "ptb",
    case: str = "lc",
    decode: str | None = None,
    split: str | None = None,
) -> dict[str, Score]:
    """Score captions by several metrics.

    Args:
        hypotheses: the tokens of one caption for each image. The metrics `diversity`,
            `self_cider`, `novel`, `clip_score` and `bert_score` need `SystemCaptions`.
        references: the tokens of each image's reference captions; to score the same images
            often, prepare them once with `PreparedReferences`.
        metrics: names in `METRICS` or of plug-ins; `bleu` gives four scores.
        inputs: what `novel`, `clip_score` and `bert_score` need.
        resamples: bootstrap resamples for the intervals; 0: no intervals. One image has none.
        seed: seed of the bootstrap.
        tokenizer: tokeniser of the tokens, for the signature.
        case: letter case of the tokens, for the signature.
        decode: search settings of the captions, for the signature, such as `beam5,lp0.0`.
        split: data split, for the signature.

    Returns:
        Scores by name: `bleu_1` to `bleu_4`, `rouge_l`, `cider`, `cider_d`, ...

    Raises:
        ConfigError: if a metric is unknown.
        DataError: if the captions cannot be scored; see `PreparedReferences`.
    """
    prepared = prepare(references)
    _check(hypotheses, resamples=resamples, seed=seed)
    labels = {"tok": tokenizer, "case": case, "decode": decode, "split": split}
    scores: dict[str, Score] = {}
    for metric in _make(metrics, prepared, inputs, tokenizer):
        with _own_errors(metric):
            statistics = _measure(metric, hypotheses)
            values, per_image = metric.combine(statistics.sum(axis=0)), metric.combine(statistics)
            intervals: list[tuple[float, float] | None] = [None] * len(values)
            if resamples and len(prepared) > 1 and not metric.note:
                sums = bootstrap.resampled_sums(statistics, resamples=resamples, seed=seed)
                intervals = [*map(_pair, bootstrap.interval(metric.combine(sums)))]
            for k, name in enumerate(metric.names):
                signature = _sign(name, metric, prepared, labels)
                scores[name] = Score(
                    name, float(values[k]), per_image[:, k], intervals[k], signature, metric.note
                )
    return scores


@checked_names
def compare_captions(
    a: SystemCaptions | Sequence[Tokens],
    b: SystemCaptions | Sequence[Tokens],
    references: PreparedReferences | Sequence[Sequence[Tokens]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    inputs: MetricInputs | None = None,
    resamples: int = 1000,
    seed: int = 0,
    tokenizer: str = "ptb",
    case: str = "lc",
    split: str | None = None,
) -> dict[str, Comparison]:
    """Test whether the scores of systems `a` and `b` differ; see `bootstrap.paired_test`.

    For Args and Raises see `score_captions`.

    Returns:
        Comparisons by name of the score.
    """
    prepared = prepare(references)
    for hypotheses in (a, b):
        _check(hypotheses, resamples=resamples, seed=seed)
    labels = {"tok": tokenizer, "case": case, "split": split}
    comparisons: dict[str, Comparison] = {}
    for metric in _make(metrics, prepared, inputs, tokenizer):
        with _own_errors(metric):
            stats_a, stats_b = _measure(metric, a), _measure(metric, b)
            test = bootstrap.paired_test(
                stats_a, stats_b, metric.combine, resamples=resamples, seed=seed
            )
            total_a, total_b = (
                metric.combine(stats_a.sum(axis=0)),
                metric.combine(stats_b.sum(axis=0)),
            )
            per_image = metric.combine(stats_b) - metric.combine(stats_a)
            for k, name in enumerate(metric.names):
                comparisons[name] = Comparison(
                    name,
                    float(total_a[k]),
                    float(total_b[k]),
                    float(test.difference[k]),
                    _pair(test.interval[k]),
                    float(test.p_bootstrap[k]),
                    float(test.p_randomization[k]),
                    per_image[:, k],
                    _sign(name, metric, prepared, labels),
                    metric.note,
                )
    return comparisons


def _check(hypotheses: SystemCaptions | Sequence[Tokens], **numbers: int) -> None:
    must_be("hypotheses", hypotheses, Sequence, SystemCaptions)
    for name, number in numbers.items():
        must_be(name, number, int)
        if not 0 <= number < 2**32:
            raise ConfigError(f"{name}: must be 0 to {2**32 - 1:,}, given {excerpt(number, 60)}")


def _make(
    metrics: Sequence[str],
    references: PreparedReferences,
    inputs: MetricInputs | None,
    tokenizer: str,
) -> list[Metric]:
    must_be("metrics", metrics, Sequence)
    must_be("inputs", inputs, MetricInputs, type(None))
    for name in metrics:
        must_be("metrics", name, str)
    found = {name: metric_named(name) for name in metrics}
    if unknown := [name for name, metric in found.items() if metric is None]:
        added = [name for name in names("metrics") if name not in METRICS]
        others = f"; of plug-ins: {', '.join(added)}" if added else ""
        raise ConfigError(
            f"metrics: unknown {', '.join(unknown)}; choose from {', '.join(METRICS)}{others}"
        )
    made = [
        _made(name, metric, references, inputs or MetricInputs(), tokenizer)
        for name, metric in found.items()
        if metric
    ]
    scores = Counter(score for metric in made for score in metric.names)
    if twice := [name for name, count in scores.items() if count > 1]:
        raise ConfigError(f"metrics: several of them give the score {twice[0]}; leave one out")
    return made


def _made(
    name: str,
    make: type[Metric],
    references: PreparedReferences,
    inputs: MetricInputs,
    tokenizer: str,
) -> Metric:
    """Make a metric; one of a plug-in knows its name in the table."""
    with _own_errors(name):
        metric = make(references)
        metric.use(inputs, tokenizer)
        metric.plugin = name if name not in METRICS else None
        if not isinstance(metric.names, tuple) or not all(isinstance(n, str) for n in metric.names):
            raise TypeError(f"names must be a tuple of texts, is {excerpt(metric.names, 60)}")
    return metric


def _measure(metric: Metric, hypotheses: SystemCaptions | Sequence[Tokens]) -> Floats:
    """Return the statistics of each image, (N, S); those of a plug-in are tried."""
    statistics = metric.measure(hypotheses)
    if metric.plugin:
        images = len(hypotheses.best if isinstance(hypotheses, SystemCaptions) else hypotheses)
        if len(statistics) != images:
            raise ValueError(f"{len(statistics):,} scores for {images:,} images")
        shape, wanted = metric.combine(statistics).shape, (len(statistics), len(metric.names))
        if shape != wanted:
            raise ValueError(f"scores of each image have shape {shape}, not {wanted}")
    return statistics


def _own_errors(metric: Metric | str) -> AbstractContextManager[None]:
    """Return what names a plug-in whose metric fails; other metrics raise as they do."""
    name = metric if isinstance(metric, str) else metric.plugin
    who = plugin("metrics", name) if name and name not in METRICS else None
    return guarded(who, DataError) if who else nullcontext()


def _sign(
    name: str, metric: Metric, references: PreparedReferences, labels: Mapping[str, str | None]
) -> str:
    fewest, most = references.per_image.min(), references.per_image.max()
    entries = {
        "refs": str(fewest) if fewest == most else f"{fewest}-{most}",
        "tok": labels["tok"],
        "case": labels["case"],
        **metric.fields(),
        "plugin": who.label
        if metric.plugin and (who := plugin("metrics", metric.plugin))
        else None,
        "decode": labels.get("decode"),
        "split": labels["split"],
        "n": len(references),
        "v": __version__,
    }
    return sign(name.replace("_", ""), entries)


def _is_nan(value: object) -> bool:
    first = value[0] if isinstance(value, tuple) else value
    return isinstance(first, float) and math.isnan(first)


def _pair(low_high: Floats) -> tuple[float, float]:
    low, high = low_high.tolist()
    return low, high


def _with_interval(text: str, interval: tuple[float, float] | None) -> str:
    """Append half the width of the interval to a value."""
    if interval is None:
        return text
    half = (interval[1] - interval[0]) / 2
    return f"{text} +- {half:.3f} ({bootstrap.CONFIDENCE:.0%})"
