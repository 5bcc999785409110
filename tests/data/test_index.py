"""The index: all faults in one report, a digest that data may move under, tampering that is seen."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from sanflow.data.decode import Reading
from sanflow.data.images import load_images, load_masks
from sanflow.data.index import COLUMNS, build_index, read_index, summary, write_index
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.files import sha256_of_file
from tests.helpers.miniatures import image, mask, mvtec


@pytest.fixture
def root(tmp_path):
    mvtec(tmp_path / "data", "screw")
    return tmp_path / "data"


def build(root):
    return build_index("mine", "screw", root, kind="folder")


def test_every_column_of_a_row(root):
    row = build(root).test.iloc[2]
    assert dict(row) == {
        "split": "test",
        "label": 1,
        "defect_type": "broken",
        "image": "screw/test/broken/000.png",
        "mask": "screw/ground_truth/broken/000_mask.png",
        "width": 20,
        "height": 20,
        "sha256": sha256_of_file(root / "screw/test/broken/000.png"),
        "mask_sha256": sha256_of_file(root / "screw/ground_truth/broken/000_mask.png"),
        "defect_pixels": 30,
    }
    assert list(row.index) == list(COLUMNS)


def test_written_and_read_back(root, tmp_path):
    index = build(root)
    write_index(index, tmp_path / "out" / "index.csv")
    for path in (tmp_path / "out", tmp_path / "out" / "index.csv"):
        again = read_index(path)
        assert again.table.equals(index.table)
        assert again.table.dtypes.equals(index.table.dtypes)
        assert (again.dataset, again.category, again.root, again.digest) == ("mine", "screw", root, index.digest)
    assert summary(index)["counts"]["train"] == 3


def test_the_digest_is_of_the_content_not_of_the_place(root, tmp_path):
    digest = build(root).digest
    shutil.move(root, tmp_path / "elsewhere")
    moved = build(tmp_path / "elsewhere")
    assert moved.digest == digest
    write_index(moved, tmp_path / "index.csv")
    assert read_index(tmp_path, root="/new/place").root.as_posix() == "/new/place"
    assert read_index(tmp_path, root="/new/place").digest == digest
    for change in (
        lambda: image(tmp_path / "elsewhere/screw/train/good/000.png", seed=99),
        lambda: mask(tmp_path / "elsewhere/screw/ground_truth/broken/000_mask.png", box=(3, 3, 8, 9)),
        lambda: image(tmp_path / "elsewhere/screw/train/good/003.png", seed=98),
    ):
        change()
        assert build(tmp_path / "elsewhere").digest != digest
        digest = build(tmp_path / "elsewhere").digest


def test_all_faults_are_reported_together(root):
    top = root / "screw"
    (top / "train/good/000.png").write_bytes((top / "train/good/000.png").read_bytes()[:-200])
    (top / "train/good/001.png").write_text("no image")
    shutil.copy(top / "train/good/002.png", top / "test/good/002.png")
    mask(top / "ground_truth/broken/000_mask.png", size=(21, 20))
    image(top / "test/broken/002.png", seed=50)
    mask(top / "ground_truth/broken/007_mask.png")
    with pytest.raises(DataError) as caught:
        build(root)
    message = str(caught.value)
    assert f"mine/screw in {root} has 6 faults:" in message
    assert "Expected a readable image at screw/train/good/000.png, but got:" in message
    assert "Expected a readable image at screw/train/good/001.png, but got: no image that Pillow knows" in message
    assert "screw/test/good/002.png: the same file as the training image screw/train/good/002.png" in message
    assert "000_mask.png: 21 x 20 pixels, but its image screw/test/broken/000.png has 20 x 20" in message
    assert "screw/test/broken/002.png: no mask; expected screw/ground_truth/broken/002_mask.png" in message
    assert "screw/ground_truth/broken/007_mask.png: a mask without an image in test/broken" in message
    assert "Correct these files and run `sanflow index` again." in message


def test_a_long_report_is_cut(root):
    for i in range(60):
        mask(root / f"screw/ground_truth/broken/{i + 100}_mask.png")
    with pytest.raises(DataError, match=r"has 60 faults:(?s:.*)- and 20 more"):
        build(root)


@pytest.mark.parametrize(
    ("folders", "messages"),
    [
        (["train/good"], ["expected training images, but found none"]),
        (
            ["test/good", "test/broken", "ground_truth/broken"],
            ["expected defect-free test images, but found none", "expected defective test images, but found none"],
        ),
    ],
)
def test_an_empty_part_of_a_category(root, folders, messages):
    for folder in folders:
        for path in (root / "screw" / folder).iterdir():
            path.unlink()
    with pytest.raises(DataError) as caught:
        build(root)
    assert [line[4:] for line in str(caught.value).splitlines()[1:-1]] == messages


@pytest.mark.parametrize(
    ("folders", "message", "n_test"),
    [
        (["test/good"], "expected defect-free test images, but found none", 2),
        (["test/broken", "ground_truth"], "expected defective test images, but found none", 2),
    ],
)
def test_one_class_of_test_images_is_a_warning(root, folders, message, n_test):
    for folder in folders:
        shutil.rmtree(root / "screw" / folder)
    index = build(root)
    assert index.warnings == (message,)
    assert len(index.test) == n_test
    assert index.knows_pixels


def test_image_labels_alone_are_a_warning_and_a_missing_mask_among_others_a_fault(root):
    (root / "screw/ground_truth/broken/000_mask.png").unlink()
    with pytest.raises(DataError, match=r"1 fault:\n  - screw/test/broken/000.png: no mask; expected screw"):
        build(root)
    shutil.rmtree(root / "screw/ground_truth")
    index = build(root)
    assert index.warnings == ("none of 2 defective images has a mask: only image metrics can be measured",)
    assert not index.knows_pixels
    assert list(index.test["mask"]) == [""] * 4
    assert list(index.test.label) == [0, 0, 1, 1]
    mask(root / "screw/ground_truth/broken/777_mask.png")  # misnamed, not missing
    with pytest.raises(DataError, match="3 faults"):
        build(root)


def test_a_registered_data_set_has_masks(tmp_path):
    mvtec(tmp_path, "bottle")
    shutil.rmtree(tmp_path / "bottle/ground_truth")
    with pytest.raises(DataError, match=r"000.png: no mask; expected bottle/ground_truth/broken/000_mask.png"):
        build_index("mvtec_ad", "bottle", tmp_path, check_counts=False)


def test_counts_of_a_registered_data_set(tmp_path):
    mvtec(tmp_path, "bottle")
    with pytest.raises(DataError) as caught:
        build_index("mvtec_ad", "bottle", tmp_path)
    assert "expected 209 training images, but found 3: the copy is not complete" in str(caught.value)
    assert "`sanflow download mvtec_ad --data-root <another folder>` fetches a whole copy" in str(caught.value)
    assert "emove" not in str(caught.value)  # no advice to delete files that sanflow did not make


def test_an_unknown_category(root):
    with pytest.raises(ConfigError, match="a category of mine among screw, but got 'nut'"):
        build_index("mine", "nut", root, kind="folder")


def test_an_empty_mask_of_a_defective_image_is_noted(root):
    mask(root / "screw/ground_truth/broken/000_mask.png", box=(0, 0, 0, 0))
    assert summary(build(root))["counts"]["defective_without_pixels"] == 1


def test_hidden_and_other_files_are_no_images(root):
    before = build(root).digest
    (root / "screw/train/good/._000.png").write_bytes(b"macOS")
    (root / "screw/train/good/Thumbs.db").write_bytes(b"Windows")
    (root / "screw/license.txt").write_text("free")
    assert build(root).digest == before


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("good", "bad", 1), lambda text: text + "\n", lambda text: ""]
)
def test_tampering_with_the_table_is_seen(root, tmp_path, change):
    write_index(build(root), tmp_path / "index.csv")
    (tmp_path / "index.csv").write_text(change((tmp_path / "index.csv").read_text()))
    with pytest.raises(IntegrityError, match=r"Remove .*index\.csv and index\.json and run `sanflow index` again"):
        read_index(tmp_path)


def test_tampering_with_the_facts_is_seen(root, tmp_path):
    write_index(build(root), tmp_path / "index.csv")
    text = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace('"mask_above": 0', '"mask_above": 100'))
    with pytest.raises(IntegrityError, match="it was changed"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(IntegrityError, match="Expected the facts of an index"):
        read_index(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match="Run `sanflow index` for this category"):
        read_index(tmp_path)


def test_names_that_look_like_numbers_or_nothing_survive(tmp_path):
    mvtec(tmp_path, "007", bad="NA")
    index = build_index("mine", "007", tmp_path, kind="folder")
    write_index(index, tmp_path / "index.csv")
    again = read_index(tmp_path / "index.csv")
    assert list(again.test.defect_type) == ["good", "good", "NA", "NA"]
    assert again.category == "007"
    assert (again.train["mask"] == "").all()


def test_a_split_has_a_name(root):
    with pytest.raises(ValueError, match="Expected the split train, validation or test, but got 'val'"):
        build(root).rows("val")


def test_grey_16_bit_palette_and_rgba_images_are_indexed(root):
    top = root / "screw/train/good"
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(top / "010.png")
    Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save(top / "011.png")
    Image.new("P", (20, 20)).save(top / "012.png")
    Image.new("1", (20, 20)).save(top / "013.png")
    Image.new("L", (20, 20), 7).save(top / "014.png")
    assert len(build(root).train) == 3 + 5


def test_masks_of_more_than_two_levels_need_a_word_of_their_owner(root):
    soft = np.zeros((20, 20), np.uint8)
    soft[5:9, 5:9] = 255
    soft[4, 5:9] = 30
    Image.fromarray(soft).save(root / "screw/ground_truth/broken/000_mask.png")
    with pytest.raises(
        DataError, match=r"broken/000_mask\.png: expected a mask of two grey levels.*found 3: 0, 30, 255"
    ):
        build(root)
    for above, n_pixels in ((0, 20), (29, 20), (30, 16), (127, 16)):
        index = build_index("mine", "screw", root, kind="folder", mask_above=above)
        assert list(index.test.defect_pixels) == [0, 0, n_pixels, 30]
        assert [int(mask_HW.sum()) for mask_HW in load_masks(index)] == [0, 0, n_pixels, 30]


def test_levels_of_a_registered_data_set_are_a_warning(tmp_path):
    mvtec(tmp_path, "bottle")
    grey = np.zeros((20, 20), np.uint8)
    grey[0, :2] = 1, 255
    Image.fromarray(grey).save(tmp_path / "bottle/ground_truth/broken/001_mask.png")
    index = build_index("mvtec_ad", "bottle", tmp_path, check_counts=False)
    assert list(index.test.defect_pixels) == [0, 0, 30, 2]
    assert len(index.warnings) == 1
    assert index.warnings[0].startswith(
        "1 masks do not have two levels, such as bottle/ground_truth/broken/001_mask.png: expected a mask of two grey"
    )


def test_masks_that_cover_most_of_their_image_are_warned_of(root):
    mask(root / "screw/ground_truth/broken/000_mask.png", box=(0, 0, 20, 10))  # exactly half
    assert build(root).warnings == ()
    mask(root / "screw/ground_truth/broken/001_mask.png", box=(0, 0, 20, 15))
    assert build(root).warnings == (
        "1 of 2 masks cover more than half of their image, such as screw/ground_truth/broken/001_mask.png (75 %): a "
        "pixel is defective where its mask is bright, not dark",
    )


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (16384, None), (65535, None)]
)
def test_unused_bits_of_16_bit_files_are_noticed(root, largest, bits):
    files = sorted((root / "screw").glob("t*/*/*.png"), reverse=True)  # a training image first
    for number, path in enumerate(files):
        Image.fromarray(np.full((20, 20), largest - (number > 0) * 7 * number, np.uint16)).save(path)
    warnings = build(root).warnings
    assert len(warnings) == (bits is not None)
    if bits:
        assert warnings[0].startswith(
            f"{bits}-bit data in 16-bit files: the largest value in 7 images is {largest} of 65"
        )
        assert f"Set `bits: {bits}` for the data set" in warnings[0]
        index = build_index("mine", "screw", root, kind="folder", bits=bits)
        assert index.warnings == ()
        assert int(load_images(index, "train", (20, 20)).max()) == round(largest / (2**bits - 1) * 255)
        assert index.digest != build(root).digest


def test_how_files_are_read_and_warnings_are_kept(root, tmp_path):
    mask(root / "screw/ground_truth/broken/001_mask.png", box=(0, 0, 20, 15))
    index = build_index("mine", "screw", root, kind="folder", mask_above=9, bits=12, max_megapixels=3)
    write_index(index, tmp_path / "index.csv")
    again = read_index(tmp_path)
    assert again.reading == Reading(mask_above=9, bits=12, max_megapixels=3)
    assert (again.warnings, len(again.warnings), again.digest) == (index.warnings, 1, index.digest)


def test_an_image_beyond_the_limit_is_a_fault_that_says_how_to_raise_it(root):
    with pytest.raises(DataError, match=r"has 9 faults:(?s:.*)set `max_megapixels: 1` for the data set"):
        build_index("mine", "screw", root, kind="folder", max_megapixels=0.0001)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\xb0\xb4.png", r"\xb0\xb4.png: the name is not UTF-8. Rename it"),
        (b"a\nb.png", r"a\x0ab.png: the name holds control characters. Rename it"),
    ],
)
def test_a_name_that_cannot_be_written_is_a_fault(root, name, shown):
    folder = os.fsencode(root / "screw/train/good")
    os.rename(folder + b"/000.png", folder + b"/" + name)
    with pytest.raises(DataError) as caught:
        build(root)
    assert shown in str(caught.value)
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize(
    "stem", ["a#1", "-x", "a{b}", "a b", "a,b", "it's", 'say "x"', "a;b$(c)", "a\\b", "100%", "é", "日本"]
)
def test_every_other_name_works(tmp_path, stem):
    mvtec(tmp_path, "screw", bad=stem)
    top = tmp_path / "screw"
    (top / "train/good/000.png").rename(top / f"train/good/{stem}.png")
    (top / f"test/{stem}/000.png").rename(top / f"test/{stem}/{stem}.png")
    (top / f"ground_truth/{stem}/000_mask.png").rename(top / f"ground_truth/{stem}/{stem}_mask.png")
    index = build(tmp_path)
    write_index(index, tmp_path / "index.csv")
    again = read_index(tmp_path / "index.csv")
    assert again.digest == index.digest
    assert again.table.equals(index.table)
    assert f"screw/test/{stem}/{stem}.png" in set(again.test.image)
    assert [int(mask_HW.sum()) for mask_HW in load_masks(again)] == [0, 0, 30, 30]
    assert load_images(again, "train", (8, 8)).shape == (3, 8, 8, 3)


def test_names_match_however_their_letters_are_composed(tmp_path):
    """macOS stores é as e and an accent; the folder of masks came from another system."""
    composed, decomposed = (unicodedata.normalize(form, "fêlé") for form in ("NFC", "NFD"))
    mvtec(tmp_path, "screw", bad=composed)
    top = tmp_path / "screw"
    (top / "ground_truth" / composed).rename(top / "ground_truth" / decomposed)
    (top / "test" / composed / "000.png").rename(top / "test" / composed / f"{composed}.png")
    (top / "ground_truth" / decomposed / "000_mask.png").rename(
        top / "ground_truth" / decomposed / f"{decomposed}_mask.png"
    )
    index = build(tmp_path)
    assert list(index.test.defect_pixels) == [0, 0, 30, 30]
    assert list(index.test.defect_type) == ["good", "good", composed, composed]
