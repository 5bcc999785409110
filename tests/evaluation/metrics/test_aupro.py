"""AUPRO: by hand, against the slow reference, and its laws (order only, ties, regions, any sizes)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanflow.evaluation.metrics import MetricWarning, aupro, aupro_curve, rank_pixels
from sanflow.evaluation.metrics.ranking import label_regions
from tests.reference.slow_aupro import flood_regions, slow_aupro, slow_pro_curve

LIMITS = (0.05, 0.3, 1.0)


def smooth_case(seed: int, n: int = 4, h: int = 12, w: int = 15, anomalous: int = 3):
    """Maps of correlated scores and masks of a few blobs, small enough for the slow reference."""
    generator = np.random.default_rng(seed)
    maps = np.cumsum(generator.normal(size=(n, h, w)), axis=2)
    masks = np.zeros((n, h, w), dtype=bool)
    for i in range(anomalous):
        for _ in range(3):
            row, column = generator.integers(0, h - 4), generator.integers(0, w - 4)
            height, width = generator.integers(1, 4, 2)
            masks[i, row : row + height, column : column + width] = True
    return maps + 2.0 * masks, masks


def ring(size: int = 9):
    """A mask with a hole: the hole is normal."""
    mask = np.zeros((size, size), dtype=bool)
    mask[2:7, 2:7] = True
    mask[3:6, 3:6] = False
    return mask


@pytest.mark.parametrize(
    ("scores", "limit", "expected"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 0.5, 0.0),  # the region, last two pixels, comes last
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.5, 1.0),  # it comes first
        ([3] * 10, 0.5, 0.25),  # all equal: the diagonal, so limit / 2
        ([3] * 10, 1.0, 0.5),
        ([9, 7, 6, 5, 3, 2, 1, 0, 8, 4], 1.0, 11 / 16),  # found after 1 and after 4 of 8 false alarms
        ([9, 7, 6, 5, 3, 2, 1, 0, 8, 4], 0.5, 3 / 8),  # half the region from 1 / 8 on: (1/2) (3/8) / (1/2)
        ([9, 7, 6, 5, 3, 2, 1, 0, 8, 4], 0.125, 0.0),
        # a tie of one region pixel with 2 of 8 negatives at the top, the other pixel last: it rises over 1 / 4
        ([9, 9, 6, 5, 3, 2, 1, 0, 9, -1], 0.125, 1 / 8),  # cut at half height: (1/8) (1/4) / 2 / (1/8)
        ([9, 9, 6, 5, 3, 2, 1, 0, 9, -1], 0.25, 1 / 4),
        ([9, 9, 6, 5, 3, 2, 1, 0, 9, -1], 0.5, 3 / 8),
    ],
)
def test_aupro_by_hand(scores, limit, expected):
    mask = np.arange(10)[None] >= 8
    assert aupro(np.array(scores)[None, None], mask[None], limit) == pytest.approx(expected, abs=1e-15)


def test_each_region_weighs_the_same_whatever_its_size_and_image():
    maps = np.zeros((2, 6, 6))
    masks = np.zeros((2, 6, 6), dtype=bool)
    masks[0, :4, :4] = True  # 16 pixels, all found at once
    maps[0, :4, :4] = 1.0
    masks[1, 0, 0] = masks[1, 5, 5] = True  # two regions of one pixel, never found before the negatives
    maps[1, 0, 0] = maps[1, 5, 5] = -1.0
    assert aupro(maps, masks) == pytest.approx(1 / 3, abs=1e-15)


def test_false_positives_of_anomalous_images_count():
    maps = np.array([[[2.0, 3.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    masks = np.array([[[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    assert aupro(maps, masks, 1.0) == pytest.approx(6 / 7, abs=1e-15)  # one of 7 normal pixels comes before


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "case", ["smooth", "ties", "ring", "one region", "one-pixel regions", "equal", "exp", "float32"]
)
def test_aupro_agrees_with_the_slow_reference(case, limit):
    for seed in range(3):
        maps, masks = smooth_case(seed)
        if case == "ties":
            maps = np.round(maps)
        elif case == "ring":
            masks[0], masks[1] = False, False
            masks[0, :9, :9] = ring()
            maps = np.round(maps, 1)
        elif case == "one region":
            masks[:] = False
            masks[1, 3:6, 2:9] = True
        elif case == "one-pixel regions":
            masks[:] = False
            masks[:3, ::3, ::4] = True
        elif case == "equal":
            maps = np.full_like(maps, -7.25)
        elif case == "exp":
            maps = np.exp(2.0 * maps)
        elif case == "float32":
            maps = maps.astype(np.float32)
        assert aupro(maps, masks, limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-12)


tied_maps = hnp.arrays(np.float64, (2, 4, 5), elements=st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0, 1e300]))
any_maps = hnp.arrays(np.float32, (2, 4, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32))
some_masks = hnp.arrays(np.bool_, (2, 4, 5)).filter(lambda mask: mask.any() and not mask.all())


@settings(max_examples=150, deadline=None)
@given(maps=tied_maps | any_maps, masks=some_masks, limit=st.sampled_from(LIMITS) | st.floats(0.001, 1.0))
def test_aupro_agrees_with_the_slow_reference_on_anything(maps, masks, limit):
    value = aupro(maps, masks, limit)
    assert value == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)
    assert 0.0 <= value <= 1.0


@settings(max_examples=60, deadline=None)
@given(maps=tied_maps, masks=some_masks)
def test_the_curve_is_the_slow_curve(maps, masks):
    rate, overlap = aupro_curve(maps, masks)
    assert (rate[0], overlap[0], rate[-1]) == (0.0, 0.0, 1.0)
    assert overlap[-1] == pytest.approx(1.0)
    for x, y in slow_pro_curve(maps, masks):  # every point of the slow curve lies on ours
        left, right = np.searchsorted(rate, [float(x) - 1e-12, float(x) + 1e-12])
        below = overlap[left] if left < right else np.interp(float(x), rate, overlap)
        above = overlap[right - 1] if left < right else below
        assert below - 1e-9 <= float(y) <= above + 1e-9


@pytest.mark.parametrize("limit", LIMITS)
def test_the_area_under_the_curve_is_aupro(limit):
    for seed in range(3):
        maps, masks = smooth_case(seed)
        maps = np.round(maps, 1)
        rate, overlap = aupro_curve(maps, masks, limit)
        assert rate[-1] == limit
        area = np.sum(np.diff(rate) * (overlap[1:] + overlap[:-1]) / 2.0)
        assert area / limit == pytest.approx(aupro(maps, masks, limit), abs=1e-12)


@pytest.mark.parametrize("transform", [lambda s: 1e6 * s - 3.0, np.exp, lambda s: np.exp(5.0 * s), np.cbrt, np.arctan])
def test_aupro_depends_on_order_only(transform):
    maps, masks = smooth_case(1)
    assert aupro(transform(maps / 10.0), masks) == aupro(maps, masks)


def test_aupro_of_negated_masks_and_other_representations():
    maps, masks = smooth_case(2)
    expected = aupro(maps, masks)
    assert aupro(list(maps), list(masks)) == expected
    assert aupro(maps, masks.astype(np.uint8) * 255) == expected
    assert aupro(maps[::-1], masks[::-1]) == pytest.approx(expected, abs=1e-14)
    assert aupro(maps.transpose(0, 2, 1), masks.transpose(0, 2, 1)) == pytest.approx(expected, abs=1e-14)
    half = (10 * maps).astype(np.float16)
    assert aupro(half, masks) == aupro(half.astype(np.float64), masks)
    assert aupro(np.round(maps).astype(np.int64), masks) == aupro(np.round(maps), masks)


def test_maps_of_different_sizes():
    maps, masks = smooth_case(3)
    maps_list = [maps[0], maps[1][:7], maps[2][:, :9].copy(), maps[3][:5, :5]]
    masks_list = [masks[0], masks[1][:7], masks[2][:, :9], masks[3][:5, :5]]
    for limit in LIMITS:
        assert aupro(maps_list, masks_list, limit) == pytest.approx(slow_aupro(maps_list, masks_list, limit), abs=1e-12)


def test_the_inputs_are_left_alone():
    maps, masks = smooth_case(4)
    before = maps.copy(), masks.copy()
    aupro(maps, masks)
    aupro(maps[:1], np.zeros_like(masks[:1]) | (np.arange(15) == 0))
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


@settings(max_examples=100, deadline=None)
@given(mask=hnp.arrays(np.bool_, (6, 7)))
def test_regions_are_those_of_a_flood_fill(mask):
    region, n_regions = label_regions(mask)
    expected = flood_regions(mask)
    assert n_regions == len(expected)
    assert sorted(np.bincount(region, minlength=n_regions).tolist()) == sorted(len(one) for one in expected)


def test_regions_that_touch_at_a_corner_are_one_and_a_hole_is_no_part():
    assert label_regions(np.eye(5, dtype=bool))[1] == 1
    region, n_regions = label_regions(ring())
    assert (n_regions, region.size) == (1, 16)


def test_a_ring_of_ones_scores_one_not_more():
    maps, masks = np.zeros((1, 9, 9)), ring()[None]
    maps[masks] = 1.0
    assert aupro(maps, masks) == 1.0


@pytest.mark.parametrize("limit", LIMITS)
def test_the_limited_ranking_gives_what_the_whole_one_gives(limit):
    from sanflow.evaluation.metrics.aupro import ranked_aupro

    for seed in range(3):
        for digits in (0, 9):
            maps, masks = smooth_case(seed)
            maps = np.round(maps, digits)
            assert aupro(maps, masks, limit) == pytest.approx(ranked_aupro(rank_pixels(maps, masks), limit), abs=1e-15)


def test_no_anomalies_is_nan_with_a_warning():
    maps, masks = smooth_case(0)
    with pytest.warns(MetricWarning, match="AUPRO is undefined without anomalies; NaN is returned"):
        assert np.isnan(aupro(maps, np.zeros_like(masks)))
    with pytest.warns(MetricWarning, match="curve is undefined without anomalies"):
        assert aupro_curve(maps, np.zeros_like(masks))[0].size == 0
    with pytest.warns(MetricWarning, match="without anomalies"):
        assert np.isnan(aupro([], []))


def test_no_normal_pixels_is_nan_with_a_warning():
    maps, masks = smooth_case(0)
    with pytest.warns(MetricWarning, match="AUPRO is undefined without normals; NaN is returned"):
        assert np.isnan(aupro(maps, np.ones_like(masks)))


@pytest.mark.parametrize("limit", [0.0, -0.3, 1.5, float("nan")])
def test_a_limit_outside_its_range_is_refused(limit):
    with pytest.raises(ValueError, match=r"Expected a limit of the false-positive rate in \(0, 1\], but got"):
        aupro(*smooth_case(0), limit=limit)
    with pytest.raises(ValueError, match="Expected a limit"):
        aupro_curve(*smooth_case(0), limit=limit)
