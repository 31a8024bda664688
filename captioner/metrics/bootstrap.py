"""Confidence intervals and significance tests by resampling the statistics of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from captioner.errors import ConfigError, DataError
from captioner.metrics.references import Floats
from captioner.system.foreign import excerpt

CONFIDENCE = 0.95
MOST_RESAMPLES = 10**6
_BLOCK = 1 << 22  # numbers per block of resamples: 32 MiB


def resampled_sums(statistics: Floats, *, resamples: int, seed: int) -> Floats:
    """Sum statistics of images, (N, S), drawn with replacement: float64 (resamples, S).

    Source: Efron: Bootstrap methods: another look at the jackknife, Annals of Statistics 7, 1979.

    Raises:
        ConfigError: if resamples is not 1 to 10^6 or seed not 0 to 2^63 - 1.
    """
    images = len(statistics)

    def draw(rng: np.random.Generator, rows: int) -> Floats:
        drawn = rng.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images)
        return times.reshape(rows, images).astype(np.float64)

    return _products(draw, statistics, resamples, seed)


def swapped_sums(statistics: Floats, *, trials: int, seed: int) -> Floats:
    """Sum statistics over random subsets that hold each image with probability 1/2.

    Raises:
        ConfigError: see `resampled_sums`.
    """

    def draw(rng: np.random.Generator, rows: int) -> Floats:
        return rng.integers(2, size=(rows, len(statistics)), dtype=np.int8).astype(np.float64)

    return _products(draw, statistics, trials, seed)


def interval(samples: Floats) -> Floats:
    """Return the central 95% interval of samples (R, K): float64 (K, 2)."""
    tail = (1 - CONFIDENCE) / 2
    return np.asarray(np.quantile(samples, [tail, 1 - tail], axis=0).T)


class PairedTest(NamedTuple):
    """The difference of two systems on the same images; float64 (K,), the interval (K, 2)."""

    difference: Floats  # score of b minus score of a
    interval: Floats  # confidence interval of the difference, by paired bootstrap
    p_bootstrap: Floats  # two-sided, in (0, 1]
    p_randomization: Floats  # two-sided, in (0, 1]


def paired_test(
    a: Floats,
    b: Floats,
    combine: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedTest:
    """Test whether the scores of two systems differ significantly.

    Sources: paired bootstrap: Koehn: Statistical significance tests for machine translation
    evaluation, EMNLP 2004; approximate randomisation: Noreen: Computer-intensive methods for
    testing hypotheses, 1989.

    Args:
        a: statistics of each image for one system, (N, S).
        b: statistics for the other system, the same images in the same order.
        combine: maps summed statistics (..., S) to scores (..., K).
        resamples: of the bootstrap, and trials of the randomisation.
        seed: 0 to 2^63 - 1.

    Raises:
        ConfigError: see `resampled_sums`.
        DataError: if there are fewer than two images.
    """
    if len(a) < 2:
        raise DataError(f"a comparison of two systems needs two images or more, was {len(a)}")
    width = a.shape[1]
    observed = combine(b.sum(axis=0)) - combine(a.sum(axis=0))
    sums = resampled_sums(np.hstack([a, b]), resamples=resamples, seed=seed)
    drawn = combine(sums[:, width:]) - combine(sums[:, :width])
    # Null hypothesis: swapping the two systems' statistics of an image changes nothing.
    moved = swapped_sums(b - a, trials=resamples, seed=seed + 1)
    shuffled = combine(b.sum(axis=0) - moved) - combine(a.sum(axis=0) + moved)
    return PairedTest(
        difference=observed,
        interval=interval(drawn),
        p_bootstrap=_p_value(drawn - observed, observed),
        p_randomization=_p_value(shuffled, observed),
    )


def _p_value(by_chance: Floats, observed: Floats) -> Floats:
    """Return the fraction of trials at least as far from 0, with the observation as one trial."""
    # Rounding of sums in another order must not break a tie.
    as_far = np.abs(by_chance) >= np.abs(observed) - 1e-12
    p_value = (1 + as_far.sum(axis=0)) / (1 + len(by_chance))
    return np.where(np.isnan(observed), np.nan, p_value)


def _products(
    draw: Callable[[np.random.Generator, int], Floats], statistics: Floats, rows: int, seed: int
) -> Floats:
    """Multiply `rows` random rows of image weights by the statistics, block by block."""
    if not isinstance(rows, int) or not 1 <= rows <= MOST_RESAMPLES:
        raise ConfigError(f"resamples: must be 1 to {MOST_RESAMPLES:,}, was {excerpt(rows, 60)}")
    if not isinstance(seed, int) or not 0 <= seed <= 2**63:
        raise ConfigError(f"seed: must be 0 to 2^63 - 1, was {excerpt(seed, 60)}")
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK // max(1, len(statistics)))  # rows whose image weights fit in memory
    return np.concatenate(
        [draw(rng, min(size, rows - start)) @ statistics for start in range(0, rows, size)]
    )
