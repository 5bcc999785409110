"""Count the defects that have no pixel left after their masks were resized.

Shapes: N images, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy import ndimage

from sanflow.data.images import iterate_masks, nearest
from sanflow.data.index import Index

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Vanished:
    """Counts of defects that the resizing of masks loses.

    Arguments:
        size: Height and width after resizing.
        images: Defective images that lose all defect pixels.
        of_images: Defective images with defect pixels.
        regions: 8-connected regions that lose all pixels.
        of_regions: Regions at the masks' own size.
        empty: Defective images whose masks have no pixel at their own size.
    """

    size: tuple[int, int]
    images: int = 0
    of_images: int = 0
    regions: int = 0
    of_regions: int = 0
    empty: int = 0

    def warnings(self) -> list[str]:
        """Return one sentence for each count that is not 0.

        Example:
            >>> Vanished((64, 64), images=2, of_images=3, regions=2, of_regions=3).warnings()[0]
            '2 of 3 defective images lose all defect pixels at 64 x 64: pixel metrics count them as normal'
        """
        size = f"{self.size[0]} x {self.size[1]}"
        return [
            sentence
            for count, sentence in (
                (
                    self.images,
                    f"{self.images} of {self.of_images} defective images lose all defect pixels at {size}: "
                    "pixel metrics count them as normal",
                ),
                (
                    self.regions,
                    f"{self.regions} of {self.of_regions} defect regions vanish at {size}: metrics at this size do not "
                    "include them",
                ),
                (
                    self.empty,
                    f"{self.empty} of {self.empty + self.of_images} defective images have a mask without defect pixels",
                ),
            )
            if count
        ]


def load_masks_and_losses(index: Index, size: tuple[int, int]) -> tuple[ndarray, Vanished]:
    """Read the test masks at one size, and count what the resizing loses.

    Arguments:
        index: The category.
        size: Height and width in pixels.

    Returns:
        (N, H, W) bool in the order of the index, and the counts.

    Raises:
        DataError: If a mask is missing or damaged, or is another one than was indexed.
    """
    masks_NHW = np.zeros((len(index.test), *size), bool)
    images = of_images = regions = of_regions = empty = 0
    for reference, defect_HW, resized_HW in zip(index.test["mask"], iterate_masks(index), masks_NHW, strict=True):
        if not defect_HW.any():
            empty += int(reference != "")
            continue
        regions_HW, n_regions = ndimage.label(defect_HW, EIGHT_NEIGHBOURS)
        left_HW = nearest(regions_HW.astype(np.int32), size)
        resized_HW[...] = left_HW > 0
        images += int(not resized_HW.any())
        of_images += 1
        regions += n_regions - len(np.setdiff1d(left_HW, [0]))
        of_regions += n_regions
    return masks_NHW, Vanished(size, images, of_images, regions, of_regions, empty)
