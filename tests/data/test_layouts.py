"""Every registered data set: a miniature in its documented layout is unpacked, indexed and read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sanflow.data.campus import extract_training_frames
from sanflow.data.download import dataset_folder, download
from sanflow.data.images import iterate_regions, load_images, load_masks
from sanflow.data.index import build_index, read_index, summary, write_index
from sanflow.data.layouts import LAYOUTS, list_rows
from sanflow.data.places import locate
from sanflow.data.registry import load_registry
from sanflow.errors import DataError, IntegrityError
from sanflow.files import sha256_of_file
from tests.helpers.miniatures import MINIATURES, image, mask, mvtec, tarred, video, zipped


def test_a_miniature_of_every_registered_data_set():
    # Those two are made in test_photo_textures and installed.
    assert set(MINIATURES) == set(load_registry()) - {"photo_textures", "elpv"}
    assert {entry.layout for entry in load_registry().values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", MINIATURES)
def test_miniature_passes_download_unpacking_and_index(name, tmp_path, monkeypatch):
    make, category, archive_name, expected = MINIATURES[name]
    if name == "shanghaitech_campus":
        pytest.importorskip("av")
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    pack = zipped if archive_name.endswith(".zip") else tarred
    archive = pack(tmp_path / "source", tmp_path / archive_name)
    entry = load_registry()[name]
    assert entry.archive_name == archive_name
    monkeypatch.setitem(load_registry(), name, entry.model_copy(update={"sha256": sha256_of_file(archive)}))

    download(name, tmp_path / "data", mirrors=[archive.as_uri()], offline=True)
    index = build_index(name, category, dataset_folder(name, tmp_path / "data"), check_counts=False)

    counts = summary(index)["counts"]
    assert (counts["train"], counts["good"], counts["defective"]) == expected
    assert set(index.train.label) == {0}
    assert set(index.train["mask"]) == {""}
    defective = index.test[index.test.label == 1]
    n_pixels = [30, 30] if name != "mvtec_loco" else [30 + 10, 30]  # two masks are joined
    assert list(defective.defect_pixels) == n_pixels
    assert load_images(index, "test", (8, 8)).shape == (len(index.test), 8, 8, 3)
    masks = load_masks(index)
    assert [int(m.sum()) for m in masks] == list(index.test.defect_pixels)
    assert [m.shape for m in masks] == list(zip(index.test.height, index.test.width, strict=True))


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg", "tif", "webp"])
def test_a_folder_of_the_users_own_in_any_image_type(suffix, tmp_path):
    mvtec(tmp_path, "screw", suffix=suffix)
    index = build_index("mine", "screw", tmp_path, kind="folder")
    assert list(index.table.defect_type) == ["good"] * 5 + ["broken"] * 2
    assert index.test.image.iloc[-1] == f"screw/test/broken/001.{suffix}"
    assert index.test["mask"].iloc[-1] == "screw/ground_truth/broken/001_mask.png"


def test_the_split_of_magnetic_tile_is_fixed(tmp_path):
    for i in range(10):
        image(tmp_path / "MT_Free" / "Imgs" / f"{i}.jpg", seed=i)
    rows = list_rows("magnetic_tile", tmp_path, "magnetic_tile").rows
    # RandomState(0).permutation(10) = 2 8 4 9 1 6 7 3 0 5: the last two are tested
    assert [row.image for row in rows if row.split == "test"] == ["MT_Free/Imgs/0.jpg", "MT_Free/Imgs/5.jpg"]


def test_real_magnetic_tiles(shared, tmp_path):
    download("magnetic_tile", tmp_path, mirrors=[(shared / "data/magnetic-tile-defect-datasets.zip").as_uri()])
    index = build_index("magnetic_tile", "magnetic_tile", dataset_folder("magnetic_tile", tmp_path))
    assert summary(index)["counts"] == {
        "train": 762,
        "good": 190,
        "defective": 392,
        "defect_types": {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103},
        "defective_without_pixels": 4,
    }
    assert len(index.table[index.table.label == 0]) == 952
    assert (index.test[index.test.label == 1]["mask"] != "").all()


def test_ringing_around_masks_is_no_defect(tmp_path):
    mask(tmp_path / "mask.png")
    from sanflow.data.decode import Reading
    from sanflow.data.masks import read_mask

    grey = np.full((4, 4), 20, np.uint8)
    grey[1, 1] = 255
    from PIL import Image

    Image.fromarray(grey).save(tmp_path / "ringing.png")
    assert read_mask(tmp_path, "ringing.png", Reading(mask_above=127)).defect_HW.sum() == 1
    assert read_mask(tmp_path, "ringing.png").defect_HW.sum() == 16


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda top: (top / "test/broken/000.png").unlink(), "000_mask.png: a mask without an image in test/broken"),
        (
            lambda top: mask(top / "ground_truth/bent/000_mask.png"),
            "ground_truth/bent: masks without the folder test/bent",
        ),
        (lambda top: mask(top / "ground_truth/broken/000.png"), "a second mask beside"),
        (lambda top: image(top / "train/broken/000.png", 9), "train/broken: training images must be in train/good"),
    ],
)
def test_what_does_not_fit_mvtecs_layout_is_a_fault(spoil, message, tmp_path):
    mvtec(tmp_path)
    spoil(tmp_path / "bottle")
    assert any(message in problem for problem in list_rows("mvtec", tmp_path, "bottle").problems)


def test_a_defective_image_without_a_mask_is_listed_as_such(tmp_path):
    mvtec(tmp_path)
    (tmp_path / "bottle/ground_truth/broken/000_mask.png").unlink()
    listing = list_rows("mvtec", tmp_path, "bottle")
    assert listing.unmasked == ["bottle/test/broken/000.png: no mask; expected bottle/ground_truth/broken/000_mask.png"]
    assert (listing.problems, listing.has_masks) == ([], True)


def test_faults_of_the_other_layouts(tmp_path):
    for name in ("mvtec_loco", "magnetic_tile", "kolektor_sdd", "visa"):
        MINIATURES[name][0](_new(tmp_path / name))
    (tmp_path / "mvtec_loco/breakfast_box/test/logical_anomalies/000.png").unlink()
    (tmp_path / "mvtec_loco/breakfast_box/ground_truth/structural_anomalies/000/000.png").unlink()
    tiles = locate(tmp_path / "magnetic_tile", ["MT_Free"], "tiles")
    (tiles / "MT_Crack/Imgs/exp2_num_1.png").unlink()
    (tiles / "MT_Blowhole/Imgs/exp2_num_0.jpg").unlink()
    (tmp_path / "kolektor_sdd/kos01/Part0_label.bmp").unlink()
    (tmp_path / "kolektor_sdd/kos02/Part1.jpg").unlink()
    table = tmp_path / "visa/split_csv/1cls.csv"
    table.write_text(table.read_text().replace("candle/Data/Masks/Anomaly/000.png", ""))

    loco = list_rows("mvtec_loco", tmp_path / "mvtec_loco", "breakfast_box")
    assert [entry.defect_name for entry in loco.saturations] == ["mixed", "broken", "missing_orange"]
    assert [*loco.problems, *loco.unmasked] == [
        "breakfast_box/ground_truth/logical_anomalies/000: a mask without an image in test/logical_anomalies",
        "breakfast_box/test/structural_anomalies/000.png: no mask; expected "
        "breakfast_box/ground_truth/structural_anomalies/000_mask.png",
    ]
    assert list_rows("magnetic_tile", tiles, "magnetic_tile").problems == [
        "MT_Blowhole/Imgs/exp2_num_0.png: a mask without its .jpg",
        "MT_Crack/Imgs/exp2_num_1.jpg: no mask; expected exp2_num_1.png beside it",
    ]
    assert list_rows("kolektor_sdd", tmp_path / "kolektor_sdd", "commutator").problems == [
        "kos01/Part0.jpg: no mask; expected Part0_label.bmp beside it",
        "kos02/Part1_label.bmp: a mask without its image",
    ]
    assert list_rows("visa", tmp_path / "visa", "candle").problems == [
        "candle/Data/Images/Anomaly/000.JPG: no mask in split_csv/1cls.csv"
    ]


def test_visa_refuses_paths_that_leave_the_data_set(tmp_path):
    MINIATURES["visa"][0](tmp_path)
    table = tmp_path / "split_csv/1cls.csv"
    table.write_text(table.read_text() + "candle,train,normal,../../etc/passwd,\n")
    with pytest.raises(DataError, match="Expected paths inside of the data set"):
        list_rows("visa", tmp_path, "candle")


def test_campus_needs_as_many_labels_as_frames(tmp_path):
    frames = tmp_path / "testing/frames"
    image(frames / "01_0014/000.jpg", seed=1)
    image(frames / "01_0015/000.jpg", seed=2)
    for name, array in (("test_frame_mask", np.zeros(2)), ("test_pixel_mask", np.zeros((2, 20, 20)))):
        (tmp_path / "testing" / name).mkdir()
        np.save(tmp_path / "testing" / name / "01_0014.npy", array)
    problems = list_rows("shanghaitech_campus", tmp_path, "01").problems
    assert "testing/frames/01_0014: 1 frames, but 2 labels and 2 masks" in problems
    assert "testing/test_pixel_mask/01_0015.npy: missing, so 01_0015 has no ground truth" in problems


def test_campus_decodes_only_missing_clips_and_names_a_broken_video(tmp_path):
    pytest.importorskip("av")
    for name in ("01_001", "01_002"):
        video(tmp_path / "training/videos" / f"{name}.avi", n_frames=2)
    assert extract_training_frames(tmp_path) == 4
    assert extract_training_frames(tmp_path) == 0
    assert len(list((tmp_path / "training/frames/01_002").glob("*.jpg"))) == 2
    (tmp_path / "training/videos/01_003.avi").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"Expected a readable video in .*01_003\.avi"):
        extract_training_frames(tmp_path)
    assert sorted(path.name for path in (tmp_path / "training/frames").iterdir()) == ["01_001", "01_002"]


def test_campus_says_how_to_get_the_decoder(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "training/videos").mkdir(parents=True)
    (tmp_path / "training/videos/01_001.avi").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install -e '\.\[video\]'"):
        extract_training_frames(tmp_path)


def test_locate_looks_one_folder_deeper_and_says_what_it_found(tmp_path):
    mvtec(tmp_path / "inner")
    assert locate(tmp_path, ["bottle/train/good"], "MVTec AD") == tmp_path / "inner"
    with pytest.raises(DataError, match=r"Expected VisA in .* a path split_csv/1cls.csv in it .* but it has inner"):
        locate(tmp_path, ["split_csv/1cls.csv"], "VisA")
    with pytest.raises(DataError, match="there is no such folder"):
        locate(tmp_path / "nowhere", ["x"], "VisA")


def test_mvtec_ad_2_has_a_validation_split_and_columns_of_lights_and_parts(tmp_path):
    MINIATURES["mvtec_ad_2"][0](tmp_path)
    index = build_index("mvtec_ad_2", "can", tmp_path)
    assert list(index.table.split) == ["train"] * 3 + ["validation"] * 2 + ["test"] * 4
    assert list(index.table.group) == ["regular"] * 5 + ["overexposed", "shift_1"] * 2
    assert list(index.test.part) == [
        f"can/test_public/{part}" for part in ("good/000", "good/001", "bad/000", "bad/001")
    ]
    assert index.train.part.nunique() == 3
    assert not index.table.image.str.contains("private").any()
    assert load_images(index, "validation", (8, 8)).shape == (2, 8, 8, 3)
    write_index(index, tmp_path / "out/index.csv")
    assert read_index(tmp_path / "out").table.equals(index.table)
    (tmp_path / "mvtec_ad_2/can/test_public/good/x.raw").write_bytes(b"")
    (tmp_path / "mvtec_ad_2/can/test_public/ground_truth/bad/000_overexposed_mask.png").unlink()
    with pytest.raises(DataError, match=r"bad/000_overexposed.png: no mask; expected can/test_public/ground_truth/bad"):
        build_index("mvtec_ad_2", "can", tmp_path)
    listing = list_rows("mvtec_ad_2", tmp_path / "mvtec_ad_2", "can")
    assert [leftover.line[:32] for leftover in listing.leftovers] == ["can/test_public/good/x.raw: no i"]


def test_mvtec_loco_has_a_validation_split_and_thresholds(tmp_path):
    MINIATURES["mvtec_loco"][0](tmp_path)
    index = build_index("mvtec_loco", "breakfast_box", tmp_path, check_counts=False)
    assert list(index.table.split) == ["train"] * 3 + ["validation"] * 2 + ["test"] * 4
    assert [(one.pixel_value, one.saturation_threshold) for one in index.saturations] == [
        (253, 40),
        (254, 0.5),
        (255, 12),
    ]
    regions = list(iterate_regions(index))
    assert [[(int(mask.sum()), area) for mask, area in own] for own in regions] == [
        *([], []),
        [(30, 12), (10, 10)],  # two files; 40 pixels are more than the region has
        [(30, 15)],
    ]
    write_index(index, tmp_path / "out/index.csv")
    read = read_index(tmp_path / "out")
    assert (read.saturations, read.digest) == (index.saturations, index.digest)
    without = dataclasses.replace(index, saturations=())
    assert without.digest != index.digest
    facts = tmp_path / "out/index.json"
    facts.write_text(facts.read_text().replace('"saturation_threshold": 12', '"saturation_threshold": 13'))
    with pytest.raises(IntegrityError, match="it was changed"):
        read_index(tmp_path / "out")
    facts.write_text(facts.read_text().replace('"saturation_threshold": 13', '"saturation_threshold": 0'))
    with pytest.raises(IntegrityError, match="whole pixels, at least 1, but got 0 is wrong"):
        read_index(tmp_path / "out")


def test_faults_of_thresholds_are_reported_with_the_others(tmp_path):
    MINIATURES["mvtec_loco"][0](tmp_path)
    top = tmp_path / "breakfast_box"
    mask(top / "ground_truth/logical_anomalies/000/001.png", value=7)
    mask(top / "ground_truth/structural_anomalies/000/000.png", box=(0, 0, 0, 0))
    with pytest.raises(DataError) as error:
        build_index("mvtec_loco", "breakfast_box", tmp_path, check_counts=False)
    for line in (
        "logical_anomalies/000/001.png: expected one grey value beside 0, of 253, 254, 255 in defects_config.json, but "
        "got 7",
        "structural_anomalies/000/000.png: expected one grey value beside 0, of 253, 254, 255 in defects_config.json, "
        "but got none",
    ):
        assert line in str(error.value)
    (top / "defects_config.json").unlink()
    (top / "test/good/x.raw").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)1 fault:.*Expected the saturation thresholds .* No such file"):
        build_index("mvtec_loco", "breakfast_box", tmp_path, check_counts=False)


def test_other_data_sets_have_no_columns_of_groups_or_parts(tmp_path):
    mvtec(tmp_path)
    assert not {"group", "part"} & set(build_index("mvtec_ad", "bottle", tmp_path, check_counts=False).table)


def test_kolektor_sdd2_leaves_defective_training_images_out(tmp_path):
    MINIATURES["kolektor_sdd2"][0](tmp_path)
    rows = list_rows("kolektor_sdd2", tmp_path, "surface").rows
    assert [row.image for row in rows if row.split == "train"] == [f"train/1000{i}.png" for i in (1, 2, 3)]
    assert [row.image for row in rows if row.label] == ["test/20000.png", "test/20001.png"]
    (tmp_path / "test/20001_GT.png").unlink()
    (tmp_path / "train/10002.png").unlink()
    assert list_rows("kolektor_sdd2", tmp_path, "surface").problems == [
        "train/10002_GT.png: a mask without its image",
        "test/20001.png: no mask; expected 20001_GT.png beside it",
    ]


def test_elpv_leaves_uncertain_labels_out(tmp_path):
    lines = [
        f"images/cell{i:04d}.png {(0.0, 1.0, 1 / 3, 2 / 3)[i % 4]} {('mono', 'poly')[i // 4 % 2]}" for i in range(80)
    ]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "images/x.png 1.0"]))
    for category, first in (("mono", 0), ("poly", 4)):
        listing = list_rows("elpv", tmp_path, category)
        good = [f"images/cell{i:04d}.png" for i in range(80) if i % 4 == 0 and i // 4 % 2 == first // 4]
        assert sorted(row.image for row in listing.rows if not row.label) == good
        assert sum(row.split == "train" for row in listing.rows) == 8  # 80 % of 10
        assert next(row.image for row in listing.rows if row.label) == f"images/cell{first + 1:04d}.png"
        assert listing.problems == [
            "labels.csv, line 81: expected image, probability and kind, but got 'images/x.png 1.0'"
        ]


def test_elpv_from_its_package(tmp_path):
    pytest.importorskip("elpv_dataset")
    marker = download("elpv", tmp_path, offline=True)
    assert download("elpv", tmp_path, offline=True) == marker
    assert [path.name for path in marker.parent.iterdir()] == [".sanflow.json"]  # used where it is installed
    index = build_index("elpv", "mono", dataset_folder("elpv", tmp_path))
    assert summary(index)["counts"] == {
        "train": 470,
        "good": 118,
        "defective": 313,
        "defect_types": {"defect": 313},
        "defective_without_pixels": 0,
    }
    assert index.warnings == ("none of 313 defective images has a mask: only image metrics can be measured",)


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    entry = load_registry()["elpv"].model_copy(update={"package": "no_such_package"})
    monkeypatch.setitem(load_registry(), "elpv", entry)
    with pytest.raises(DataError, match=r"no_such_package is not installed\. .* `pip install 'sanflow\[elpv\]'`"):
        download("elpv", tmp_path)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
