"""Bootstrap: each resample measured as if its images were really repeated; seeds, resolution, intervals."""

import math

import numpy as np
import pytest

from sanflow.bench.metrics import smooth_fields
from sanflow.evaluation.metric_table import METRICS, Metric, metrics_of
from sanflow.evaluation.metrics import (
    Interval,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    image_metrics,
    pixel_metrics,
)
from sanflow.evaluation.metrics import bootstrap as module

N_RESAMPLES = 20
RESOLUTION = {"aupimo": 5e-3, "pixel_ap": 5e-4, "pixel_f1_max": 5e-4}
PIXEL_NAMES = ["pixel_auroc", "aupro", "pixel_ap", "pixel_f1_max", "aupro_05", "aupimo"]


@pytest.fixture(scope="module")
def pixel_set():
    return smooth_fields(14, 9, 160, seed=3)


@pytest.fixture(scope="module")
def pixel_intervals(pixel_set):
    return bootstrap_pixel_metrics(*pixel_set, resamples=200)


def measured(level, counts, weights):
    resampled = module.Resampled(counts, weights)
    return {name: metric.formula(resampled) for name, metric in metrics_of(level).items()}


def test_image_metrics_of_a_resample_are_those_of_the_repeated_images():
    generator = np.random.default_rng(0)
    labels = generator.random(40) < 0.6
    scores = np.round(generator.normal(size=40) + labels, 1)
    weights = module._draw(labels, N_RESAMPLES, generator)
    levels = np.unique(scores)[::-1]
    called = scores[:, None] >= levels
    counts = module.Counts(1.0 * (called & labels[:, None]), 1.0 * (called & ~labels[:, None]), np.empty((40, 0)))
    found = measured("image", counts, weights)
    assert list(found) == ["image_auroc", "image_ap", "image_f1_max"]
    for b in range(N_RESAMPLES):
        drawn = np.repeat(np.arange(40), weights[b].astype(int))
        expected = image_metrics(scores[drawn], labels[drawn])
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], abs=1e-12)


def test_pixel_metrics_of_a_resample_are_those_of_the_repeated_images(pixel_set):
    maps, masks = pixel_set
    counts = module._count_pixels(list(maps), list(masks))
    weights = module._draw(masks.any(axis=(1, 2)), N_RESAMPLES, np.random.default_rng(0))
    found = measured("pixel", counts, weights)
    assert list(found) == PIXEL_NAMES
    for b in range(N_RESAMPLES):
        drawn = np.repeat(np.arange(len(maps)), weights[b].astype(int))
        expected = pixel_metrics(maps[drawn], masks[drawn])
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], abs=RESOLUTION.get(name, 2e-4)), (name, b)


def test_levels_are_exact_where_scores_are_few():
    maps, masks = smooth_fields(9, 6, 160, seed=5)
    for name, interval in bootstrap_pixel_metrics(np.round(maps), masks, resamples=10).items():
        assert interval.resolution < 1e-12, name


def test_the_resolution_is_told_and_small(pixel_set, pixel_intervals):
    exact = pixel_metrics(*pixel_set)
    assert list(pixel_intervals) == PIXEL_NAMES
    for name, interval in pixel_intervals.items():
        assert interval.value == exact[name]
        assert 0.0 <= interval.resolution < RESOLUTION.get(name, 1e-4), name


def test_intervals_hold_the_value_and_widen_with_confidence(pixel_set, pixel_intervals):
    wide = bootstrap_pixel_metrics(*pixel_set, resamples=200, confidence=0.99)
    for name, interval in pixel_intervals.items():
        assert interval.low < interval.value < interval.high
        assert wide[name].low <= interval.low < interval.high <= wide[name].high


def test_seeds(pixel_set, pixel_intervals):
    again = bootstrap_pixel_metrics(*pixel_set, resamples=200, seed=0, exact=pixel_metrics(*pixel_set))
    other = bootstrap_pixel_metrics(*pixel_set, resamples=200, seed=1)
    assert again == pixel_intervals
    assert other != pixel_intervals
    np.random.seed(0)  # noqa: NPY002  (the global generator is what must not matter)
    assert bootstrap_pixel_metrics(*pixel_set, resamples=200) == pixel_intervals


def test_an_image_is_drawn_within_its_class():
    is_anomalous = np.array([True, False, True, False, False])
    weights = module._draw(is_anomalous, 50, np.random.default_rng(2))
    assert np.all(weights[:, is_anomalous].sum(axis=1) == 2)
    assert np.all(weights[:, ~is_anomalous].sum(axis=1) == 3)
    assert weights.max() == 3


def test_parts_are_drawn_with_all_their_images():
    is_anomalous = np.array([True, False, True, False, False, True, False, True])
    parts = ["both", "good", "bad", "both", "good", "bad", "alone", "other"]
    weights = module._draw(is_anomalous, 200, np.random.default_rng(0), parts)
    for part in set(parts):
        members = [i for i, name in enumerate(parts) if name == part]
        assert np.all(weights[:, members] == weights[:, members[:1]]), part
    # Two parts of good images, two of anomalous ones, one of both: drawn twice, twice and once.
    np.testing.assert_array_equal(weights[:, 1] + weights[:, 6], 2)
    np.testing.assert_array_equal(weights[:, 2] + weights[:, 7], 2)
    np.testing.assert_array_equal(weights[:, 0], 1)


def test_further_photographs_of_a_part_that_equal_the_first_change_no_interval():
    generator = np.random.default_rng(6)
    labels = np.arange(30) % 3 == 0
    scores = np.round(generator.normal(size=30) + labels, 1)
    plain = bootstrap_image_metrics(scores, labels, resamples=100)
    order = np.concatenate([np.arange(30), np.arange(30), np.arange(30)])
    repeated = bootstrap_image_metrics(scores[order], labels[order], parts=[f"part {i}" for i in order], resamples=100)
    for name, interval in plain.items():
        assert (repeated[name].low, repeated[name].high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    as_if_other = bootstrap_image_metrics(scores[order], labels[order], resamples=100)["image_auroc"]
    whole = plain["image_auroc"]
    assert as_if_other.high - as_if_other.low < 0.8 * (whole.high - whole.low)


def test_further_photographs_change_no_interval_of_a_pixel_metric():
    maps, masks = smooth_fields(6, 4, 64, seed=7)
    maps = np.round(maps)  # few levels, so that they are exact
    order = np.array([0, 1, 2, 3, 4, 5, 5, 3, 1, 0, 2, 4])
    plain = bootstrap_pixel_metrics(maps, masks, resamples=40)
    repeated = bootstrap_pixel_metrics(maps[order], masks[order], parts=order, resamples=40)
    for name, interval in plain.items():
        found = repeated[name]
        assert (found.value, found.low, found.high) == pytest.approx(
            (interval.value, interval.low, interval.high), abs=1e-9
        ), name


def test_parts_of_one_image_each_give_the_same_bits_as_no_parts(pixel_set, pixel_intervals):
    names = [f"{i % 7}/{i}" for i in range(len(pixel_set[0]))]
    assert bootstrap_pixel_metrics(*pixel_set, parts=names, resamples=200) == pixel_intervals


def test_parts_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"Expected a part for each of 4 images, but got shape \(3,\)"):
        bootstrap_image_metrics([1, 2, 3, 4], [0, 0, 1, 1], parts=[0, 0, 1])


def test_the_interval_has_the_width_of_theory():
    """For the AUROC of scores with normal distribution the standard error is known (Hanley and McNeil, 1982)."""
    generator = np.random.default_rng(8)
    labels = np.arange(400) < 200
    interval = bootstrap_image_metrics(generator.normal(size=400) + labels, labels)["image_auroc"]
    a = interval.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 199 * (q1 - a * a) + 199 * (q2 - a * a)) / 200**2)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_maps_of_different_sizes(pixel_set):
    maps, masks = pixel_set
    cut = [slice(None, 160 - 4 * i) for i in range(len(maps))]
    found = bootstrap_pixel_metrics(
        [one[c] for one, c in zip(maps, cut, strict=True)],
        [one[c] for one, c in zip(masks, cut, strict=True)],
        resamples=30,
    )
    assert all(interval.resolution < 2e-3 for interval in found.values())


@pytest.mark.filterwarnings("ignore::sanflow.evaluation.metrics.MetricWarning")
def test_without_a_class_all_is_nan():
    for interval in bootstrap_pixel_metrics(np.zeros((2, 9, 9)), np.zeros((2, 9, 9), dtype=bool)).values():
        assert math.isnan(interval.value)
        assert math.isnan(interval.low)
    found = bootstrap_image_metrics([1, 2], [1, 1])
    assert list(found) == ["image_auroc", "image_ap", "image_f1_max"]
    assert all(math.isnan(interval.high) for interval in found.values())


@pytest.mark.filterwarnings("ignore::sanflow.evaluation.metrics.MetricWarning")
def test_without_normal_images_pixels_are_still_measured(pixel_set):
    maps, masks = pixel_set
    found = bootstrap_pixel_metrics(maps[:9], masks[:9], resamples=50)
    assert math.isnan(found["aupimo"].value)
    assert math.isnan(found["aupimo"].low)
    for name in PIXEL_NAMES[:-1]:
        assert found[name].low < found[name].value < found[name].high


def test_a_metric_without_a_bootstrap_has_no_interval(monkeypatch, pixel_set):
    entry = Metric("Regions", "pixel", lambda found: found.ranking.n_regions / 100, interval=False)
    monkeypatch.setitem(METRICS, "regions", entry)
    maps, masks = pixel_set
    assert pixel_metrics(maps, masks)["regions"] > 0
    assert list(bootstrap_pixel_metrics(maps, masks, resamples=5)) == PIXEL_NAMES


def test_an_interval_as_it_is_kept():
    assert Interval(0.9, 0.8, 0.95, 0.95, 1000, 0.0).to_dict() == {
        "value": 0.9,
        "low": 0.8,
        "high": 0.95,
        "confidence": 0.95,
        "resamples": 1000,
        "resolution": 0.0,
    }


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="Expected at least 1 resample, but got 0"):
        bootstrap_image_metrics([1, 2], [0, 1], resamples=0)
    with pytest.raises(ValueError, match=r"Expected a confidence in \(0, 1\), but got 95"):
        bootstrap_image_metrics([1, 2], [0, 1], confidence=95)


def test_resamples_of_two_score_sets_of_the_same_images_are_paired():
    random = np.random.RandomState(0)
    labels = np.arange(40) % 2 == 0
    scores = random.normal(size=40) + labels
    first, same, worse = (
        bootstrap_image_metrics(values, labels, resamples=200)["image_auroc"]
        for values in (scores, 2 * scores, scores + 0.05 * random.normal(size=40))
    )
    assert np.array_equal(first.values_B, same.values_B)
    assert (first.low, first.high) == pytest.approx(np.percentile(first.values_B, [2.5, 97.5]))
    # The same images are hard or easy for both, so the difference varies less than either.
    assert (first.values_B - worse.values_B).std() < 0.3 * first.values_B.std()
