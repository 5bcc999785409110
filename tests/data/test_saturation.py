"""Saturation thresholds: areas by hand, and what is wrong with a file of them."""

import json

import pytest

from sanflow.data.saturation import Saturation, read_saturations
from sanflow.errors import DataError

GOOD = {"defect_name": "scratch", "pixel_value": 3, "saturation_threshold": 40, "relative_saturation": False}


@pytest.mark.parametrize(
    ("threshold", "relative", "n_pixels", "expected"),
    [
        (40, False, 100, 40),
        (40, False, 30, 30),  # at most the region
        (1.0, True, 57, 57),
        (1, True, 57, 57),  # JSON writes 1.0 as 1 in some tools
        (0.5, True, 57, 28),  # rounded down
        (0.29, True, 100, 28),  # as MVTec's script: 0.29 x 100 is 28.999999999999996 in floats
        (0.1, True, 5, 1),  # at least one pixel
    ],
)
def test_areas_by_hand(threshold, relative, n_pixels, expected):
    assert Saturation(3, "scratch", threshold, relative).area(n_pixels) == expected


def test_a_file_is_read_in_the_order_of_its_values(tmp_path):
    path = tmp_path / "defects_config.json"
    share = {**GOOD, "pixel_value": 1, "saturation_threshold": 0.3, "relative_saturation": True, "more": "is ignored"}
    path.write_text(json.dumps([GOOD, share]))
    assert read_saturations(path) == (Saturation(1, "scratch", 0.3, True), Saturation(3, "scratch", 40, False))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "but got: Expecting"),
        ("{}", "but got: no list of entries"),
        ([1], "but got: no list of entries"),
        ([{"defect_name": "a", "pixel_value": 1}], "an entry without `saturation_threshold`"),
        ([GOOD, GOOD], r"two entries of one `pixel_value`: \[3, 3\]"),
        ([{**GOOD, "pixel_value": 0}], "`pixel_value` from 1 to 255, but got 0"),
        ([{**GOOD, "pixel_value": "3"}], "`pixel_value` from 1 to 255, but got '3'"),
        ([{**GOOD, "relative_saturation": 1}], "`relative_saturation` true or false, but got 1"),
        ([{**GOOD, "saturation_threshold": 0.5}], "of whole pixels, at least 1, but got 0.5"),
        ([{**GOOD, "saturation_threshold": 0}], "of whole pixels, at least 1, but got 0"),
        ([{**GOOD, "relative_saturation": True}], r"a relative `saturation_threshold` in \(0, 1\], but got 40"),
    ],
)
def test_what_is_wrong_with_a_file(content, message, tmp_path):
    path = tmp_path / "defects_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        read_saturations(path)
    assert "Restore the file from the data set's archive" in str(error.value)
