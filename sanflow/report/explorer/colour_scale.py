"""One colour scale for the maps of all experiments, whose scores have different units.

A pixel's colour says how rare its score is: the share of all test pixels of the category, in maps of the same
experiment and seed, that score at least as high. The scale is logarithmic, from 1 in 1 to 1 in 10,000. So each
experiment has the same number of pixels of each colour; maps of different experiments differ only in their places.

Shapes: H x W a map, n sampled pixels.
"""

import numpy as np

LEVELS = 256
RAREST = 1e-4  # the share at which the scale ends


def level_edges(sample_n: np.ndarray) -> np.ndarray:
    """Find the scores above which each level of the scale begins.

    Arguments:
        sample_n: Scores of pixels from all test images of the category.

    Returns:
        (255,) ascending; a score has as many levels as edges lie below it.

    Example:
        >>> edges = level_edges(np.arange(10_000))
        >>> int(edges[0]), int(edges[-1])
        (354, 9998)
    """
    ordered = np.sort(sample_n, axis=None)
    shares = RAREST ** (np.arange(1, LEVELS) / (LEVELS - 1))
    # At most `share * n` of the sample lies above the score at this place. The tolerance is for shares such as 1e-4
    # that floating point puts just below a whole number of pixels.
    allowed = np.floor(shares * len(ordered) * (1 + 1e-9)).astype(int)
    return ordered[np.maximum(len(ordered) - allowed - 1, 0)]


def levels_of(map_HW: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Turn scores into levels of the scale; equal scores share the level of the commonest of them.

    Arguments:
        map_HW: Scores, of any shape.
        edges: From `level_edges`.

    Returns:
        uint8, of the shape of the scores.

    Example:
        >>> edges = level_edges(np.arange(10_000))
        >>> levels_of(np.array([0, 9_000, 9_900, 9_990, 9_999]), edges)
        array([  0,  63, 127, 191, 255], dtype=uint8)
    """
    return np.searchsorted(edges, map_HW, side="left").astype(np.uint8)
