"""Every registered data set: a miniature in its documented layout is unpacked, indexed and read."""

from pathlib import Path

import numpy as np
import pytest

from sanflow.data.campus import extract_training_frames
from sanflow.data.download import dataset_folder, download
from sanflow.data.images import load_images, load_masks
from sanflow.data.index import build_index, summary
from sanflow.data.layouts import LAYOUTS, list_rows
from sanflow.data.places import locate
from sanflow.data.registry import load_registry
from sanflow.errors import DataError
from sanflow.files import sha256_of_file
from tests.helpers.miniatures import MINIATURES, image, mask, mvtec, tarred, video, zipped


def test_a_miniature_of_every_registered_data_set():
    assert set(MINIATURES) == set(load_registry()) - {"photo_textures"}  # that one makes itself in test_photo_textures
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
        (lambda top: (top / "ground_truth/broken/000_mask.png").unlink(), "test/broken/000.png: no mask; expected"),
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

    assert list_rows("mvtec_loco", tmp_path / "mvtec_loco", "breakfast_box").problems == [
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


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
