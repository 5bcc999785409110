"""Fusion of scales: torch's bilinear resizing, values by hand, what a map may depend on."""

import decimal
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sanflow.anomaly_maps import fusion


def grids(n_images: int = 3, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(-1.5, 0.3, (n_images, size, size + 1)).astype(np.float32) for size in (8, 4, 2)]


@pytest.mark.parametrize("cells", [(8, 8), (5, 7), (1, 3), (1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(256, 256), (31, 64), (1, 5), (3, 3)])
def test_resize_is_torchs(cells, size):
    grid = np.random.default_rng(0).random((2, *cells), np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[:, None], size=size, mode="bilinear", align_corners=True
    )
    ours = fusion.resize(grid, size)
    assert ours.dtype == np.float32
    # torch finds its positions in float32, which moves the weights by a few 1e-7 of a cell per cell.
    np.testing.assert_allclose(ours, theirs[:, 0].numpy(), rtol=0, atol=2e-6)


def test_calibrated_by_hand():
    scales = [np.log(np.array([[[0.5, 2.0]]])), np.log(np.array([[[0.25]]]))]
    # p = min(0.5, 1), min(2, 1) and 0.25 / 0.5; what is more normal than the training images counts as 1.
    maps = fusion.calibrated(scales, [0.0, np.log(0.5)], (1, 2))
    np.testing.assert_allclose(maps, [[[2 - 0.5 - 0.5, 2 - 1 - 0.5]]], rtol=1e-6)
    np.testing.assert_allclose(fusion.image_scores(maps), [1.0], rtol=1e-6)


def test_calibrated_map_depends_on_its_own_image_alone():
    together = fusion.calibrated(grids(), [-1.0, -1.1, -1.2], (16, 18))
    alone = fusion.calibrated([grid[1:2] for grid in grids()], [-1.0, -1.1, -1.2], (16, 18))
    assert np.array_equal(together[1:2], alone)
    assert together.dtype == np.float64
    assert together.min() >= 0
    assert together.max() <= 3


def test_testset_map_depends_on_the_others():
    together, alone = (
        fusion.fused_over_test_set(grids(), (16, 18)),
        fusion.fused_over_test_set([grid[1:2] for grid in grids()], (16, 18)),
    )
    assert not np.allclose(together[1:2], alone)
    assert together.min() == alone.min() == 0


def test_testset_as_it_is_written():
    size = (16, 18)
    total = sum(fusion.resize(np.exp(grid.astype(np.float64) - grid.max()), size) for grid in grids())
    np.testing.assert_allclose(fusion.fused_over_test_set(grids(), size), total.max() - total, rtol=1e-5, atol=1e-6)


def test_order_is_kept_where_float32_would_round_it_off():
    # Three images within 1e-8 of the most normal value: 1 - p keeps what p would lose.
    grid = np.array([-3e-8, -2e-8, -1e-8]).reshape(3, 1, 1)
    assert np.all(np.diff(fusion.calibrated([grid], [0.0], (2, 2))[:, 0, 0]) < 0)


def exact(log_grids: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """log P of each pixel with 60 digits: an independent reference, pixel by pixel."""
    height, width = size
    log_sum_NHW = np.empty((len(log_grids[0]), *size))
    with decimal.localcontext(prec=60, Emin=-(10**6)):
        for image, row, column in np.ndindex(log_sum_NHW.shape):
            total = Decimal(0)
            for grid_Nhw in log_grids:
                y, x = (
                    Fraction(place * (cells - 1), max(pixels - 1, 1))
                    for place, cells, pixels in ((row, grid_Nhw.shape[1], height), (column, grid_Nhw.shape[2], width))
                )
                for cell_row, cell_column in np.ndindex(grid_Nhw.shape[1:]):
                    weight = max(1 - abs(y - cell_row), 0) * max(1 - abs(x - cell_column), 0)
                    if weight:
                        p = Decimal(float(grid_Nhw[image, cell_row, cell_column])).exp()
                        total += p * weight.numerator / weight.denominator
            log_sum_NHW[image, row, column] = float(total.ln())
    return log_sum_NHW


@pytest.mark.parametrize("fuse", ["calibrated", "testset"])
@pytest.mark.parametrize("scale", [0.1, 5, 40, 3000])
def test_maps_order_pixels_as_the_exact_sum_of_probabilities(fuse, scale):
    """From where nothing saturates to where every p underflows."""
    generator = np.random.default_rng(0)
    scales = [-scale * generator.random((2, *cells)) for cells in ((4, 4), (2, 3), (1, 1))]
    scales = [grid - grid.max() for grid in scales] if fuse == "testset" else [grid - 0.3 * scale for grid in scales]
    maps = (
        fusion.fused_over_test_set(scales, (7, 5))
        if fuse == "testset"
        else fusion.calibrated(scales, [0.0] * 3, (7, 5))
    )
    log_sum = exact(scales, (7, 5))
    order = np.argsort(log_sum, axis=None)
    steps = np.diff(maps.flat[order])
    assert np.all(steps[np.diff(log_sum.flat[order]) > 1e-6] < 0)
    assert np.all(steps <= 1e-15)
    if fuse == "calibrated":
        tail = 1e-8 * np.maximum(np.log(1e-6) - log_sum, 0)
        np.testing.assert_allclose(maps, 3 - np.exp(log_sum) + tail, rtol=0, atol=1e-12)


def test_saturated_maps_by_hand():
    """Log-ratios of -18 and -40 at all scales were both exactly 3 in 32-bit floats."""
    cells = np.array([-18.0, -40.0, -1000.0]).reshape(3, 1, 1)
    maps = fusion.calibrated([cells] * 3, [0.0] * 3, (2, 2))
    # log P = log 3 + x, log P0 = -13.8155...
    tail = np.log(1e-6) - np.log(3) - cells
    np.testing.assert_allclose(
        maps, np.broadcast_to(3 - 3 * np.exp(cells) + 1e-8 * tail, (3, 2, 2)), rtol=0, atol=1e-15
    )
    assert maps[0, 0, 0] < maps[1, 0, 0] < maps[2, 0, 0] < 3.00001


def in_32_bits(log_grids: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The fusion as it was before: sums of 32-bit floats."""
    return sum(fusion.resize((-np.expm1(grid)).astype(np.float32), size) for grid in log_grids)


@pytest.mark.parametrize("scale", [0.01, 1, 4, 13])
def test_where_32_bits_suffice_the_values_are_the_same(scale):
    generator = np.random.default_rng(1)
    log_grids = [-scale * generator.random((3, size, size)) for size in (16, 8, 4)]
    maps = fusion.calibrated(log_grids, [0.0] * 3, (40, 30))
    np.testing.assert_allclose(maps, in_32_bits(log_grids, (40, 30)), rtol=0, atol=1e-6)


LOG_RATIOS = st.floats(-1e5, 0, width=32)


@given(st.lists(LOG_RATIOS, min_size=2, max_size=20, unique=True), st.integers(1, 3), st.integers(1, 4))
def test_what_is_less_probable_at_all_scales_is_more_anomalous(log_ratios, n_scales, cells):
    """Strictly for two log-ratios below -1e-6 that differ as 32-bit floats; above it, never in reverse order."""
    log_ratios = np.sort(np.array(log_ratios, np.float32))
    grids = [np.broadcast_to(log_ratios[:, None, None], (len(log_ratios), cells, cells))] * n_scales
    scores = fusion.image_scores(fusion.calibrated(grids, [0.0] * n_scales, (5, 7)))
    steps = np.diff(scores)
    assert np.all(steps <= 0)
    assert np.all(steps[log_ratios[:-1] < -1e-6] < 0)


@given(arrays(np.float32, (2, 3, 3), elements=st.floats(-200, 0, width=32)), st.floats(0.125, 100, width=32))
def test_a_map_rises_where_one_scale_falls(grid, drop):
    """At every pixel and at any resolution; never lower, whatever the other scale says."""
    other = np.full((2, 2, 2), -30.0, np.float32)
    before = fusion.calibrated([grid, other], [0.0, 0.0], (9, 4))
    after = fusion.calibrated([grid - drop, other], [0.0, 0.0], (9, 4))
    assert np.all(after >= before - 1e-14)


def test_blocks_change_nothing(monkeypatch):
    whole = fusion.calibrated(grids(5), [-1.0] * 3, (16, 18))
    monkeypatch.setattr(fusion, "BLOCK_BYTES", 2 * 8 * 16 * 18)
    assert np.array_equal(fusion.calibrated(grids(5), [-1.0] * 3, (16, 18)), whole)


def test_constants_are_the_largest_of_normal_images():
    assert fusion.calibration_constants(grids()) == [float(grid.max()) for grid in grids()]


def test_scales_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="one constant for each of 3 scales, but got 2"):
        fusion.calibrated(grids(), [0.0, 0.0], (4, 4))
    with pytest.raises(ValueError, match=r"same N, but got shapes \[\(3, 8, 9\), \(2, 4, 5\)\]"):
        fusion.fused_over_test_set([grids(3)[0], grids(2)[1]], (4, 4))
