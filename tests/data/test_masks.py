"""Masks: what each file type says, masks of several files, frames of arrays."""

import numpy as np
import pytest
from PIL import Image

from sanflow.data.masks import read_mask
from sanflow.errors import DataError
from tests.helpers.miniatures import mask


def test_any_value_above_the_threshold_is_defective(tmp_path):
    grey = np.array([[0, 1], [127, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey * 0, grey, grey * 0], -1)).save(tmp_path / "green.png")
    Image.fromarray(np.dstack([grey, np.full((2, 2), 255, np.uint8)])).save(tmp_path / "alpha.png")
    for name in ("grey.png", "green.png", "alpha.png"):
        assert read_mask(tmp_path, name).defect_HW.tolist() == [[False, True], [True, True]]
        assert read_mask(tmp_path, name, above=127).defect_HW.tolist() == [[False, False], [False, True]]
    Image.fromarray(grey > 0).save(tmp_path / "bilevel.png")
    assert read_mask(tmp_path, "bilevel.png", above=127).defect_HW.tolist() == [[False, True], [True, True]]


def test_joined_masks_and_frames_of_arrays(tmp_path):
    mask(tmp_path / "many/0.png", box=(0, 0, 2, 2))
    mask(tmp_path / "many/1.png", box=(1, 1, 3, 3))
    assert read_mask(tmp_path, "many").defect_HW.sum() == 4 + 4 - 1
    mask(tmp_path / "many/2.png", size=(5, 5))
    with pytest.raises(DataError, match="Expected masks of one size"):
        read_mask(tmp_path, "many")
    np.save(tmp_path / "frames.npy", np.eye(3, dtype=np.uint8)[:, None].repeat(2, 1))
    assert read_mask(tmp_path, "frames.npy/1").defect_HW.tolist() == [[False, True, False]] * 2
    with pytest.raises(DataError, match="with frame 3 in"):
        read_mask(tmp_path, "frames.npy/3")
