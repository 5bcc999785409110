"""p-values and thresholds from held-out scores: by hand, by brute force, and their promise in a simulation."""

import numpy as np
import pytest
from scipy import stats

from sanflow.errors import ConfigError
from sanflow.evaluation.conformal import (
    alarm_rank,
    differs,
    expected_rate,
    number_of_parts,
    one_per_part,
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


def test_p_values_of_photographs_count_parts():
    """Parts a (3 photographs), b (1) and c (2); each part counts 1 in all."""
    held_out = np.array([1.0, 5.0, 3.0, 4.0, 2.0, 6.0])
    parts = np.array(["a", "a", "a", "b", "c", "c"])
    scores = np.array([0.0, 3.5, 5.5, 7.0])
    # At or above 3.5: a third of a, b, half of c. At or above 5.5: half of c.
    expected = [1.0, (1 + 1 / 3 + 1 + 1 / 2) / 4, (1 + 1 / 2) / 4, 1 / 4]
    np.testing.assert_allclose(p_values(scores, held_out, parts), expected, rtol=1e-15)
    assert threshold(0.25, held_out, parts) == 6.0
    assert threshold(0.375, held_out, parts) == 5.0  # 1 + 1/2 of c is 1.5 of 4
    with pytest.raises(ConfigError, match=r"at least 4 held-out.*has 3: its smallest p-value is 1 / 4"):
        threshold(0.2, held_out, parts)


@pytest.mark.parametrize("level", [0.05, 0.1, 0.33])
def test_a_score_above_the_threshold_has_a_p_value_of_at_most_the_level_with_parts_too(level):
    random = np.random.default_rng(3)
    parts = random.integers(0, 40, 150)
    held_out = np.round(random.normal(size=150), 2)
    scores = np.concatenate([held_out, held_out + 1e-9, np.linspace(-4, 4, 50)])
    above = scores > threshold(level, held_out, parts)
    np.testing.assert_array_equal(above, p_values(scores, held_out, parts) <= level + 1e-12)


def test_photographs_repeated_change_nothing_and_parts_of_one_photograph_are_the_plain_case():
    random = np.random.default_rng(4)
    held_out, scores = random.normal(size=30), random.normal(size=50)
    repeats = random.integers(1, 4, 30)
    many, parts = np.repeat(held_out, repeats), np.repeat(np.arange(30), repeats)
    np.testing.assert_allclose(p_values(scores, many, parts), p_values(scores, held_out), rtol=1e-12)
    assert threshold(0.1, many, parts) == threshold(0.1, held_out)
    np.testing.assert_array_equal(one_per_part(many, parts), held_out)
    assert number_of_parts(many, parts) == 30
    alone = np.array([f"part {i}" for i in range(30)])
    np.testing.assert_array_equal(p_values(scores, held_out, alone), p_values(scores, held_out))
    assert one_per_part(held_out, None) is held_out


def test_photographs_of_new_parts_have_at_most_the_rate_and_counting_photographs_would_not():
    """20,000 draws of 24 parts of two to five photographs, which are alike, and one photograph of a new part."""
    random, draws, n, level = np.random.default_rng(5), 20_000, 24, 0.02
    sizes = np.tile([2, 4, 5], 8)
    parts = np.repeat(np.arange(n), sizes)
    effects = random.normal(size=(draws, n + 1))
    held_out = effects[:, parts] + 0.1 * random.normal(size=(draws, parts.size))
    new = effects[:, n] + 0.1 * random.normal(size=draws)
    counted = (1 + (held_out >= new[:, None]).sum(1)) / (parts.size + 1)
    assert (counted <= level).mean() > 1.5 * level
    level = 0.05
    weighted = (1 + (held_out >= new[:, None]) @ (1 / sizes[parts])) / (n + 1)
    rate = (weighted <= level + 1e-12).mean()
    assert 0.5 * level < rate < level + 3 * np.sqrt(level / draws)
    np.testing.assert_allclose([p_values(new[:1], held_out[0], parts)[0]], weighted[:1], rtol=1e-12)
