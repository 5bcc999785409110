"""Rates at the thresholds that held-out parts give."""

import numpy as np
import pytest
from scipy import stats

from sanflow.evaluation.conformal import p_values
from sanflow.evaluation.operating_point import operating_points

LABELS = np.array([False] * 20 + [True] * 10)


def test_rates_are_those_of_the_p_values():
    random = np.random.default_rng(0)
    scores_N, held_out_M = random.normal(size=30) + 2 * LABELS, random.normal(size=47)
    for point in operating_points(scores_N, LABELS, held_out_M):
        called_N = p_values(scores_N, held_out_M) <= point["level"]
        assert point["false_alarm_rate"] == called_N[~LABELS].mean()
        assert point["detection_rate"] == called_N[LABELS].mean()
        test = stats.binomtest(int(called_N[LABELS].sum()), 10).proportion_ci(method="exact")
        np.testing.assert_allclose(point["detection_interval"], test)


def test_what_is_expected_follows_from_the_number_of_parts():
    points = operating_points(np.zeros(30), LABELS, np.arange(47.0))
    assert [point["rank"] for point in points] == [2, 4]
    assert [point["expected_rate"] for point in points] == [2 / 48, 4 / 48]
    np.testing.assert_allclose(points[0]["expected_interval"], stats.beta.ppf([0.025, 0.975], 2, 46))
    assert points[0]["held_out"] == 47
    assert points[0]["threshold"] == 45.0


@pytest.mark.parametrize(("n", "levels"), [(8, []), (9, [0.1]), (18, [0.1]), (19, [0.05, 0.1])])
def test_too_few_parts_for_a_level_give_no_point(n, levels):
    assert [point["level"] for point in operating_points(np.zeros(30), LABELS, np.arange(float(n)))] == levels


def test_without_held_out_parts_or_without_good_images_nothing_is_claimed():
    assert operating_points(np.zeros(30), LABELS, None) == []
    point = operating_points(np.ones(10), np.ones(10, bool), np.zeros(20))[0]
    assert (point["false_alarm_rate"], point["false_alarm_interval"]) == (None, None)
    assert point["detection_rate"] == 1.0


def test_photographs_of_one_part_count_as_one_trial():
    random = np.random.default_rng(1)
    scores_N, held_out_M = random.normal(size=30) + 2 * LABELS, random.normal(size=47)
    plain = operating_points(scores_N, LABELS, held_out_M)
    repeated = operating_points(
        np.repeat(scores_N, 3),
        np.repeat(LABELS, 3),
        np.repeat(held_out_M, 2),
        parts_N=np.repeat(np.arange(30), 3),
        held_out_parts_M=np.repeat(np.arange(47), 2),
    )
    assert [point.keys() for point in plain] == [point.keys() for point in repeated]
    for one, other in zip(plain, repeated, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-12, err_msg=name)


def test_photographs_that_disagree_have_the_mean_of_their_part():
    """Two good parts of two photographs; of four photographs one is an alarm, as of two parts half an alarm."""
    scores_N, parts_N = np.array([0.0, 50.0, 1.0, 2.0]), np.array(["a", "a", "b", "b"])
    point = operating_points(scores_N, np.zeros(4, bool), np.arange(39.0), parts_N=parts_N)[0]
    assert point["false_alarm_rate"] == 0.25
    np.testing.assert_allclose(
        point["false_alarm_interval"], [stats.beta.ppf(0.025, 0.5, 2.5), stats.beta.ppf(0.975, 1.5, 1.5)]
    )
    assert point["detection_interval"] is None
