"""Parts named by a pattern of their photographs' paths."""

import pytest
from pydantic import ValidationError

from sanflow.config.dataset import DatasetChoice
from sanflow.data.index import build_index
from sanflow.data.parts import part_name
from sanflow.errors import DataError
from tests.helpers.miniatures import image, mask


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"\d+", "0007"),  # without groups: the whole match
        (r"(.+)_[a-z]+\.png", "screw/test/good/0007"),
        (r"test/([a-z]+)/(\d+)", "good/0007"),  # groups are joined
        (r"(\d+)(_top)?_left", "0007/"),  # one that took no part is empty
        (r"^\d", ""),
    ],
)
def test_names_by_hand(pattern, name):
    assert part_name("screw/test/good/0007_left.png", pattern) == name


@pytest.fixture
def folder(tmp_path):
    """Two photographs of each part; numbers begin anew in each folder."""
    for place, count in (("train/good", 3), ("test/good", 2), ("test/cut", 1)):
        for number in range(count):
            for side in ("left", "right"):
                image(
                    tmp_path / f"screw/{place}/{number}_{side}.png", seed=len(place) * 100 + 2 * number + len(side) % 2
                )
    for side in ("left", "right"):
        mask(tmp_path / f"screw/ground_truth/cut/0_{side}.png")
    return tmp_path


def test_a_pattern_names_the_parts_of_a_folder(folder):
    index = build_index("mine", "screw", folder, kind="folder", part_pattern=r"(.+)_(?:left|right)\.png")
    assert index.train.part.tolist() == [f"screw/train/good/{n}" for n in (0, 0, 1, 1, 2, 2)]
    assert index.test.part.tolist() == [f"screw/test/good/{n}" for n in (0, 0, 1, 1)] + ["screw/test/cut/0"] * 2


def test_a_pattern_that_joins_parts_of_several_splits_or_misses_an_image_is_refused(folder):
    with pytest.raises(DataError, match=r"part '0': .* screw/train/good/0_left.png \(train\) and screw/test/good/0_le"):
        build_index("mine", "screw", folder, kind="folder", part_pattern=r"(\d)_")
    with pytest.raises(DataError, match=r"0_right.png: expected to match `part_pattern` '\(\.\+\)_left'"):
        build_index("mine", "screw", folder, kind="folder", part_pattern="(.+)_left")


def test_a_pattern_that_is_none():
    with pytest.raises(ValidationError, match=r"expected a regular expression, but got '\(': missing \)"):
        DatasetChoice(kind="folder", root="x", part_pattern="(")
