"""Find the largest anomalous region of a map."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from skimage.measure import label, regionprops


@dataclass(frozen=True)
class Region:
    """A box around connected pixels, in pixels of its image.

    Arguments:
        x: Left column.
        y: Top row.
        width: Columns.
        height: Rows.
    """

    x: int
    y: int
    width: int
    height: int


def largest_region(map_HW: ndarray, level: float) -> Region | None:
    """Return the box of the largest 8-connected region above a level; None if no pixel is.

    Example:
        >>> map_HW = np.zeros((4, 6))
        >>> map_HW[1:3, 2:5] = 1.0
        >>> largest_region(map_HW, 0.5)
        Region(x=2, y=1, width=3, height=2)
    """
    regions = regionprops(label(map_HW > level, connectivity=2))
    if not regions:
        return None
    top, left, bottom, right = max(regions, key=lambda region: region.area).bbox
    return Region(int(left), int(top), int(right - left), int(bottom - top))


def outline(map_HW: ndarray, level: float) -> ndarray:
    """Return True at the pixels above a level that border on others."""
    from skimage.segmentation import find_boundaries

    edges: ndarray = find_boundaries(np.asarray(map_HW > level), mode="inner")
    return edges
