"""AUPIMO: histograms whose false-positive rates are powers of ten, the slow reference, and its laws."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sanflow.evaluation.metrics import MetricWarning, aupimo, aupimo_per_image
from tests.reference.slow_aupro import slow_aupimo


def decades():
    """A normal image of a million pixels, of which 1, 10, 100, 1000, ... exceed 6, 5, 4, 3, ...

    score   7    6    5     4      3       2       1
    pixels  1    9   90   900   9000   90000  900000
    rate  1e-6 1e-5 1e-4  1e-3   1e-2    1e-1       1   (called at that score as threshold)
    """
    counts = [900_000, 90_000, 9_000, 900, 90, 9, 1]
    return np.repeat(np.arange(1.0, 8.0), counts).reshape(1000, 1000)


def defect(*scores):
    """An anomalous image of 1000 x 1000 pixels: its first row is the defect, in equal parts of these scores."""
    image, mask = np.full((1000, 1000), 99.0), np.zeros((1000, 1000), dtype=bool)
    image[0], mask[0] = np.repeat(scores, 1000 // len(scores)), True
    return image, mask


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((8.0,), 1.0),  # above all normals
        ((6.5,), 1.0),  # found at rate 1e-6, before the range begins
        ((5.5,), 1.0),  # found at rate 1e-5, as it begins
        ((4.5,), 0.0),  # found at 1e-4, as it ends
        ((1.5,), 0.0),
        ((8.0, 0.0), 0.5),
        ((8.0, 5.5, 4.5, 0.0), 0.5),
        # ties with the 90 pixels between rates 1e-5 and 1e-4: (rate - 1e-5) / 9e-5 over d log(rate), over log(10)
        ((5.0,), (9e-5 - 1e-5 * np.log(10)) / 9e-5 / np.log(10)),
        ((6.0,), 1.0),  # ties below the range only
        ((4.0,), 0.0),  # ties above it only
    ],
)
def test_by_hand(scores, expected):
    image, mask = defect(*scores)
    each = aupimo_per_image([decades(), image], [np.zeros_like(mask), mask])
    assert np.isnan(each[0])
    assert each[1] == pytest.approx(expected, abs=1e-12)


def test_the_range_is_logarithmic():
    image, mask = defect(4.5)  # found at rate 1e-4
    for lower, upper, expected in [(1e-5, 1e-3, 1 / 2), (1e-6, 1e-3, 1 / 3), (1e-5, 1e-2, 2 / 3), (1e-4, 1e-3, 1.0)]:
        found = aupimo([decades(), image], [np.zeros_like(mask), mask], lower, upper)
        assert found == pytest.approx(expected, abs=1e-12)


def test_normal_pixels_of_anomalous_images_and_their_number_do_not_count():
    image, mask = defect(5.5)
    quiet = image.copy()
    quiet[1:] = 0.0
    masks = [np.zeros_like(mask), mask]
    assert aupimo([decades(), image], masks) == aupimo([decades(), quiet], masks) == 1.0


def test_the_mean_is_over_anomalous_images():
    (a, mask), (b, _), (c, _) = defect(8.0), defect(0.0), defect(8.0, 0.0)
    normal = np.zeros_like(mask)
    maps, masks = [decades(), a, b, c, decades()], [normal, mask, mask, mask, normal]
    np.testing.assert_allclose(aupimo_per_image(maps, masks), [np.nan, 1.0, 0.0, 0.5, np.nan])
    assert aupimo(maps, masks) == pytest.approx(0.5)


def test_the_rate_is_the_mean_of_the_rates_within_each_normal_image():
    small, large = np.zeros((1, 2)), np.zeros((1, 8))
    small[0, 0] = 5.0  # half of the small image exceeds 4: the mean rate is 1/4, though 1 of 10 pixels do
    maps, masks = [small, large, np.array([[4.0]])], [small > 9, large > 9, np.ones((1, 1), dtype=bool)]
    with pytest.warns(MetricWarning):
        assert aupimo(maps, masks, 1 / 16, 1.0) == pytest.approx(1 / 2)  # risen from 1/4 to 1 of 1/16 to 1


sizes = st.sampled_from([(3, 4), (2, 2), (1, 5)])
levels = st.sampled_from([0.0, 1.0, 2.0, 3.0]) | st.floats(-10, 10, width=32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n_normal=st.integers(1, 3), ends=st.sampled_from([(0.01, 1.0), (0.05, 0.4), (0.2, 0.25)]))
def test_agrees_with_the_slow_reference(data, n_normal, ends):
    shapes = data.draw(st.lists(sizes, min_size=n_normal + 1, max_size=n_normal + 2))
    maps = [data.draw(hnp.arrays(np.float32, shape, elements=levels)) for shape in shapes]
    masks = [np.zeros(shape, dtype=bool) for shape in shapes]
    for mask in masks[n_normal:]:
        mask[0, : data.draw(st.integers(1, mask.shape[1]))] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        each = aupimo_per_image(maps, masks, *ends)
    np.testing.assert_allclose(each, slow_aupimo(maps, masks, *ends), atol=1e-9)


def test_depends_on_order_only():
    generator = np.random.default_rng(3)
    maps, masks = generator.normal(size=(4, 400, 500)), np.zeros((4, 400, 500), dtype=bool)
    masks[0, :9, :9] = masks[1, 5:30, 40:60] = True
    maps += 4.0 * masks
    expected = aupimo_per_image(maps, masks)
    assert 0.1 < expected[0] < 0.9
    for moved in (np.exp(9 * maps), 1e6 * maps - 3.0):
        np.testing.assert_array_equal(aupimo_per_image(moved, masks), expected)


def test_a_constant_map_is_worth_nothing():
    masks = np.zeros((2, 500, 500), dtype=bool)
    masks[1, :5] = True
    assert aupimo(np.ones((2, 500, 500)), masks) < 1e-4


@pytest.mark.parametrize(("fill", "missing"), [(False, "anomalies"), (True, "normal images")])
def test_a_missing_class_is_nan_with_a_warning(fill, missing):
    masks = np.full((2, 400, 400), fill)
    with pytest.warns(MetricWarning, match=f"AUPIMO is undefined without {missing}; NaN is returned"):
        assert np.isnan(aupimo(np.zeros((2, 400, 400)), masks))


def test_too_few_normal_pixels_are_told():
    masks = np.zeros((2, 100, 100), dtype=bool)
    masks[1, 0, 0] = True
    with pytest.warns(MetricWarning, match=r"spans only 0\.9 pixels of the 1 normal images \(expected at least 10\)"):
        aupimo(np.zeros((2, 100, 100)), masks)


@pytest.mark.parametrize("ends", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 1.5), (float("nan"), 0.5)])
def test_a_wrong_range_is_refused(ends):
    with pytest.raises(ValueError, match="Expected a range 0 < lower < upper <= 1, but got lower"):
        aupimo(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), dtype=bool), *ends)
