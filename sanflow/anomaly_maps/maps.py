"""Make anomaly maps from a scores file: fusion of its scales, at any resolution.

A map is higher where the image is more anomalous; an image's score is the maximum of its map. Two fusions exist:
`calibrated` (a map depends on its image alone) and `testset` (as SANFlow's authors released it; it needs all images).

Shapes: N test images, h x w the size of a scale's grid, H x W the size of the maps.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from sanflow.anomaly_maps.fusion import calibrated, fused_over_test_set
from sanflow.anomaly_maps.scores_file import Kind, Scores

Fusion = Literal["calibrated", "testset"]


def anomaly_maps(scores: Scores, size: tuple[int, int], fusion: Fusion = "calibrated") -> np.ndarray:
    """Make the anomaly maps of all test images at one size.

    Arguments:
        scores: Grids of log p / C, or finished maps.
        size: (H, W) of the maps.
        fusion: How scales are joined. Finished maps have one scale and are only resized.

    Returns:
        (N, H, W), float64 where scales were fused, else float32.
    """
    if _needs_test_set(scores, fusion):
        return fused_over_test_set(list(scores.grids.values()), size)
    return fused(scores.kind, scores.grids, scores.constants, size)


def fused(
    kind: Kind, grids: Mapping[str, np.ndarray], constants: Mapping[str, float], size: tuple[int, int]
) -> np.ndarray:
    """Make anomaly maps that depend on their own image alone.

    Arguments:
        kind: Meaning of the numbers in the grids.
        grids: Name of a scale -> (N, h, w).
        constants: Name of a scale -> the constant that calibrates it; none for finished maps.
        size: (H, W) of the maps.

    Returns:
        (N, H, W), float64 where scales were fused, else float32.
    """
    if kind == "anomaly_map":
        return np.stack([resized(map_HW, size) for map_HW in grids["map"]])
    return calibrated(list(grids.values()), [constants[name] for name in grids], size)


def anomaly_maps_at(
    scores: Scores, sizes: Sequence[tuple[int, int]], fusion: Fusion = "calibrated"
) -> list[np.ndarray]:
    """Make the anomaly maps of all test images, each at its own size, as for metrics at native resolution.

    Arguments:
        scores: As in `anomaly_maps`.
        sizes: N pairs (H, W).
        fusion: As in `anomaly_maps`.

    Returns:
        N arrays (H, W), float64 where scales were fused, else float32.
    """
    if scores.kind == "log_prob" and len(set(sizes)) == 1:
        return list(anomaly_maps(scores, sizes[0], fusion))
    maps = list(iterate_maps(scores, sizes, fusion))
    lowest = min(map_HW.min() for map_HW in maps) if _needs_test_set(scores, fusion) else 0.0
    return [map_HW - lowest for map_HW in maps]


def iterate_maps(
    scores: Scores, sizes: Sequence[tuple[int, int]], fusion: Fusion = "calibrated"
) -> Iterator[np.ndarray]:
    """Yield the anomaly maps of all test images one by one, each at its own size.

    Test-set fusion is the calibrated one with the test set's own maxima, up to the subtraction of its minimum, which
    is left out here: it needs all maps and changes no order.

    Arguments:
        scores: As in `anomaly_maps`.
        sizes: N pairs (H, W).
        fusion: As in `anomaly_maps`.

    Yields:
        (H, W), float64 where scales were fused, else float32.
    """
    own = _needs_test_set(scores, fusion)
    constants = {name: float(grid.max()) for name, grid in scores.grids.items()} if own else scores.constants
    for number, size in enumerate(sizes):
        grids = {name: grid[number : number + 1] for name, grid in scores.grids.items()}
        yield fused(scores.kind, grids, constants, size)[0]


def _needs_test_set(scores: Scores, fusion: Fusion) -> bool:
    """Return whether a map depends on all test images."""
    return fusion == "testset" and scores.kind == "log_prob"


def image_scores(maps: np.ndarray | Sequence[np.ndarray], scores: Scores | None = None) -> np.ndarray:
    """Give the score of each image, (N,) float64: the method's own, else the maximum of its map.

    Arguments:
        maps: Anomaly maps of all images.
        scores: The scores file that they come from; None: take the maps' maxima.
    """
    if scores is not None and scores.image_scores is not None:
        return scores.image_scores.astype(np.float64)
    return np.array([map_HW.max() for map_HW in maps], np.float64)


def resized(map_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one map bilinearly in 32-bit floats; where it shrinks, average over the pixels it covers."""
    if map_HW.shape == tuple(size):
        return map_HW.astype(np.float32, copy=False)
    image = Image.fromarray(np.ascontiguousarray(map_HW, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)
