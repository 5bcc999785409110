"""Defects that the resizing of masks loses: counts by hand."""

import numpy as np
import pytest
from PIL import Image

from sanflow.data.images import load_masks
from sanflow.data.index import build_index
from sanflow.data.vanished import Vanished, load_masks_and_losses
from tests.helpers.miniatures import image, mask, mvtec


@pytest.fixture
def index(tmp_path):
    """Masks of 20 x 20 pixels: of the rows and columns, 1 3 5 ... 19 remain at 10 x 10."""
    mvtec(tmp_path, "screw")
    top = tmp_path / "screw"
    first = np.zeros((20, 20), np.uint8)
    first[2, 2] = first[1, 1] = 255  # one region of two diagonal neighbours, of which (1, 1) remains
    first[10, 4] = 255  # vanishes
    first[5:8, 10:13] = 255  # remains
    Image.fromarray(first).save(top / "ground_truth/broken/000_mask.png")
    mask(top / "ground_truth/broken/001_mask.png", box=(4, 6, 5, 7))  # column 4 alone: vanishes
    image(top / "test/broken/002.png", seed=30)
    mask(top / "ground_truth/broken/002_mask.png", box=(0, 0, 0, 0))
    return build_index("mine", "screw", tmp_path, kind="folder")


def test_images_and_regions_are_counted(index):
    masks_NHW, vanished = load_masks_and_losses(index, (10, 10))
    assert vanished == Vanished((10, 10), images=1, of_images=2, regions=2, of_regions=4, empty=1)
    assert np.array_equal(masks_NHW, load_masks(index, (10, 10)))
    assert vanished.warnings() == [
        "1 of 2 defective images lose all defect pixels at 10 x 10: pixel metrics count them as normal",
        "2 of 4 defect regions vanish at 10 x 10: metrics at this size do not include them",
        "1 of 3 defective images have a mask without defect pixels",
    ]


def test_nothing_vanishes_at_the_masks_own_size(index):
    masks_NHW, vanished = load_masks_and_losses(index, (20, 20))
    assert vanished == Vanished((20, 20), of_images=2, of_regions=4, empty=1)
    assert int(masks_NHW.sum()) == 2 + 1 + 9 + 1
