"""Maps of another tool: found by their paths, and all that is wrong with them said at once."""

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from sanflow.anomaly_maps.from_other_tools import score_external
from sanflow.data.index import build_index
from sanflow.errors import DataError
from sanflow.methods.external import ExternalExperiment
from tests.helpers.results import draw_data_set

SIZE = (32, 32)
EXPERIMENT = ExternalExperiment(method="external", maps="m", input_size=32)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = draw_data_set(tmp_path_factory.mktemp("data"), categories=("nut",), n_good=2, n_defects=2, size=(48, 40))
    return build_index("my_parts", "nut", root, kind="folder")


@pytest.fixture
def maps(index):
    """Image -> a map of the input size; multiples of 1/256, exact in every file type."""
    rng = np.random.default_rng(1)
    return {str(image): (rng.integers(0, 256, SIZE) / 256).astype(np.float32) for image in index.test.image}


def write(file, map_HW):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, map_HW)
    elif file.suffix == ".png":
        Image.fromarray((256 * map_HW).astype(np.uint16)).save(file)
    else:
        Image.fromarray(map_HW).save(file)


@pytest.mark.parametrize("prefix", ["", "nut/", "nut/test/"])
@pytest.mark.parametrize("ending", [".npy", ".tiff", ".tif", ".png"])
def test_each_type_and_layout(tmp_path, index, maps, ending, prefix):
    for image, map_HW in maps.items():
        write((tmp_path / image.removeprefix(prefix)).with_suffix(ending), map_HW)
    scores = score_external(index, tmp_path, EXPERIMENT, name="theirs", seed=1)
    factor = 256 if ending == ".png" else 1
    np.testing.assert_array_equal(scores.grids["map"], factor * np.stack(list(maps.values())))
    assert scores.paths == list(index.test.image)
    assert scores.labels.tolist() == (index.test.label == 1).tolist()
    digest = scores.provenance.pop("maps_sha256")
    assert len(digest) == 64
    known = {name: scores.provenance[name] for name in ("experiment_name", "seed", "index_digest", "category")}
    assert known == {"experiment_name": "theirs", "seed": 1, "index_digest": index.digest, "category": "nut"}
    assert scores.input_size == SIZE


def test_maps_at_the_size_of_their_images_are_kept_so(tmp_path, index):
    for image in index.test.image:
        write((tmp_path / image).with_suffix(".npy"), np.ones((48, 40), np.float64))
    assert score_external(index, tmp_path, EXPERIMENT, name="theirs").grids["map"].shape == (6, 48, 40)


def test_maps_of_both_sizes_come_to_the_input_size(tmp_path, index):
    for number, image in enumerate(index.test.image):
        write((tmp_path / image).with_suffix(".npy"), np.full((48, 40) if number else SIZE, number, np.float32))
    found = score_external(index, tmp_path, EXPERIMENT, name="theirs").grids["map"]
    np.testing.assert_allclose(found, np.arange(6)[:, None, None] * np.ones(SIZE), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, *SIZE), (*SIZE, 1)])
def test_a_single_channel_may_be_an_axis(tmp_path, index, maps, shape):
    for image, map_HW in maps.items():
        write((tmp_path / image).with_suffix(".npy"), map_HW.reshape(shape))
    np.testing.assert_array_equal(
        score_external(index, tmp_path, EXPERIMENT, name="theirs").grids["map"], np.stack(list(maps.values()))
    )


def test_all_faults_in_one_error(tmp_path, index, maps):
    good0, good1, dot0, dot1, line0, line1 = sorted(maps, key=lambda path: ("good" not in path, path))
    write((tmp_path / good0).with_suffix(".npy"), np.zeros((7, 9)))
    write((tmp_path / good1).with_suffix(".npy"), np.full(SIZE, np.nan))
    (tmp_path / dot0).parent.mkdir(parents=True)
    (tmp_path / dot0).with_suffix(".npy").write_bytes(b"not an array")
    write((tmp_path / dot1).with_suffix(".npy"), maps[dot1])
    write((tmp_path / dot1).with_suffix(".tiff"), maps[dot1])
    write((tmp_path / line0).with_suffix(".npy"), np.zeros((*SIZE, 3)))
    write(tmp_path / "nut/test/hole/000.npy", maps[dot1])
    with pytest.raises(DataError) as caught:
        score_external(index, tmp_path, EXPERIMENT, name="theirs")
    message = str(caught.value)
    assert "for each of 6 test images of my_parts/nut" in message
    assert f"{line1}: no map" in message
    assert "nut/test/hole/000.npy: no test image" in message
    assert f"{dot1}: several maps" in message
    assert "good/000.npy: expected height x width 32 x 32 or 48 x 40, but got 7 x 9" in message
    assert "good/001.npy: expected finite numbers in the range of float32" in message
    assert "dot/000.npy: it cannot be read" in message
    assert "line/000.npy: expected one channel of real numbers, but got shape (32, 32, 3)" in message
    assert message.endswith("Correct these maps or the tool that writes them, and score again.")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.uint16])
def test_every_number_type_of_tiff(tmp_path, index, maps, dtype):
    for image, map_HW in maps.items():
        file = (tmp_path / image).with_suffix(".tif")
        file.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(file, (map_HW * 128).astype(dtype))
    expected = np.stack([(map_HW * 128).astype(dtype) for map_HW in maps.values()])
    np.testing.assert_array_equal(score_external(index, tmp_path, EXPERIMENT, name="theirs").grids["map"], expected)


def test_maps_that_are_none(tmp_path, index, maps):
    for number, (image, map_HW) in enumerate(maps.items()):
        file = (tmp_path / image).with_suffix(".tif" if number == 0 else ".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        if number == 0:
            tifffile.imwrite(file, np.stack([map_HW, map_HW]), photometric="minisblack")
        elif number == 1:
            with open(file, "wb") as archive:
                np.savez(archive, map_HW)
        else:
            np.save(file, map_HW if number > 2 else np.full(SIZE, 1e300))
    with pytest.raises(DataError) as caught:
        score_external(index, tmp_path, EXPERIMENT, name="theirs")
    for message in ("got shape (2, 32, 32)", "it is an archive of arrays", "or larger ones"):
        assert message in str(caught.value)


def test_a_map_that_could_belong_to_several_images(tmp_path, index, maps):
    for image, map_HW in maps.items():
        write(tmp_path / image.rsplit("/", 1)[-1].replace(".png", ".npy"), map_HW)
    with pytest.raises(
        DataError,
        match=r"000\.npy: it could belong to .*dot/000\.png or .*; use the images' folders",
    ):
        score_external(index, tmp_path, EXPERIMENT, name="theirs")


def test_a_missing_folder(tmp_path, index):
    with pytest.raises(DataError, match=r"a folder of anomaly maps at .*nowhere, but there is none\. Set `maps`"):
        score_external(index, tmp_path / "nowhere", EXPERIMENT, name="theirs")


def test_long_lists_are_cut(tmp_path, index, maps):
    for number in range(60):
        write(tmp_path / f"x{number}.npy", np.zeros(SIZE))
    with pytest.raises(DataError, match="and 26 more"):
        score_external(index, tmp_path, EXPERIMENT, name="theirs")


def test_archives_of_one_array_and_openexr(tmp_path, index, maps):
    exr = pytest.importorskip("OpenEXR")
    for number, (image, map_HW) in enumerate(maps.items()):
        file = (tmp_path / image).with_suffix(".exr" if number % 2 else ".npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            exr.File({"type": exr.scanlineimage}, {"Y": map_HW}).write(str(file))
        else:
            np.savez_compressed(file, anomaly_map=map_HW)
    np.testing.assert_array_equal(
        score_external(index, tmp_path, EXPERIMENT, name="theirs").grids["map"], np.stack(list(maps.values()))
    )


def test_what_is_wrong_with_archives_and_openexr(tmp_path, index, maps, monkeypatch):
    exr = pytest.importorskip("OpenEXR")
    several, broken, colour, damaged, *rest = maps
    for image in maps:
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    np.savez(str((tmp_path / several).with_suffix(".npz")), map=maps[several], score=np.ones(1))
    (tmp_path / broken).with_suffix(".npz").write_bytes(b"PK\x03\x04 no archive")
    rgb = np.stack([maps[colour]] * 3, -1)
    exr.File({"type": exr.scanlineimage}, {"RGB": rgb}).write(str((tmp_path / colour).with_suffix(".exr")))
    (tmp_path / damaged).with_suffix(".exr").write_bytes(b"no image")
    for image in rest:
        write((tmp_path / image).with_suffix(".npy"), maps[image])
    with pytest.raises(DataError) as caught:
        score_external(index, tmp_path, EXPERIMENT, name="theirs")
    message = str(caught.value)
    assert "npz: expected one array, but it holds map, score; save the map alone" in message
    assert "npz: it cannot be read (" in message
    assert "exr: expected one channel, but it has B, G, R" in message
    assert "exr: it cannot be read (Unable to open" in message
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(DataError, match=r"exr: reading \.exr needs OpenEXR: `pip install OpenEXR`, or save the map as"):
        score_external(index, tmp_path, EXPERIMENT, name="theirs")


@pytest.mark.parametrize(
    ("ending", "why"),
    [(".jpg", "its compression changes the numbers"), (".mat", "it is not read"), (".pt", "it is not read")],
)
def test_maps_of_types_that_are_not_read_are_named(tmp_path, index, maps, ending, why):
    for number, (image, map_HW) in enumerate(maps.items()):
        write((tmp_path / image).with_suffix(".npy"), map_HW)
        if number == 3:
            (tmp_path / image).with_suffix(".npy").rename((tmp_path / image).with_suffix(ending))
            file = str((tmp_path / image).with_suffix(ending).relative_to(tmp_path))
    (tmp_path / "log.txt").write_text("no map")
    (tmp_path / ".DS_Store").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        score_external(index, tmp_path, EXPERIMENT, name="theirs")
    assert str(caught.value).splitlines()[1:-1] == [
        f"  - {file.replace(ending, '.png')}: no map, but {file}, and {why}. Save the maps as .npy, .npz, .tif, .tiff, "
        ".exr or .png"
    ]
