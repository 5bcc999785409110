"""AU-sPRO against cases by hand, its laws, AUPRO, and a slow reference."""

import weakref

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sanflow.evaluation.metric_table import metrics_of
from sanflow.evaluation.metrics import (
    MetricWarning,
    SaturatedMeasures,
    ScoredImage,
    aupro,
    bootstrap_saturated_metrics,
    rank_pixels,
    spro,
)
from tests.reference.slow_spro import slow_spro, slow_spro_of_kind

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
ROW = np.array([[9, 7, 6, 5, 3, 2, 1, 0, 8, 4]])


def at(*places, width=10):
    """A mask of one row."""
    return np.isin(np.arange(width), places)[None]


def random_images(seed, kinds=("logical", "structural", ""), n=6, side=9, steps=None, dtype=float):
    """Maps with regions that may touch and share pixels, each with a random saturation area."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(n):
        kind = kinds[number % len(kinds)]
        one = rng.normal(size=(side, side))
        one = (np.round(one * steps) / steps if steps else one).astype(dtype)
        regions = []
        for _ in range(rng.integers(1, 4) if kind else 0):
            mask = np.zeros((side, side), bool)
            top, left = rng.integers(0, side - 3, 2)
            mask[top : top + rng.integers(1, 5), left : left + rng.integers(1, 5)] = True
            regions.append((mask, int(rng.integers(1, mask.sum() + 1))))
        images.append(ScoredImage(one, regions, kind))
    return images


def plain(images):
    return [(image.map_HW, image.regions, image.kind) for image in images]


@pytest.mark.parametrize(
    ("region", "saturation", "limit", "expected"),
    [
        # The region's scores are 0, 8, 4; outside are 9, 7, 6, 5, 3, 2, 1: 7 pixels.
        (at(7, 8, 9), 1, 1.0, 6 / 7),  # the 8 is enough: found at 1 of 7
        (at(7, 8, 9), 2, 1.0, (6 / 7 + 3 / 7) / 2),  # half at 1 of 7, all with the 4 at 4 of 7
        (at(7, 8, 9), 3, 1.0, (6 / 7 + 3 / 7 + 0) / 3),  # a third each; this is AUPRO
        (at(7, 8, 9), 1, 0.1, 0.0),  # not found before 1 of 7 = 0.143
        (at(7, 8, 9), 1, 0.5, (1 / 2 - 1 / 7) / 0.5),
        (at(7, 8, 9), 2, 0.5, (1 / 2 - 1 / 7) / 2 / 0.5),  # half of it is found up to the limit
    ],
)
def test_by_hand(region, saturation, limit, expected):
    assert spro([ScoredImage(ROW, [(region, saturation)], "logical")], limit) == pytest.approx(expected, abs=1e-15)


def test_a_pixel_of_two_regions_counts_for_both_by_hand():
    """Regions {8} and {8, 4}; outside are 9, 7, 6, 5, 3, 2, 1, 0, so the 8 is found at 1/8 and the 4 at 4/8."""
    regions = [(at(8), 1), (at(8, 9), 2)]
    expected = (7 / 8 + (7 / 8 + 4 / 8) / 2) / 2
    assert spro([ScoredImage(ROW, regions, "logical")], 1.0) == pytest.approx(expected, abs=1e-15)


def test_regions_that_touch_stay_two_regions():
    """AUPRO joins what touches: one region of three pixels there, a small and a large one here."""
    apart = [(at(7), 1), (at(8, 9), 2)]  # 0 at 7/7; 8 at 1/7 and 4 at 4/7
    assert spro([ScoredImage(ROW, apart, "a")], 1.0) == pytest.approx((0 + (6 / 7 + 3 / 7) / 2) / 2, abs=1e-15)
    assert aupro(ROW[None], at(7, 8, 9)[None], 1.0) == pytest.approx((6 / 7 + 3 / 7) / 3, abs=1e-15)


def test_ties_across_the_saturation_rise_on_a_straight_line_by_hand():
    """Two of four tied region pixels are enough; of four outside two tie, so the line rises from 0 to 1 over 2/4."""
    tied = np.array([[5, 5, 5, 5, 5, 5, 1, 0]])
    images = [ScoredImage(tied, [(at(0, 1, 2, 3, width=8), 2)], "a")]
    assert spro(images, 1.0) == pytest.approx(1 / 4 + 1 / 2, abs=1e-15)
    assert spro(images, 0.25) == pytest.approx(1 / 4, abs=1e-15)  # the triangle 0.25 x 0.5 / 2, divided by 0.25


def test_kinds_have_their_own_normal_pixels_and_the_same_weight_by_hand():
    """Three logical regions and one structural one: the mean of kinds, not of regions."""
    good = ScoredImage(np.array([[3, 1]]))
    logical = ScoredImage(np.array([[4, 2, 0, 0]]), [(at(i, width=4), 1) for i in range(3)], "logical")
    structural = ScoredImage(np.array([[2, 9]]), [(at(0, width=2), 1)], "structural")
    # Logical: outside are 0 (its own) and 3, 1. The 4 is found at 0, the 2 at 1/3, the 0 ties: from 2/3 to 1.
    # Structural: outside are 9 and 3, 1. The 2 is found at 2/3.
    expected = [(1 + 2 / 3 + 1 / 6) / 3, 1 / 3]
    images = [good, structural, logical]
    measures = SaturatedMeasures(images)
    assert list(measures.kinds) == ["logical", "structural"]
    assert measures.strata_N.tolist() == [0, 2, 1]
    assert [kind.saturated_overlap(1.0) for kind in measures.kinds.values()] == pytest.approx(expected, abs=1e-15)
    assert spro(images, 1.0) == pytest.approx(sum(expected) / 2, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_slow_reference(seed, steps, dtype):
    images = random_images(seed, steps=steps, dtype=dtype)
    measures = SaturatedMeasures(images)
    for limit in LIMITS:
        assert measures.saturated_overlap(limit) == pytest.approx(slow_spro(plain(images), limit), abs=1e-12)
        for kind, curve in measures.kinds.items():
            own = [one for one in plain(images) if one[2] in ("", kind)]
            assert curve.saturated_overlap(limit) == pytest.approx(slow_spro_of_kind(own, limit), abs=1e-12)
    assert list(measures.metrics().values()) == [measures.saturated_overlap(limit) for limit in LIMITS]


@pytest.mark.parametrize("limit", LIMITS)
def test_whole_regions_that_do_not_touch_give_aupro(limit):
    rng = np.random.default_rng(3)
    maps, masks = rng.normal(size=(3, 16, 16)), np.zeros((3, 16, 16), bool)
    masks[0, 2:5, 3:9] = masks[1, 8:12, 1:4] = True
    images = [ScoredImage(one, [(mask, int(mask.sum()))] if mask.any() else [], "a" if mask.any() else "")
              for one, mask in zip(maps, masks, strict=True)]  # fmt: skip
    assert spro(images, limit) == pytest.approx(aupro(maps, masks, limit), abs=1e-14)
    ours, theirs = SaturatedMeasures(images).kinds["a"].ranking, rank_pixels(maps, masks)
    for name in ("scores", "positives", "region_weight", "negatives_above", "negatives_at_least"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-15)


def test_a_function_of_the_order_only():
    images = random_images(5)
    scaled = [ScoredImage(np.exp(3 * image.map_HW - 1), image.regions, image.kind) for image in images]
    for limit in LIMITS:
        assert spro(scaled, limit) == spro(images, limit)


def test_a_smaller_saturation_area_is_never_worse():
    images = random_images(6)
    halved = [
        ScoredImage(image.map_HW, [(mask, (area + 1) // 2) for mask, area in image.regions], image.kind)
        for image in images
    ]
    for limit in LIMITS:
        assert spro(halved, limit) >= spro(images, limit)


def test_images_of_different_sizes():
    small, large = random_images(7, side=9), random_images(8, side=12)
    images = [*small[:3], *large[:3]]
    measures = SaturatedMeasures(images)
    outside = sum(image.map_HW.size - np.logical_or.reduce([mask for mask, _ in image.regions]).sum()
                  if image.regions else image.map_HW.size
                  for image in images if image.kind != "logical")  # fmt: skip
    assert measures.kinds["structural"].ranking.n_negatives == outside


def test_only_one_image_is_held_at_a_time():
    """The images are made anew at each visit, twice in all, and none outlives its turn."""
    alive, visits = [], []

    class Streamed:
        def __iter__(self):
            visits.append(1)
            for image in random_images(9, n=12):
                own = ScoredImage(image.map_HW.copy(), image.regions, image.kind)
                alive.append(weakref.ref(own.map_HW))
                yield own
                del own
                assert sum(one() is not None for one in alive) <= 1

    assert spro(Streamed(), 0.3) == spro(random_images(9, n=12), 0.3)
    assert len(visits) == 2


def test_undefined_without_anomalies_or_without_normal_pixels():
    with pytest.warns(MetricWarning, match="AU-sPRO is undefined without anomalies"):
        assert np.isnan(spro([ScoredImage(ROW)], 0.3))
    with pytest.warns(MetricWarning, match="undefined without normals"):
        assert np.isnan(spro([ScoredImage(ROW, [(np.ones((1, 10), bool), 3)], "a")], 0.3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ScoredImage(ROW, [(at(1), 1)]), "Expected a kind of anomaly .* got the kind '' and 1 regions in map 0"),
        (ScoredImage(ROW, [], "a"), "got the kind 'a' and 0 regions in map 0"),
        (ScoredImage(ROW, [(at(1, width=9), 1)], "a"), r"its map, \(1, 10\), but got \(1, 9\) in map 0"),
        (ScoredImage(ROW, [(at(1, 2), 3)], "a"), "from 1 to the 2 pixels of its region, but got 3 in map 0"),
        (ScoredImage(ROW, [(at(1, 2), 0)], "a"), "but got 0 in map 0"),
        (ScoredImage(ROW * np.nan), "Expected finite scores"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        spro([image], 0.3)
    with pytest.raises(ValueError, match=r"limit of the false-positive rate in \(0, 1\], but got 0"):
        spro([ScoredImage(ROW)], 0)


def test_intervals_hold_the_value_and_are_those_of_the_drawn_images():
    images = random_images(10, n=45, side=16)
    measures = SaturatedMeasures(images)
    found = bootstrap_saturated_metrics(measures, resamples=200)
    assert list(found) == list(metrics_of("region"))
    for name, interval in found.items():
        assert interval.value == measures.metrics()[name]
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.resolution < 1e-12  # each score is a level
    # A resample by hand: the same seed, its images repeated as often as they were drawn.
    rng, strata = np.random.default_rng(0), measures.strata_N
    weights = np.zeros(45, int)
    for stratum in (0, 1, 2):
        members = np.flatnonzero(strata == stratum)
        weights[members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), size=1)[0]
    drawn = [image for image, count in zip(images, weights, strict=True) for _ in range(count)]
    one = bootstrap_saturated_metrics(measures, resamples=1)
    for name, value in SaturatedMeasures(drawn).metrics().items():
        assert one[name].low == one[name].high == pytest.approx(value, abs=1e-12)


def test_intervals_of_more_scores_than_levels():
    """Smooth maps that find their regions in part; about 20,000 scores raise the curve."""
    rng = np.random.default_rng(4)
    images = [ScoredImage(gaussian_filter(rng.normal(size=(96, 96)), 3)) for _ in range(4)]
    for number in range(8):
        mask = np.zeros((96, 96), bool)
        mask[20:70, 10:60] = True
        found = gaussian_filter(rng.normal(size=(96, 96)), 3) + 0.2 * mask
        images.append(ScoredImage(found, [(mask, 2500)], ("logical", "structural")[number % 2]))
    for name, interval in bootstrap_saturated_metrics(SaturatedMeasures(images), resamples=20).items():
        assert interval.resolution < 1e-4, name
        assert interval.low <= interval.value <= interval.high


def test_no_interval_where_the_metric_is_undefined():
    with pytest.warns(MetricWarning):
        found = bootstrap_saturated_metrics(SaturatedMeasures([ScoredImage(ROW)]), resamples=3)
    assert all(np.isnan(interval.low) for interval in found.values())
