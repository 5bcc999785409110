"""Curves: their corners by hand, their areas, and what thinning may change."""

import numpy as np
import pytest

from sanflow.evaluation.metrics import (
    MetricWarning,
    aupro,
    auroc,
    average_precision,
    pixel_curves,
    pr_curve,
    pro_curve,
    roc_curve,
    simplify,
)


def area(x, y):
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2.0))


def test_roc_by_hand():
    rate, found = roc_curve([3, 2, 2, 1], [1, 0, 1, 0])
    np.testing.assert_array_equal(rate, [0.0, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(found, [0.0, 0.5, 1.0, 1.0])


def test_pr_by_hand():
    recall, precision = pr_curve([4, 3, 2, 1], [1, 0, 0, 1])
    np.testing.assert_array_equal(recall, [0.0, 0.5, 0.5, 1.0])
    np.testing.assert_array_equal(precision, [1.0, 1.0, 0.5, 0.5])


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_areas_are_the_metrics(digits):
    generator = np.random.default_rng(0)
    labels = generator.random(400) < 0.3
    scores = np.round(generator.normal(size=400) + labels, digits)
    assert area(*roc_curve(scores, labels)) == pytest.approx(auroc(scores, labels), abs=1e-12)
    assert area(*pr_curve(scores, labels)) == pytest.approx(average_precision(scores, labels), abs=1e-12)


@pytest.fixture(scope="module")
def pixel_set():
    from sanflow.bench.metrics import smooth_fields

    return smooth_fields(12, 8, 128, seed=4)


@pytest.mark.parametrize("max_points", [500, 1000, 2000])
def test_pixel_curves_keep_their_areas(pixel_set, max_points):
    maps, masks = pixel_set
    curves = pixel_curves(maps, masks, max_points)
    exact = {"roc": auroc(maps, masks), "pr": average_precision(maps, masks), "pro": aupro(maps, masks, 1.0)}
    for name, (x, y) in curves.items():
        assert x.size == y.size <= max_points
        assert np.all(np.diff(x) >= 0)
        assert area(x, y) == pytest.approx(exact[name], abs=1e-5)
    x, y = pro_curve(maps, masks, max_points)
    np.testing.assert_array_equal(x, curves["pro"][0])
    cut = np.interp(0.3, x, y)  # the shown curve gives the number in the table, limit and all
    shown = area(np.append(x[x < 0.3], 0.3), np.append(y[x < 0.3], cut)) / 0.3
    assert shown == pytest.approx(aupro(maps, masks), abs=1e-4)


def staircase(steps, seed=None):
    """The worst case for a few points: steps from (0, 0) to (1, 1), even or random."""
    generator = np.random.default_rng(seed)
    x, y = (np.ones(steps), np.ones(steps)) if seed is None else generator.exponential(size=(2, steps))
    x, y = np.concatenate([[0.0], np.cumsum(x) / x.sum()]), np.concatenate([[0.0], np.cumsum(y) / y.sum()])
    return np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]


CURVES = {
    "even stairs": staircase(1000),
    "many even stairs": staircase(20_000),
    "random stairs": staircase(3000, seed=1),
    "many random stairs": staircase(300_000, seed=2),
    "concave": (np.linspace(0, 1, 50_000) ** 3, np.linspace(0, 1, 50_000)),
    "corner": (np.linspace(0, 1, 50_000) ** 30, np.linspace(0, 1, 50_000)),
    "saw": (np.linspace(0, 1, 9_000), 0.5 + 0.02 * (np.arange(9_000) % 7 < 3)),
    "wave": (np.linspace(0, 1, 50_000), 0.5 + 0.5 * np.sin(40 * np.linspace(0, 1, 50_000))),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("max_points", [500, 1000])
def test_thinning_keeps_ends_and_area(name, max_points):
    x, y = CURVES[name]
    kept_x, kept_y = simplify(x, y, max_points)
    assert kept_x.size <= max_points
    assert (kept_x[0], kept_y[0], kept_x[-1], kept_y[-1]) == (x[0], y[0], x[-1], y[-1])
    assert np.all(np.diff(kept_x) >= 0)
    assert np.all((kept_y >= 0) & (kept_y <= max(1, y[-1])))
    assert np.any(np.diff(y) < 0) or np.all(np.diff(kept_y) >= 0)  # a curve that never falls does not begin to
    assert area(kept_x, kept_y) == pytest.approx(area(x, y), abs=1e-4)


@pytest.mark.parametrize("name", ["concave", "corner", "wave", "many random stairs"])
def test_thinning_keeps_the_look(name):
    x, y = CURVES[name]
    kept_x, kept_y = simplify(x, y, 1000)
    # distance to the drawn line, along the diagonal on which steep and flat parts are alike
    drawn = np.interp(x + y, kept_x + kept_y, kept_x - kept_y) if name != "wave" else None
    error = np.abs(drawn - (x - y)) if drawn is not None else np.abs(np.interp(x, kept_x, kept_y) - y)
    assert error.max() < 3e-3


@pytest.mark.parametrize(("n", "share", "gain"), [(100_000, 0.03, 0.3), (100_000, 0.01, 2.0), (3000, 0.5, 0.0)])
def test_thinned_precision_recall_keeps_its_area(n, share, gain):
    generator = np.random.default_rng(9)
    labels = generator.random(n) < share
    scores = generator.normal(size=n) + gain * labels
    assert area(*pr_curve(scores, labels, 500)) == pytest.approx(average_precision(scores, labels), abs=1e-4)


def test_few_points_are_left_alone():
    x, y = np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.9, 1.0])
    assert simplify(x, y, 4)[0] is x


@pytest.mark.parametrize("max_points", [3, 0, -1])
def test_too_few_points_are_refused(max_points):
    with pytest.raises(ValueError, match="Expected max_points of at least 4, but got"):
        simplify(np.zeros(9), np.zeros(9), max_points)


@pytest.mark.parametrize(("fill", "missing"), [(False, "anomalies"), (True, "normals")])
def test_undefined_curves_are_empty_with_a_warning(fill, missing):
    with pytest.warns(MetricWarning, match=f"curve is undefined without {missing}"):
        curves = pixel_curves(np.zeros((2, 3, 3)), np.full((2, 3, 3), fill))
    assert all(x.size == y.size == 0 for x, y in curves.values())
    with pytest.warns(MetricWarning, match="the ROC curve is undefined"):
        roc_curve([1.0], [fill])
    with pytest.warns(MetricWarning, match="the precision-recall curve is undefined"):
        pr_curve([1.0], [fill])
