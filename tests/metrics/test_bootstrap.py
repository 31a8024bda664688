"""Resampling is unbiased, seeded and quick; tests of equal systems are not fooled."""

from __future__ import annotations

import numpy as np
import pytest

from captioner.errors import ConfigError, DataError
from captioner.metrics import bootstrap
from captioner.metrics.bootstrap import interval, paired_test, resampled_sums, swapped_sums


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., :1] / sums[..., 1:]


def column(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values, np.ones(len(values))])


def test_every_resample_draws_as_many_images_as_there_are() -> None:
    sums = resampled_sums(np.ones((37, 2)), resamples=50, seed=0)
    assert (sums == 37).all()


def test_resamples_are_means_of_drawn_images() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    means = mean(resampled_sums(column(values), resamples=4000, seed=1))[:, 0]
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(400), rel=0.05)


def test_columns_of_one_image_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=20)
    sums = resampled_sums(np.column_stack([values, -2 * values]), resamples=30, seed=0)
    np.testing.assert_allclose(sums[:, 1], -2 * sums[:, 0])


def test_blocks_give_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = column(np.arange(10.0))
    monkeypatch.setattr(bootstrap, "_BLOCK", 30)
    sums = resampled_sums(values, resamples=7, seed=3)
    assert sums.shape == (7, 2)
    assert (sums[:, 1] == 10).all()
    assert len(np.unique(sums[:, 0])) > 3


def test_swaps_take_half_of_the_images() -> None:
    sums = swapped_sums(np.ones((1000, 1)), trials=200, seed=0)
    assert sums.mean() == pytest.approx(500, rel=0.02)
    assert 0 < sums.std() < 50


def test_seeds() -> None:
    values = column(np.arange(50.0))
    for draw in (
        lambda seed: resampled_sums(values, resamples=5, seed=seed),
        lambda seed: swapped_sums(values, trials=5, seed=seed),
    ):
        np.testing.assert_array_equal(draw(1), draw(1))
        assert (draw(1) != draw(2)).any()


def test_interval_holds_the_middle_share() -> None:
    samples = np.column_stack([np.arange(1001.0), np.arange(1001.0) * 2])
    np.testing.assert_allclose(interval(samples), [[25, 975], [50, 1950]])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        sample = column(rng.normal(1.0, 1.0, size=80))
        low, high = interval(mean(resampled_sums(sample, resamples=300, seed=seed)))[0]
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_system_does_not_differ_from_itself() -> None:
    values = column(np.random.default_rng(0).normal(size=40))
    test = paired_test(values, values, mean, resamples=100)
    assert test.difference[0] == 0
    assert test.interval[0].tolist() == [0, 0]
    assert test.p_bootstrap[0] == test.p_randomization[0] == 1


def test_a_clear_difference_is_found_and_its_sign_is_b_less_a() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=100)
    b = a + 0.5 + 0.1 * rng.normal(size=100)
    test = paired_test(column(a), column(b), mean, resamples=400)
    back = paired_test(column(b), column(a), mean, resamples=400)
    assert test.difference[0] == pytest.approx(0.5, abs=0.05)
    assert back.difference[0] == -test.difference[0]
    assert 0.4 < test.interval[0, 0] < test.interval[0, 1] < 0.6
    assert test.p_bootstrap[0] == test.p_randomization[0] == 1 / 401


def test_chance_is_called_significant_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    found = np.zeros(2)
    for seed in range(200):
        a, b = column(rng.normal(size=60)), column(rng.normal(size=60))
        test = paired_test(a, b, mean, resamples=200, seed=seed)
        found += [test.p_bootstrap[0] <= 0.05, test.p_randomization[0] <= 0.05]
    assert (found / 200 < 0.11).all()
    assert (found > 0).all()


def test_pairing_matters() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, size=200)
    a, b = column(hard), column(hard + 0.3 + rng.normal(0, 0.5, size=200))
    assert paired_test(a, b, mean, resamples=200).p_randomization[0] < 0.02


def test_undefined_scores_have_undefined_p_values() -> None:
    values = column(np.full(5, np.nan))
    test = paired_test(values, values, mean, resamples=10)
    assert np.isnan([test.difference[0], test.p_bootstrap[0], test.p_randomization[0]]).all()


def test_two_images_can_be_compared_and_one_cannot() -> None:
    a, b = column(np.array([1.0, 2.0])), column(np.array([2.0, 4.0]))
    test = paired_test(a, b, mean, resamples=50)
    assert test.difference[0] == 1.5
    assert set(test.interval[0]) <= {1.0, 1.5, 2.0}
    with pytest.raises(DataError, match=r"two images or more, was 1$"):
        paired_test(a[:1], b[:1], mean, resamples=50)


@pytest.mark.parametrize("seed", [-1, 2**63 + 1, 1.5, "1"])
def test_a_seed_that_is_none_is_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"^seed: must be 0 to 2\^63 - 1, was"):
        resampled_sums(np.ones((3, 1)), resamples=1, seed=seed)


def test_no_resamples_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="resamples"):
        resampled_sums(np.ones((3, 1)), resamples=0, seed=0)
