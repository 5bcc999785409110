"""Masks: what each file type says, masks of several files, frames of arrays."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from sanflow.data.decode import Reading
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
        assert read_mask(tmp_path, name, Reading(mask_above=127)).defect_HW.tolist() == [[False, False], [False, True]]
    Image.fromarray(grey > 0).save(tmp_path / "bilevel.png")
    assert read_mask(tmp_path, "bilevel.png", Reading(mask_above=127)).defect_HW.tolist() == [
        [False, True],
        [True, True],
    ]


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


def save(values, path, **options):
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)


def test_a_palette_counts_by_its_colours(tmp_path):
    """Index 0 is white here: read by index, the mask would be inverted."""
    image = Image.new("P", (2, 2))
    image.putdata([1, 0, 1, 1])
    image.putpalette([255, 255, 255, 0, 0, 0])
    for name in ("palette.png", "palette.gif", "palette.bmp"):
        image.save(tmp_path / name)
        mask = read_mask(tmp_path, name)
        assert mask.defect_HW.tolist() == [[False, True], [False, False]]
        assert mask.doubts == ()


def test_a_transparent_palette_entry_is_background(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 255, 255, 200, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "mask.png", transparency=0)
    assert read_mask(tmp_path, "mask.png").defect_HW.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([[(255, 0, 0, 255), (255, 255, 255, 0)]], [[True, False]]),  # drawn on transparent white
        ([[(255, 0, 0, 255), (0, 0, 0, 255)]], [[True, False]]),  # an alpha that says nothing
        ([[(9, 9, 9, 60), (0, 0, 0, 60)]], [[True, False]]),
        ([[(0, 0, 0, 0), (0, 0, 0, 0)]], [[False, False]]),
    ],
)
def test_alpha_lays_a_drawing_on_black(tmp_path, pixels, expected):
    save(pixels, tmp_path / "mask.png")
    assert read_mask(tmp_path, "mask.png").defect_HW.tolist() == expected


@pytest.mark.parametrize("pixels", [[[(0, 0, 0, 255), (0, 0, 0, 0)]], [[(255, 255, 255, 0), (255, 255, 255, 0)]]])
def test_a_drawing_that_transparency_hides_is_refused(tmp_path, pixels):
    save(pixels, tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png, but got: only black or invisible pixels beside transparent ones"):
        read_mask(tmp_path, "mask.png")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([[0, 0]], None),
        ([[0, 7]], None),
        ([[255, 255]], None),
        ([[0, 1, 255]], "two grey levels, black and one other, but found 3: 0, 1, 255"),
        ([[64, 192]], "two grey levels, black and one other, but found 2: 64, 192"),
        ([list(range(12))], "but found 12: 0, 1, 2, 3, 4, 5, 6, ..., 11"),
        ([[(0, 0, 0), (200, 0, 0)]], None),
        (
            [[(0, 0, 0), (200, 0, 0), (0, 9, 0)]],
            "but found 3: (0, 0, 0), (0, 9, 0), (200, 0, 0)",
        ),
        ([[(0, 0, 128), (200, 0, 0)]], "two colours, black and one other, but found 2: (0, 0, 128), (200, 0, 0)"),
    ],
)
def test_levels_beside_background_and_defect_are_doubted(tmp_path, values, found):
    save(values, tmp_path / "mask.png")
    doubts = read_mask(tmp_path, "mask.png").doubts
    assert len(doubts) == (found is not None)
    assert found is None or (found in doubts[0] and doubts[0].startswith("mask.png: ") and "`mask_above`" in doubts[0])


def test_lossy_masks_are_doubted_and_mask_above_mends_them(tmp_path):
    drawn = np.zeros((64, 64), np.uint8)
    drawn[20:40, 13:51] = 255
    save(drawn, tmp_path / "mask.jpg", quality=90)
    mask = read_mask(tmp_path, "mask.jpg")
    assert (mask.defect_HW.sum() > 760, len(mask.doubts)) == (True, 1)
    assert np.array_equal(read_mask(tmp_path, "mask.jpg", Reading(mask_above=127)).defect_HW, drawn > 0)


def test_all_pages_count(tmp_path):
    first, second = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    first[0, 0] = second[3, 3] = 255
    Image.fromarray(first).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(second)])
    assert np.argwhere(read_mask(tmp_path, "pages.tif").defect_HW).tolist() == [[0, 0], [3, 3]]
    Image.fromarray(first).save(tmp_path / "sizes.tif", save_all=True, append_images=[Image.new("L", (5, 4))])
    with pytest.raises(DataError, match=r"Expected masks of one size in .*sizes\.tif, but got \[\(4, 4\), \(4, 5\)\]"):
        read_mask(tmp_path, "sizes.tif")


def test_masks_are_turned_as_their_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((2, 3), np.uint8)
    stored[0, 0] = 255
    Image.fromarray(stored).save(tmp_path / "mask.png", exif=exif)
    assert read_mask(tmp_path, "mask.png").defect_HW.tolist() == [[False, True], [False, False], [False, False]]


def test_small_values_of_16_bit_colour_are_seen(tmp_path):
    values = np.zeros((2, 2, 3), np.uint16)
    values[1, 0] = (1, 0, 0)
    tifffile.imwrite(tmp_path / "mask.tif", values)
    assert read_mask(tmp_path, "mask.tif").defect_HW.tolist() == [[False, False], [True, False]]


def test_a_file_whose_name_looks_like_a_frame_is_a_file(tmp_path):
    mask(tmp_path / "odd#1.png")
    assert read_mask(tmp_path, "odd#1.png").defect_HW.sum() == 30
    mask(tmp_path / "folder.npy/0.png")
    assert read_mask(tmp_path, "folder.npy/0.png").defect_HW.sum() == 30
