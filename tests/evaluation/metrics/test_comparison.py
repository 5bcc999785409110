"""Means over seeds and paired comparison over categories: by hand and against scipy's own paired tests."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from sanflow.evaluation.metrics import compare_paired, mean_and_std

FIRST = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "e": 0.9}
SECOND = {"a": 0.61, "b": 0.72, "c": 0.68, "d": 0.83, "e": 0.95}


def test_mean_and_std_by_hand():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std(iter([1.0, 3.0])) == (2.0, math.sqrt(2.0))
    mean, std = mean_and_std([0.5])
    assert mean == 0.5
    assert math.isnan(std)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.nan]])
def test_a_value_that_is_missing_is_not_passed_over(values):
    assert all(math.isnan(number) for number in mean_and_std(values))


def test_paired_comparison_agrees_with_scipy():
    first, second = np.array(list(FIRST.values())), np.array(list(SECOND.values()))
    found = compare_paired(FIRST, SECOND)
    paired = stats.ttest_rel(second, first)
    low, high = paired.confidence_interval(0.95)
    assert (found.n, found.wins, found.losses, found.ties, found.left_out) == (5, 4, 1, 0, ())
    assert found.mean_difference == pytest.approx((0.11 + 0.12 - 0.02 + 0.03 + 0.05) / 5)
    assert (found.low, found.high, found.t_p) == pytest.approx((low, high, paired.pvalue))
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(second, first).pvalue)
    assert found.sign_p == pytest.approx(2 * (1 + 5) / 2**5)
    json.dumps(found.to_dict())


def test_exchanging_the_experiments_turns_the_sign_alone():
    found, turned = compare_paired(FIRST, SECOND), compare_paired(SECOND, FIRST)
    assert turned.mean_difference == pytest.approx(-found.mean_difference)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert (turned.t_p, turned.wilcoxon_p, turned.sign_p) == pytest.approx((found.t_p, found.wilcoxon_p, found.sign_p))
    assert (turned.wins, turned.losses) == (found.losses, found.wins)


def test_the_interval_follows_the_confidence():
    narrow, wide = compare_paired(FIRST, SECOND, 0.5), compare_paired(FIRST, SECOND, 0.99)
    assert wide.low < narrow.low < narrow.mean_difference < narrow.high < wide.high


def test_equal_experiments():
    found = compare_paired(FIRST, FIRST)
    assert (found.mean_difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert (found.t_p, found.wilcoxon_p, found.sign_p, found.ties) == (1.0, 1.0, 1.0, 5)


def test_equal_differences_leave_no_doubt():
    found = compare_paired({"a": 0.25, "b": 0.5}, {"a": 0.5, "b": 0.75})
    assert (found.low, found.high, found.t_p) == (0.25, 0.25, 0.0)


def test_one_category_has_no_interval():
    found = compare_paired({"a": 0.5}, {"a": 0.75})
    assert (found.n, found.mean_difference, found.sign_p) == (1, 0.25, 1.0)
    assert math.isnan(found.low)
    assert math.isnan(found.t_p)


def test_categories_without_a_pair_are_left_out_and_named():
    found = compare_paired({**FIRST, "x": 0.9, "n": 0.5}, {**SECOND, "y": 0.9, "n": math.nan})
    assert (found.n, found.left_out) == (5, ("n", "x", "y"))
    assert found.mean_difference == compare_paired(FIRST, SECOND).mean_difference


def test_experiments_without_common_categories_are_refused():
    with pytest.raises(ValueError, match=r"at least one pair in common, but got \['a'\] and \['b'\]"):
        compare_paired({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="at least one pair in common"):
        compare_paired({"a": 1.0}, {"a": math.nan})


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_wrong_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match=r"Expected a confidence in \(0, 1\), but got"):
        compare_paired(FIRST, SECOND, confidence)
