"""Outlines of regions as SVG paths, in a square of 1,000 x 1,000 that the page stretches over the image.

Shapes: H x W a map or mask.
"""

import numpy as np
from skimage.measure import approximate_polygon, find_contours

SIDE = 1000
TOLERANCE = 0.4  # pixels by which a drawn line may miss the true one


def outline_of(map_HW: np.ndarray, threshold: float) -> str:
    """Draw the outline of where a map reaches a threshold.

    Arguments:
        map_HW: Anomaly map, or a mask as 0 and 1.
        threshold: Lowest score inside. NaN draws nothing.

    Returns:
        The `d` of an SVG path: closed polygons, holes included; empty if no pixel is inside.

    Example:
        >>> outline_of(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]), 0.5)
        'M500 667L333 500L500 333L667 500Z'
    """
    values_HW = np.asarray(map_HW, float)
    inside_HW = values_HW >= threshold
    if not inside_HW.any():
        return ""
    lowest, highest = float(values_HW.min()), float(values_HW.max())
    if highest - threshold <= 1e-3 * (highest - lowest) or lowest >= threshold:
        # A map whose highest values are the threshold has no line there: draw around the pixels instead.
        values_HW, threshold, lowest = inside_HW.astype(float), 0.5, 0.0
    height, width = values_HW.shape
    # A rim of low values closes outlines at the image's border.
    framed = np.pad(values_HW, 1, constant_values=lowest)
    parts = []
    for line in find_contours(framed, threshold):
        points = approximate_polygon(line, TOLERANCE)[:-1]
        if len(points) < 3:
            continue
        # Index 1 of the framed map is the centre of the first pixel, half a pixel from the border.
        x = np.clip((points[:, 1] - 0.5) / width, 0, 1) * SIDE
        y = np.clip((points[:, 0] - 0.5) / height, 0, 1) * SIDE
        parts.append("M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in zip(x, y, strict=True)) + "Z")
    return "".join(parts)


def overlap_of(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> float | None:
    """Compute the intersection over union of two regions; None where the truth is empty.

    Example:
        >>> overlap_of(np.array([True, True, False]), np.array([False, True, True]))
        0.3333333333333333
    """
    if not truth_HW.any():
        return None
    return float((predicted_HW & truth_HW).sum() / (predicted_HW | truth_HW).sum())
