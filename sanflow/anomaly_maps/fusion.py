r"""From log-probabilities per scale to one anomaly map. Plain numpy: no model, no torch.

An anomaly map is higher for more anomalous; an image's score is the maximum of its map.

Shapes: N images, h x w cells of a scale's grid, H x W pixels of the map, L scales.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy import ndarray

# Pixels resized at once: as much as fits a processor's cache with its intermediate.
BLOCK_BYTES = 8 << 20


def calibration_constants(grids: Sequence[ndarray]) -> list[float]:
    """What `calibrated` fusion subtracts: the largest log p / C of each scale on normal training images.

    Arguments:
        grids: For each scale the log-probabilities per channel of normal training images, (N, h, w).
    """
    return [float(np.max(grid_Nhw)) for grid_Nhw in grids]


def calibrated(grids: Sequence[ndarray], constants: Sequence[float], size: tuple[int, int]) -> ndarray:
    r"""Anomaly maps that depend on their own image alone, L - sum_l p_l with p_l = exp(min(log p_l - c_l, 0)).

    Arguments:
        grids: For each scale log p / C, (N, h, w).
        constants: For each scale c_l, from normal training images (`calibration_constants`).
        size: H and W of the maps.

    Returns:
        Maps of shape (N, H, W) in [0, L], float32.

    Raises:
        ValueError: If the scales do not agree.

    Example:
        >>> calibrated([np.log([[[1.0, 0.5]]])], constants=[0.0], size=(1, 3))
        array([[[0.  , 0.25, 0.5 ]]], dtype=float32)
    """
    if len(constants) != len(grids):
        raise ValueError(f"Expected one constant for each of {len(grids)} scales, but got {len(constants)}.")
    # 1 - p before the resizing: near p = 1 float32 would lose what the small values still tell apart.
    surprises = [
        -np.expm1(np.minimum(grid_Nhw.astype(np.float64) - constant, 0))
        for grid_Nhw, constant in zip(grids, constants, strict=True)
    ]
    return _sum_of_resized(surprises, size)


def testset(grids: Sequence[ndarray], size: tuple[int, int]) -> ndarray:
    """Anomaly maps as the authors release them; each depends on the whole test set.

    Per scale the maximum over all test images is subtracted, then exp, bilinear resizing, the sum over the scales;
    the map is the sum's maximum over the test set minus the sum.

    Arguments:
        grids: For each scale log p / C of all test images, (N, h, w).
        size: H and W of the maps.

    Returns:
        Maps of shape (N, H, W), float32, >= 0; exactly 0 at the most normal pixel of the test set.

    Raises:
        ValueError: If the scales do not agree.

    Example:
        >>> testset([np.log([[[1.0, 0.5]]])], size=(1, 3))
        array([[[0.  , 0.25, 0.5 ]]], dtype=float32)
    """
    surprises = [-np.expm1(grid_Nhw.astype(np.float64) - np.max(grid_Nhw)) for grid_Nhw in grids]
    maps_NHW = _sum_of_resized(surprises, size)
    maps_NHW -= maps_NHW.min()
    return maps_NHW


testset.__test__ = False  # type: ignore[attr-defined]  # its name is the method's: no test for pytest to collect


def image_scores(maps_NHW: ndarray) -> ndarray:
    """Score of each image, the maximum of its anomaly map; shape (N,)."""
    return maps_NHW.max(axis=(1, 2))


def resize(grid_Nhw: ndarray, size: tuple[int, int]) -> ndarray:
    """Bilinear interpolation with aligned corners, as torch's `interpolate(..., align_corners=True)`.

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


def _sum_of_resized(grids: Sequence[ndarray], size: tuple[int, int]) -> ndarray:
    if not grids or any(grid.ndim != 3 or len(grid) != len(grids[0]) for grid in grids):
        raise ValueError(
            "Expected for each scale a stack of grids (N, h, w) of the same N, but got shapes "
            f"{[grid.shape for grid in grids]}."
        )
    n_images = len(grids[0])
    maps_NHW = np.empty((n_images, *size), np.float32)
    block = max(1, BLOCK_BYTES // (4 * size[0] * size[1]))
    for start in range(0, n_images, block):
        part = slice(start, start + block)
        maps_NHW[part] = resize(grids[0][part].astype(np.float32), size)
        for grid_Nhw in grids[1:]:
            maps_NHW[part] += resize(grid_Nhw[part].astype(np.float32), size)
    return maps_NHW


@lru_cache(maxsize=64)
def _interpolation(cells: int, pixels: int) -> ndarray:
    """Matrix (pixels, cells) whose rows are the weights of the cells for one pixel; do not write into it."""
    position = np.arange(pixels) * ((cells - 1) / max(pixels - 1, 1))
    left = np.minimum(position.astype(int), max(cells - 2, 0))
    weight = position - left
    matrix = np.zeros((pixels, cells))
    matrix[np.arange(pixels), left] = 1 - weight
    matrix[np.arange(pixels), np.minimum(left + 1, cells - 1)] += weight
    return matrix
