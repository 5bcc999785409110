"""p-values and thresholds from held-out scores: by hand, by brute force, and their promise in a simulation."""

import numpy as np
import pytest
from scipy import stats

from sanflow.errors import ConfigError
from sanflow.evaluation.conformal import (
    alarm_rank,
    differs,
    expected_rate,
    p_values,
    proportion_interval,
    rate_interval,
    threshold,
)


def test_p_values_are_those_of_a_brute_force_count():
    random = np.random.default_rng(0)
    held_out, scores = random.integers(0, 12, 40).astype(float), random.integers(-1, 14, 60).astype(float)
    expected = [(1 + sum(h >= s for h in held_out)) / (len(held_out) + 1) for s in scores]
    np.testing.assert_array_equal(p_values(scores, held_out), expected)


@pytest.mark.parametrize("n", [1, 9, 10, 19, 59, 100])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.25, 0.5])
def test_a_score_above_the_threshold_is_one_whose_p_value_is_at_most_the_level(n, level):
    held_out = np.random.default_rng(n).normal(size=n)
    if level < 1 / (n + 1):
        with pytest.raises(ConfigError, match="held-out good parts for a false-alarm rate"):
            threshold(level, held_out)
        return
    scores = np.concatenate([held_out, held_out + 1e-9, np.linspace(-4, 4, 50)])
    above = scores > threshold(level, held_out)
    np.testing.assert_array_equal(above, p_values(scores, held_out) <= level + 1e-12)


@pytest.mark.parametrize(("level", "n", "rank"), [(0.05, 19, 1), (0.05, 39, 2), (0.1, 9, 1), (0.1, 28, 2), (0.3, 9, 3)])
def test_ranks_by_hand(level, n, rank):
    assert alarm_rank(level, n) == rank
    assert expected_rate(level, n) == rank / (n + 1)


def test_too_few_parts_are_told_with_the_number_that_is_needed():
    with pytest.raises(ConfigError, match=r"at least 19 held-out.*of 0\.05, but the detector has 18.*1 / 19"):
        alarm_rank(0.05, 18)
    for level in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=r"in \(0, 1\), but got"):
            alarm_rank(level, 100)


def test_exchangeable_parts_have_the_expected_rate_and_its_law():
    """20,000 held-out sets of 30 parts and one new part each; the rate of a set is that of a uniform score."""
    draws, n, level = 20_000, 30, 0.1
    rank = alarm_rank(level, n)
    scores = np.random.default_rng(1).random((draws, n + 1))
    thresholds = np.sort(scores[:, :n], axis=1)[:, n - rank]
    alarms = scores[:, n] > thresholds
    expected = expected_rate(level, n)
    assert abs(alarms.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)
    # For uniform scores the rate of a set is 1 - its threshold.
    law = stats.beta(rank, n + 1 - rank)
    assert stats.kstest(1 - thresholds, law.cdf).pvalue > 1e-3
    low, high = rate_interval(level, n)
    inside = ((1 - thresholds >= low) & (1 - thresholds <= high)).mean()
    assert inside == pytest.approx(0.95, abs=0.008)


def test_intervals_of_a_proportion():
    assert proportion_interval(3, 10) == pytest.approx(tuple(stats.binomtest(3, 10).proportion_ci(method="exact")))
    assert proportion_interval(10, 10)[1] == 1.0
    assert all(np.isnan(proportion_interval(0, 0)))


def test_another_distribution_is_noticed():
    random = np.random.default_rng(2)
    old, same, shifted = random.normal(size=60), random.normal(size=60), random.normal(1.5, size=60)
    assert differs(old, same) > 0.01
    assert differs(old, shifted) < 1e-4
