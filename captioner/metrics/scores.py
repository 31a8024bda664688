"""Score a set of captions, or compare two sets, by several metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from captioner.errors import ConfigError
from captioner.metrics import bootstrap
from captioner.metrics.bleu import Bleu
from captioner.metrics.cider import Cider, CiderD, CiderPlain
from captioner.metrics.java import Meteor, Spice
from captioner.metrics.references import Floats, PreparedReferences, Tokens, prepare
from captioner.metrics.rouge import RougeL
from captioner.metrics.signature import Signature
from captioner.system.version import __version__


class Metric(Protocol):
    """A metric: statistics of each image, summed over images and combined to K scores."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K scores."""

    @property
    def formula(self) -> Mapping[str, str]:
        """Fields of the signature that describe the formula."""

    @property
    def note(self) -> str:
        """Reason why the scores are undefined; empty if they are defined."""

    def statistics(self, hypotheses: Sequence[Tokens]) -> Floats:
        """Return the statistics of each image, (N, S)."""

    def combine(self, sums: Floats) -> Floats:
        """Compute scores, (..., K), from statistics summed over images, (..., S)."""


METRICS: Mapping[str, Callable[[PreparedReferences], Metric]] = {
    "bleu": Bleu,
    "rouge_l": RougeL,
    "cider": Cider,
    "cider_d": CiderD,
    "cider_plain": CiderPlain,
    "meteor": Meteor,
    "spice": Spice,
}
DEFAULT_METRICS = ("bleu", "rouge_l", "cider", "cider_d")


@dataclass(frozen=True, eq=False)
class Score:
    """One score of a set of captions.

    Args:
        name: for example `bleu_4`.
        value: score of the whole set; NaN if undefined.
        per_image: score of each image alone, float64 (N,).
        interval: bounds of the 95% confidence interval; None without resampling.
        signature: how the score was computed.
        note: reason why the score is undefined; empty if it is defined.
    """

    name: str
    value: float
    per_image: Floats
    interval: tuple[float, float] | None
    signature: str
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"undefined ({self.note})"
        return _with_interval(f"{self.value:.3f}", self.interval)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `scores.json`; an undefined value is None."""
        return {
            "value": _or_none(self.value),
            "interval": self.interval,
            "signature": self.signature,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """One score of two systems on the same images; see `bootstrap.PairedTest`.

    Args:
        name: for example `bleu_4`.
        a: score of the first system.
        b: score of the second system.
        difference: b minus a.
        interval: bounds of the 95% confidence interval of the difference.
        p_bootstrap: two-sided p-value of the paired bootstrap.
        p_randomization: two-sided p-value of the approximate randomisation.
        per_image: b minus a for each image, float64 (N,).
        signature: how the scores were computed.
        note: reason why the score is undefined; empty if it is defined.
    """

    name: str
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p_bootstrap: float
    p_randomization: float
    per_image: Floats
    signature: str
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"undefined ({self.note})"
        difference = _with_interval(f"{self.difference:+.3f}", self.interval)
        return f"{difference}, p = {self.p_randomization:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the JSON file; undefined values are None."""
        low, high = self.interval
        return {
            **{name: _or_none(getattr(self, name)) for name in ("a", "b", "difference")},
            "interval": None if math.isnan(low) else (low, high),
            "p_bootstrap": _or_none(self.p_bootstrap),
            "p_randomization": _or_none(self.p_randomization),
            "signature": self.signature,
            "note": self.note,
        }


def score_captions(
    hypotheses: Sequence[Tokens],
    references: PreparedReferences | Sequence[Sequence[Tokens]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    resamples: int = 0,
    seed: int = 0,
    tokenizer: str = "ptb",
    case: str = "lc",
    decode: str | None = None,
    split: str | None = None,
) -> dict[str, Score]:
    """Score captions by several metrics.

    Args:
        hypotheses: the tokens of one caption for each image.
        references: the tokens of each image's reference captions; to score the same images
            often, prepare them once with `PreparedReferences`.
        metrics: names in `METRICS`; `bleu` gives four scores.
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
    labels = {"tok": tokenizer, "case": case, "decode": decode, "split": split}
    scores: dict[str, Score] = {}
    for metric in _make(metrics, prepared):
        statistics = metric.statistics(hypotheses)
        values, per_image = metric.combine(statistics.sum(axis=0)), metric.combine(statistics)
        intervals = None
        if resamples and len(prepared) > 1 and not metric.note:
            sums = bootstrap.resampled_sums(statistics, resamples=resamples, seed=seed)
            intervals = bootstrap.interval(metric.combine(sums))
        for k, name in enumerate(metric.names):
            scores[name] = Score(
                name=name,
                value=float(values[k]),
                per_image=per_image[:, k],
                interval=None if intervals is None else _pair(intervals[k]),
                signature=_sign(name, metric, prepared, labels),
                note=metric.note,
            )
    return scores


def compare_captions(
    a: Sequence[Tokens],
    b: Sequence[Tokens],
    references: PreparedReferences | Sequence[Sequence[Tokens]],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
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
    labels = {"tok": tokenizer, "case": case, "split": split}
    comparisons: dict[str, Comparison] = {}
    for metric in _make(metrics, prepared):
        stats_a, stats_b = metric.statistics(a), metric.statistics(b)
        test = bootstrap.paired_test(
            stats_a, stats_b, metric.combine, resamples=resamples, seed=seed
        )
        total_a, total_b = metric.combine(stats_a.sum(axis=0)), metric.combine(stats_b.sum(axis=0))
        per_image = metric.combine(stats_b) - metric.combine(stats_a)
        for k, name in enumerate(metric.names):
            comparisons[name] = Comparison(
                name=name,
                a=float(total_a[k]),
                b=float(total_b[k]),
                difference=float(test.difference[k]),
                interval=_pair(test.interval[k]),
                p_bootstrap=float(test.p_bootstrap[k]),
                p_randomization=float(test.p_randomization[k]),
                per_image=per_image[:, k],
                signature=_sign(name, metric, prepared, labels),
                note=metric.note,
            )
    return comparisons


def _make(metrics: Sequence[str], references: PreparedReferences) -> list[Metric]:
    """Build metrics by name."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ConfigError(
            f"metrics: unknown {', '.join(unknown)}; choose from {', '.join(METRICS)}"
        )
    return [METRICS[name](references) for name in metrics]


def _sign(
    name: str, metric: Metric, references: PreparedReferences, labels: Mapping[str, str | None]
) -> str:
    """Return the signature of a score; `labels` holds the fields that the caller gives."""
    fewest, most = references.per_image.min(), references.per_image.max()
    fields = {
        "refs": str(fewest) if fewest == most else f"{fewest}-{most}",
        "tok": labels["tok"],
        "case": labels["case"],
        **metric.formula,
        "decode": labels.get("decode"),
        "split": labels["split"],
        "n": len(references),
        "v": __version__,
    }
    return str(Signature.build(name.replace("_", ""), fields))


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _pair(low_high: Floats) -> tuple[float, float]:
    low, high = low_high.tolist()
    return low, high


def _with_interval(text: str, interval: tuple[float, float] | None) -> str:
    """Append half the width of the interval to a value."""
    if interval is None:
        return text
    half = (interval[1] - interval[0]) / 2
    return f"{text} +- {half:.3f} ({bootstrap.CONFIDENCE:.0%})"
