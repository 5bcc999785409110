"""What is not used is reported: nothing in train/, test/ and ground_truth/ is left out silently."""

import pytest

from sanflow.data.index import build_index
from sanflow.errors import DataError
from tests.helpers.miniatures import image, mask, mvtec


@pytest.fixture
def top(tmp_path):
    mvtec(tmp_path, "screw")
    return tmp_path / "screw"


def build(top):
    return build_index("mine", "screw", top.parent, kind="folder")


def faults(top):
    with pytest.raises(DataError) as caught:
        build(top)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:-1]]


def test_each_kind_of_leftover_in_one_report(top):
    image(top / "train/good/monday/000.png", seed=70)
    image(top / "test/broken/monday/tuesday/000.png", seed=71)
    (top / "train/good/003.heic").write_bytes(b"x")
    (top / "train/004.png").write_bytes(b"x")
    image(top / "test/005.png", seed=72)
    (top / "test/good/006.png").symlink_to("/nowhere/006.png")
    (top / "test/broken/broken_link").symlink_to("missing")
    image(top / "test/good/.007.png", seed=73)
    (top / "ground_truth/.old").mkdir()
    mask(top / "ground_truth/broken/drafts/000_mask.dat.png")
    mask(top / "ground_truth/008.png")
    image_of_no_type = "no image of a type that is read. Convert it, to PNG for example, or move it away"
    assert faults(top) == [
        "screw/ground_truth/.old: hidden, because its name begins with '.'. Rename it or move it away",
        "screw/ground_truth/008.png: not in a folder of its own, ground_truth/<folder>. Move it there, or away",
        "screw/ground_truth/broken/drafts: a mask without an image in test/broken",
        "screw/test/005.png: not in a folder of its own, test/<folder>. Move it there, or away",
        "screw/test/broken/broken_link: a link to missing, which does not exist. Correct the link",
        "screw/test/broken/monday: a folder with 1 files, which is not read. Move its images up, or move it away",
        "screw/test/good/.007.png: hidden, because its name begins with '.'. Rename it or move it away",
        "screw/test/good/006.png: a link to /nowhere/006.png, which does not exist. Correct the link",
        "screw/train/004.png: not in a folder of its own, train/<folder>. Move it there, or away",
        f"screw/train/good/003.heic: {image_of_no_type}",
        "screw/train/good/monday: a folder with 1 files, which is not read. Move its images up, or move it away",
    ]


def test_masks_of_good_images_must_be_empty(top):
    mask(top / "ground_truth/good/000_mask.png", box=(0, 0, 0, 0))
    build(top)
    mask(top / "ground_truth/good/001_mask.png")
    assert faults(top) == [
        "screw/ground_truth/good/001_mask.png: 30 defective pixels, but masks of good images are not used; move its "
        "image to the folder of a defect, or the mask away"
    ]


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._000.png", "Thumbs.db", "thumbs.db", "desktop.ini", ".gitkeep", "000.png~", ".ipynb_checkpoints"],
)
def test_litter_is_worth_no_word(top, name):
    for folder in ("train/good", "test", "ground_truth/broken"):
        (top / folder / name).write_bytes(b"x")
    assert build(top).warnings == ()


def test_notes_are_warned_of_and_images_are_not_lost(top):
    (top / "train/good/notes.txt").write_text("lot 7")
    (top / "test/labels.json").write_text("{}")
    assert build(top).warnings == (
        "screw/train/good/notes.txt: not an image, not used",
        "screw/test/labels.json: not an image, not used",
    )


def test_what_a_registered_data_set_has_beside_is_a_warning(tmp_path):
    mvtec(tmp_path, "bottle")
    (tmp_path / "bottle/test/good/000.raw").write_bytes(b"x")
    index = build_index("mvtec_ad", "bottle", tmp_path, check_counts=False)
    assert index.warnings[0].startswith("bottle/test/good/000.raw: no image of a type that is read")


def test_several_masks_of_an_image_hold_no_folders(top):
    (top / "ground_truth/broken/000_mask.png").unlink()
    mask(top / "ground_truth/broken/000/left.png", box=(0, 0, 2, 2))
    mask(top / "ground_truth/broken/000/right.png", box=(5, 5, 8, 9))
    assert list(build(top).test.defect_pixels) == [0, 0, 4 + 12, 30]
    mask(top / "ground_truth/broken/000/more/below.png")
    assert faults(top) == [
        "screw/ground_truth/broken/000/more: a folder with 1 files, which is not read. Move its images up, or move it "
        "away"
    ]


def test_a_file_and_a_folder_of_masks_for_one_image(top):
    mask(top / "ground_truth/broken/000/0.png")
    assert faults(top) == ["screw/ground_truth/broken/000: a second mask beside screw/ground_truth/broken/000_mask.png"]
