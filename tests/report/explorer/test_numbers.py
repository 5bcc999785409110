"""The parts of the explorer that compute: colour scale, outlines, overlap, scripts."""

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sanflow.report.explorer.colour_scale import LEVELS, level_edges, levels_of
from sanflow.report.explorer.outlines import SIDE, outline_of, overlap_of
from sanflow.report.explorer.scripts import script_of


def slow_level(score, sample):
    """The level by its definition: as many steps of 10 ** (-4 / 255) as the share of scores that are as high allows."""
    share = np.mean(sample >= score)
    return LEVELS - 1 if share == 0 else min(LEVELS - 1, int(np.floor(-np.log10(share) / 4 * (LEVELS - 1) + 1e-9)))


def test_levels_say_how_rare_a_score_is():
    sample = np.random.default_rng(0).normal(size=3_000)
    found = levels_of(sample, level_edges(sample))
    assert [int(level) for level in found[:300]] == [slow_level(score, sample) for score in sample[:300]]
    assert found.dtype == np.uint8


def test_levels_depend_on_order_only():
    sample = np.random.default_rng(1).normal(size=2_000)
    np.testing.assert_array_equal(
        levels_of(sample, level_edges(sample)), levels_of(np.exp(sample), level_edges(np.exp(sample)))
    )


def test_the_commonest_score_is_dark_though_it_is_the_lowest_and_highest_of_most_pixels():
    sample = np.concatenate([np.zeros(990), np.ones(10)])
    edges = level_edges(sample)
    assert levels_of(np.array([0.0, 1.0]), edges).tolist() == [0, 127]  # 1 in 1; 1 in 100, half of the scale
    assert levels_of(np.full(5, 3.0), level_edges(np.full(5, 3.0))).tolist() == [0] * 5


def filled(path: str, side: int) -> np.ndarray:
    """Pixels inside an outline, drawn by Pillow; holes count as outside."""
    inside = np.zeros((side, side), bool)
    for part in filter(None, path.split("M")):
        points = [tuple(float(v) * side / SIDE for v in p.split()) for p in part.rstrip("Z").split("L")]
        canvas = Image.new("1", (side * 4, side * 4))
        ImageDraw.Draw(canvas).polygon([(4 * x, 4 * y) for x, y in points], fill=1)
        inside ^= np.asarray(canvas)[2::4, 2::4]
    return inside


@pytest.mark.parametrize("shape", ["disc", "ring", "corner", "all"])
def test_an_outline_surrounds_its_region(shape):
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(x - 30, y - 34)
    mask = {
        "disc": distance < 12,
        "ring": (distance < 20) & (distance > 9),
        "corner": (x > 40) & (y < 15),
        "all": np.ones((64, 64), bool),
    }[shape]
    path = outline_of(mask, 0.5)
    assert re.fullmatch(r"(M[\d. ]+(L[\d. ]+)+Z)+", path)
    assert np.mean(filled(path, 64) != mask) < 0.01


def test_an_outline_at_the_highest_value_is_drawn_around_the_pixels():
    """Maps of two values, such as another tool's masks, have no line at the upper one."""
    binary = np.zeros((32, 32))
    binary[8:20, 10:24] = 0.7
    assert np.mean(filled(outline_of(binary, 0.7), 32) != (binary > 0)) < 0.02


def test_no_outline_without_a_pixel_or_a_threshold():
    assert outline_of(np.zeros((8, 8)), 0.5) == ""
    assert outline_of(np.ones((8, 8)), float("nan")) == ""


def test_overlap_by_hand():
    truth = np.array([[1, 1], [0, 0]], bool)
    assert overlap_of(truth, truth) == 1
    assert overlap_of(~truth, truth) == 0
    assert overlap_of(np.ones((2, 2), bool), truth) == 0.5
    assert overlap_of(truth, np.zeros((2, 2), bool)) is None


def test_scripts_carry_any_text_and_every_digit():
    value = {"name": '</script><script>alert("ä")</script>\u2028\u2029<!--', "score": 0.1 + 0.2, "none": None}
    text = script_of("category-0", value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(re.fullmatch(r'receive\("category-0", (.*)\);\n', text)[1]) == value
