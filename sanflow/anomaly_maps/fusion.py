"""Fuse the log-probabilities of several scales to one anomaly map. Plain numpy: no model, no torch.

An anomaly map is higher for more anomalous; an image's score is the maximum of its map.

Shapes: N images, h x w cells of a scale's grid, H x W pixels of the map, L scales, K pixels of any images.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy import ndarray

# Pixels resized at once: they and their intermediate fit a processor's cache.
BLOCK_BYTES = 8 << 20
# P0: where less is left of the sum of probabilities, pixels rank by its logarithm.
TAIL_BELOW = 1e-6
# Of the map, per unit of the logarithm: 64-bit floats then distinguish what 32-bit logarithms distinguish, and a map
# stays within 1e-6 of L down to log P = -114.
TAIL_SLOPE = 1e-8


def calibration_constants(grids: Sequence[ndarray]) -> list[float]:
    """Compute the constants of `calibrated` fusion: the largest log p / C of each scale on normal training images.

    Arguments:
        grids: For each scale the log-probabilities per channel of normal training images, (N, h, w).
    """
    return [float(np.max(grid_Nhw)) for grid_Nhw in grids]


def calibrated(grids: Sequence[ndarray], constants: Sequence[float], size: tuple[int, int]) -> ndarray:
    r"""Make anomaly maps that depend on their own image alone.

    The map is L - P with P = sum_l p_l, p_l = exp(min(log p_l - c_l, 0)). Where P < P0 = 1e-6, it is
    L - P + 1e-8 (log P0 - log P): L - P would be L for all such pixels, in 64-bit floats too where P < 1e-16.

    Arguments:
        grids: For each scale log p / C, (N, h, w).
        constants: For each scale c_l, from normal training images (`calibration_constants`).
        size: H and W of the maps.

    Returns:
        Maps of shape (N, H, W), float64, which order pixels as P does: in [0, L], beyond L by 1e-8 for each unit of
        log P below log P0.

    Raises:
        ValueError: If the scales do not agree.

    Example:
        >>> calibrated([np.log([[[1.0, 0.5]]])], constants=[0.0], size=(1, 3))
        array([[[0.  , 0.25, 0.5 ]]])
        >>> maps = calibrated([np.array([[[-18.0, -40.0, -4000.0]]])], constants=[0.0], size=(1, 3))
        >>> [round(1e8 * (float(score) - 1), 1) for score in maps[0, 0]]
        [2.7, 26.2, 3986.2]
    """
    if len(constants) != len(grids):
        raise ValueError(f"Expected one constant for each of {len(grids)} scales, but got {len(constants)}.")
    return _fused(
        [
            np.minimum(grid_Nhw.astype(np.float64) - constant, 0)
            for grid_Nhw, constant in zip(grids, constants, strict=True)
        ],
        size,
    )


def fused_over_test_set(grids: Sequence[ndarray], size: tuple[int, int]) -> ndarray:
    """Make anomaly maps as the authors release them; each depends on the whole test set.

    Per scale the maximum over all test images is subtracted, then exp, bilinear resizing, the sum over the scales;
    the map is the sum's maximum over the test set minus the sum. Where that would be equal for all pixels, they are
    ranked by the logarithm as in `calibrated`.

    Arguments:
        grids: For each scale log p / C of all test images, (N, h, w).
        size: H and W of the maps.

    Returns:
        Maps of shape (N, H, W), float64, >= 0; exactly 0 at the most normal pixel of the test set.

    Raises:
        ValueError: If the scales do not agree.

    Example:
        >>> fused_over_test_set([np.log([[[1.0, 0.5]]])], size=(1, 3))
        array([[[0.  , 0.25, 0.5 ]]])
    """
    maps_NHW = _fused([grid_Nhw.astype(np.float64) - np.max(grid_Nhw) for grid_Nhw in grids], size)
    maps_NHW -= maps_NHW.min()
    return maps_NHW


def stretched(map_HW: ndarray, n_scales: int) -> ndarray:
    """Stretch a map of `calibrated` fusion so that few digits keep most of its order; for 16-bit floats.

    The most anomalous pixels differ in P, by orders of magnitude, while L - P is L for all of them in few digits. The
    stretched map is -log P where P >= P0, and rises on from there, 1 for each 1e-8 of the map.

    Arguments:
        map_HW: From `calibrated`.
        n_scales: L.

    Returns:
        (H, W) float64, of the same order.

    Example:
        >>> [round(float(score), 3) for score in stretched(np.array([[0.0, 0.5, 0.999]]), 1)[0]]
        [0.0, 0.693, 6.908]
    """
    end = n_scales - TAIL_BELOW
    return -np.log(np.maximum(n_scales - map_HW, TAIL_BELOW)) + np.maximum(map_HW - end, 0.0) / TAIL_SLOPE


def image_scores(maps_NHW: ndarray) -> ndarray:
    """Return the score of each image, the maximum of its anomaly map; shape (N,)."""
    return maps_NHW.max(axis=(1, 2))


def resize(grid_Nhw: ndarray, size: tuple[int, int]) -> ndarray:
    """Interpolate bilinearly with aligned corners, as torch's `interpolate(..., align_corners=True)`.

    Separable: one small matrix per axis.

    Arguments:
        grid_Nhw: Stack of grids.
        size: H and W.

    Returns:
        Shape (N, H, W), dtype of the grids.

    Example:
        >>> resize(np.array([[[0.0, 1.0], [2.0, 3.0]]]), (3, 2))
        array([[[0., 1.],
                [1., 2.],
                [2., 3.]]])
    """
    rows_Hh = _interpolation(grid_Nhw.shape[1], size[0]).astype(grid_Nhw.dtype)
    columns_wW = _interpolation(grid_Nhw.shape[2], size[1]).T.astype(grid_Nhw.dtype)
    return rows_Hh @ (grid_Nhw @ columns_wW)


def _fused(log_grids: Sequence[ndarray], size: tuple[int, int]) -> ndarray:
    """Fuse log p_l - c_l <= 0 of each scale to maps, in blocks of images, so that intermediates stay small."""
    if not log_grids or any(grid.ndim != 3 or len(grid) != len(log_grids[0]) for grid in log_grids):
        raise ValueError(
            "Expected for each scale a stack of grids (N, h, w) of the same N, but got shapes "
            f"{[grid.shape for grid in log_grids]}."
        )
    n_images = len(log_grids[0])
    maps_NHW = np.empty((n_images, *size), np.float64)
    block = max(1, BLOCK_BYTES // (8 * size[0] * size[1]))
    for start in range(0, n_images, block):
        part = slice(start, start + block)
        # Compute 1 - p before the resizing: near p = 1 a later subtraction would lose small differences.
        maps_NHW[part] = sum(resize(-np.expm1(grid_Nhw[part]), size) for grid_Nhw in log_grids)
        _rank_tail_by_log(maps_NHW[part], [grid_Nhw[part] for grid_Nhw in log_grids])
    return maps_NHW


def _rank_tail_by_log(maps_NHW: ndarray, log_grids: Sequence[ndarray]) -> None:
    """Replace L - P in place where P < P0."""
    end = len(log_grids) - TAIL_BELOW
    places = np.nonzero(maps_NHW > end)
    if places[0].size:
        log_sum = _log_of_resized_sum(log_grids, places, maps_NHW.shape[1:])
        maps_NHW[places] = end + (TAIL_BELOW - np.exp(log_sum)) + TAIL_SLOPE * (np.log(TAIL_BELOW) - log_sum)


def _log_of_resized_sum(log_grids: Sequence[ndarray], places: tuple[ndarray, ...], size: tuple[int, ...]) -> ndarray:
    """Compute the logarithm of P at K pixels from logarithms, because p itself may be too small for a float."""
    image_K, row_K, column_K = places
    log_sum_K = np.full(len(image_K), -np.inf)
    for grid_Nhw in log_grids:
        for cell_row_H, row_weight_H in neighbours(grid_Nhw.shape[1], size[0]):
            for cell_column_W, column_weight_W in neighbours(grid_Nhw.shape[2], size[1]):
                with np.errstate(divide="ignore"):  # a weight of 0 is a logarithm of -inf
                    log_weight_K = np.log(row_weight_H[row_K] * column_weight_W[column_K])
                log_p_K = grid_Nhw[image_K, cell_row_H[row_K], cell_column_W[column_K]]
                np.logaddexp(log_sum_K, log_p_K + log_weight_K, out=log_sum_K)
    return log_sum_K


@lru_cache(maxsize=64)
def _interpolation(cells: int, pixels: int) -> ndarray:
    """Return the matrix (pixels, cells) of the cells' weights for each pixel; do not write into it."""
    matrix = np.zeros((pixels, cells))
    for cell, weight in neighbours(cells, pixels):
        matrix[np.arange(pixels), cell] += weight
    return matrix


def neighbours(cells: int, pixels: int) -> tuple[tuple[ndarray, ndarray], tuple[ndarray, ndarray]]:
    """Weigh the cells of aligned corners: for each pixel the one before and the one after, each with its weight.

    Arguments:
        cells: Cells along an axis.
        pixels: Pixels along it.

    Returns:
        Two pairs of indices and weights, each of shape (pixels,).

    Example:
        >>> neighbours(2, 3)
        ((array([0, 0, 1]), array([1. , 0.5, 1. ])), (array([1, 1, 1]), array([0. , 0.5, 0. ])))
    """
    # In integers, so that a pixel that lies on a cell has a weight of exactly 0 for the other one.
    before, rest = np.divmod(np.arange(pixels) * (cells - 1), max(pixels - 1, 1))
    weight = rest / max(pixels - 1, 1)
    return (before, 1 - weight), (np.minimum(before + 1, cells - 1), weight)
