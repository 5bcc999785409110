"""Fusion of scales: torch's bilinear resizing, values by hand, what a map may depend on."""

import numpy as np
import pytest
import torch

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
    assert together.dtype == np.float32
    assert together.min() >= 0
    assert together.max() <= 3


def test_testset_map_depends_on_the_others():
    together, alone = fusion.testset(grids(), (16, 18)), fusion.testset([grid[1:2] for grid in grids()], (16, 18))
    assert not np.allclose(together[1:2], alone)
    assert together.min() == alone.min() == 0


def test_testset_as_it_is_written():
    size = (16, 18)
    total = sum(fusion.resize(np.exp(grid.astype(np.float64) - grid.max()), size) for grid in grids())
    np.testing.assert_allclose(fusion.testset(grids(), size), total.max() - total, rtol=1e-5, atol=1e-6)


def test_order_is_kept_where_float32_would_round_it_off():
    # Three images within 1e-8 of the most normal value: 1 - p keeps what p would lose.
    grid = np.array([-3e-8, -2e-8, -1e-8]).reshape(3, 1, 1)
    assert np.all(np.diff(fusion.calibrated([grid], [0.0], (2, 2))[:, 0, 0]) < 0)


def test_blocks_change_nothing(monkeypatch):
    whole = fusion.calibrated(grids(5), [-1.0] * 3, (16, 18))
    monkeypatch.setattr(fusion, "BLOCK_BYTES", 2 * 4 * 16 * 18)
    assert np.array_equal(fusion.calibrated(grids(5), [-1.0] * 3, (16, 18)), whole)


def test_constants_are_the_largest_of_normal_images():
    assert fusion.calibration_constants(grids()) == [float(grid.max()) for grid in grids()]


def test_scales_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="one constant for each of 3 scales, but got 2"):
        fusion.calibrated(grids(), [0.0, 0.0], (4, 4))
    with pytest.raises(ValueError, match=r"same N, but got shapes \[\(3, 8, 9\), \(2, 4, 5\)\]"):
        fusion.testset([grids(3)[0], grids(2)[1]], (4, 4))
