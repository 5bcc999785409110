"""Every message about wrong input, from the function a caller would use."""

import numpy as np
import pytest

from sanflow.evaluation.metrics import auroc, pixel_metrics


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(bad):
    maps, masks = np.zeros((3, 4, 4)), np.zeros((3, 4, 4), dtype=bool)
    maps[1, 0, 0] = maps[1, 0, 1] = bad
    with pytest.raises(ValueError, match="Expected finite scores, but got 2 of 16 that are NaN or infinite in map 1"):
        pixel_metrics(maps, masks)
    with pytest.raises(ValueError, match="Expected finite scores, but got 1 of 2"):
        auroc([1.0, bad], [0, 1])


def test_scores_must_be_real_numbers():
    with pytest.raises(ValueError, match="Expected scores that are real numbers, but got dtype complex128"):
        auroc(np.array([1j, 2.0]), [0, 1])


def test_labels_must_match_the_scores():
    with pytest.raises(
        ValueError, match=r"Expected one label per score, but got scores of shape \(3,\) and labels of shape \(2,"
    ):
        auroc([1.0, 2.0, 3.0], [0, 1])


@pytest.mark.parametrize("labels", [[-1, 1], [0, 2], [0.0, 1.0], ["good", "bad"]])
def test_labels_must_be_zero_or_one(labels):
    with pytest.raises(ValueError, match="Expected labels that are booleans or the integers 0"):
        auroc([1.0, 2.0], labels)


def test_one_mask_per_map():
    with pytest.raises(ValueError, match="Expected one mask per map, but got 2 maps and 1 masks"):
        pixel_metrics(np.zeros((2, 3, 3)), np.zeros((1, 3, 3), dtype=bool))


@pytest.mark.parametrize("shape", [(3, 4), (3, 3, 1), (9,)])
def test_masks_must_have_the_shape_of_their_maps(shape):
    with pytest.raises(
        ValueError, match=r"Expected map 1 and its mask to be of one shape \(h, w\), but got \(3, 3\) and"
    ):
        pixel_metrics([np.zeros((3, 3))] * 2, [np.zeros((3, 3), dtype=bool), np.zeros(shape, dtype=bool)])


def test_maps_must_be_two_dimensional():
    with pytest.raises(ValueError, match="Expected map 0 and its mask"):
        pixel_metrics(np.zeros((2, 1, 3, 3)), np.zeros((2, 1, 3, 3), dtype=bool))


def test_masks_must_not_be_shades():
    with pytest.raises(
        ValueError, match="Expected a mask of booleans or integers, but got dtype float32 in map 0; threshold it"
    ):
        pixel_metrics(np.zeros((1, 3, 3)), np.full((1, 3, 3), 0.5, dtype=np.float32))
