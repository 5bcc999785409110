"""Painted defects: they can be seen, their masks are exact, at any size, in grey and in colour."""

import numpy as np
import pytest
from numpy.random import RandomState

from sanflow.data.painted_defects import (
    FRACTAL,
    KINDS,
    LEAST_CHANGE,
    SMOOTH,
    InvisibleDefect,
    _blob,
    _box_mean,
    paint_defect,
)

DARK = [np.full((200, 200), 20, np.uint8)]


def part(*shape):
    return RandomState(2).randint(60, 200, shape).astype(np.uint8)


@pytest.mark.parametrize("style", [SMOOTH, FRACTAL], ids=["smooth", "fractal"])
@pytest.mark.parametrize("shape", [(128, 128), (96, 160, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_can_be_seen_and_its_mask_is_exact(kind, shape, style):
    random, image = RandomState(1), part(*shape)
    for _ in range(5):
        painted, mask = paint_defect(kind, image, DARK, random, style)
        change = np.abs(painted.astype(int) - image)
        assert (painted.shape, mask.shape) == (shape, shape[:2])
        assert not change[~mask].any()
        assert change[mask].mean() >= LEAST_CHANGE[kind]
        assert 100 * style.smallest**2 <= mask.sum() <= 5000  # of about 16,000 pixels
        assert (change[mask] > 0).mean() > 0.9


def test_the_same_seed_paints_the_same_defect():
    first, second, third = (
        paint_defect("stain", part(64, 64, 3), DARK, RandomState(seed), FRACTAL) for seed in (3, 3, 4)
    )
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], third[0])


def test_fractal_outlines_are_longer_for_their_area():
    """The outline of a smooth region of this size is close to a circle's; a rough one is longer."""

    def roughness(style):
        found = []
        for seed in range(20):
            inside = _blob(RandomState(seed), 20.0, style) > 0
            steps = np.abs(np.diff(inside, axis=0)).sum() + np.abs(np.diff(inside, axis=1)).sum()
            found.append(steps / np.sqrt(inside.sum()))
        return np.mean(found)

    assert roughness(FRACTAL) > 1.15 * roughness(SMOOTH)


@pytest.mark.parametrize(("kind", "grey"), [("blur", 100), ("stain", 0), ("foreign_patch", 20)])
def test_a_defect_that_no_one_could_see_is_refused(kind, grey):
    even = np.full((128, 128), grey, np.uint8)
    with pytest.raises(InvisibleDefect, match=f"no {kind} of 20 drawings shows on this image"):
        paint_defect(kind, even, DARK, RandomState(0))


def test_box_mean_by_hand():
    image = np.array([[0, 0, 0], [0, 90, 0], [0, 0, 9]], np.uint8)
    # the corner's window, edges repeated: 0 0 0, 0 90 0, 0 0 9 around the centre; around (2, 2): 90 0 0, 0 9 9, 0 9 9
    assert _box_mean(image, 1)[1, 1] == 11
    assert _box_mean(image, 1)[2, 2] == round((90 + 4 * 9) / 9)
    colour = np.stack([image, 2 * image, image], axis=-1)
    assert np.array_equal(_box_mean(colour, 1)[..., 0], _box_mean(image, 1))
