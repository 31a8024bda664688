"""Intervals and p-values against scipy, on the same statistics, within the noise of resampling."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from captioner.metrics import Bleu, CiderD
from captioner.metrics.bootstrap import interval, paired_test, resampled_sums
from captioner.metrics.metric import Metric

RESAMPLES = 9999


def captions_of(seed: int, images: int, kept: float) -> list[list[str]]:
    """Copy the first reference of each image; a word survives with probability `kept`."""
    rng = random.Random(seed)
    return [
        [word if rng.random() < kept else rng.choice("abcdef") for word in references[0]]
        for references in references_of(images)
    ]


def references_of(images: int) -> list[list[list[str]]]:
    rng = random.Random(0)
    return [
        [rng.choices([*map(str, range(40))], range(40, 0, -1), k=rng.randint(6, 12))] * 2
        for _ in range(images)
    ]


def scored(metric: Metric, table: np.ndarray) -> Callable[..., np.ndarray]:
    """Return the last score of the rows with given numbers, (..., rows), as scipy calls it."""

    def score(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        assert axis == -1
        return metric.combine(table[rows].sum(axis=-2))[..., -1]

    return score


@pytest.fixture(scope="module", params=[Bleu, CiderD])
def case(request) -> tuple[Metric, np.ndarray, np.ndarray]:
    """A metric, and the statistics of two systems on 60 images."""
    metric = request.param(references_of(60))
    return metric, *(metric.statistics(captions_of(seed, 60, 0.8)) for seed in (1, 2))


def test_intervals_are_those_of_scipy(case) -> None:
    metric, a, _ = case
    ours = interval(metric.combine(resampled_sums(a, resamples=RESAMPLES, seed=0)))[-1]
    theirs = stats.bootstrap(
        (np.arange(60),),
        scored(metric, a),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    width = ours[1] - ours[0]
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.04 * width)
    spread = metric.combine(resampled_sums(a, resamples=RESAMPLES, seed=0))[:, -1].std(ddof=1)
    assert spread == pytest.approx(theirs.standard_error, rel=0.04)


def test_differences_of_two_systems_are_those_of_scipy(case) -> None:
    metric, a, b = case
    test = paired_test(a, b, metric.combine, resamples=RESAMPLES)
    of_a, of_b = scored(metric, a), scored(metric, b)

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return of_b(rows, axis) - of_a(rows, axis)

    theirs = stats.bootstrap(
        (np.arange(60),),
        difference,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    low, high = test.interval[-1]
    np.testing.assert_allclose((low, high), theirs.confidence_interval, atol=0.04 * (high - low))
    observed = test.difference[-1]
    assert observed == pytest.approx(difference(np.arange(60)), abs=1e-12)
    # The bootstrap's own p-value: how often a resample is as far from the observed difference.
    far = np.abs(theirs.bootstrap_distribution - observed) >= abs(observed)
    assert test.p_bootstrap[-1] == pytest.approx((1 + far.sum()) / (1 + RESAMPLES), abs=0.02)


@pytest.mark.parametrize("kept", [0.8, 0.77])
def test_randomisation_is_the_permutation_test_of_scipy(kept: float) -> None:
    for kind in (Bleu, CiderD):
        metric = kind(references_of(60))
        a = metric.statistics(captions_of(1, 60, 0.8))
        b = metric.statistics(captions_of(2, 60, kept))
        score = scored(metric, np.concatenate([a, b]))

        def difference(left: np.ndarray, right: np.ndarray, axis: int = -1, of=score) -> np.ndarray:
            return of(right, axis) - of(left, axis)

        theirs = stats.permutation_test(
            (np.arange(60), np.arange(60, 120)),
            difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(1),
        )
        test = paired_test(a, b, metric.combine, resamples=RESAMPLES)
        assert test.difference[-1] == pytest.approx(theirs.statistic, abs=1e-12)
        # scipy doubles the smaller tail. Ours counts both, which differs where they are not alike.
        assert test.p_randomization[-1] == pytest.approx(theirs.pvalue, abs=0.03)


def test_randomisation_of_few_images_is_the_exact_test() -> None:
    values = np.random.default_rng(3).normal([0.0, 0.55], 1.0, size=(10, 2))
    a, b = (np.column_stack([values[:, side], np.ones(10)]) for side in (0, 1))

    def mean(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
        return right.mean(axis=axis) - left.mean(axis=axis)

    exact = stats.permutation_test(
        (values[:, 0], values[:, 1]), mean, permutation_type="samples", vectorized=True
    )
    assert len(exact.null_distribution) == 2**10
    test = paired_test(a, b, lambda sums: sums[..., :1] / sums[..., 1:], resamples=20_000)
    assert test.p_randomization[0] == pytest.approx(exact.pvalue, abs=0.015)
