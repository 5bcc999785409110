"""The submission to MVTec AD 2's server: the form that its checks ask for, and maps in the order of the detector's."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from sanflow import load_detector
from sanflow.anomaly_maps.fusion import calibrated, stretched
from sanflow.cli import app
from sanflow.data.held_out import split_training
from sanflow.data.index import build_index, write_index
from sanflow.errors import ConfigError, DataError
from sanflow.prediction.calibration import calibrate_on_held_out
from sanflow.prediction.predict import decision_of
from sanflow.prediction.submission import private_images, write_submission
from tests.helpers.miniatures import MINIATURES, mvtec
from tests.helpers.small_training import SmallTraining


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    training = SmallTraining(tmp_path_factory.mktemp("submission"))
    outputs = training(folder=training.folder / "run", epochs=1, calibration_fraction=0.25)
    calibrate_on_held_out(outputs.checkpoint, split_training(training.index, 0.25, 0)[1], device="cpu", cache=None)
    return outputs.checkpoint


@pytest.fixture
def index(tmp_path):
    MINIATURES["mvtec_ad_2"][0](tmp_path / "data")
    return build_index("mvtec_ad_2", "can", tmp_path / "data")


def test_the_command_writes_what_the_servers_checks_ask_for(checkpoint, index, tmp_path):
    run = tmp_path / "results/mine/mvtec_ad_2/can/sanflow/seed0"
    run.mkdir(parents=True)
    write_index(index, run.parents[1] / "index.csv")
    shutil.copy(checkpoint, run)
    given = ["submission", str(run), "--output", str(tmp_path / "out"), "--false-alarm-rate", "0.25", "--device", "cpu"]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.startswith("4 images of can -> ")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    names = [f"can/{part}/{i:03d}_{light}" for part, light in
             (("test_private", "regular"), ("test_private_mixed", "mixed")) for i in range(2)]  # fmt: skip
    assert files == [
        *(f"anomaly_images/{name}.tiff" for name in names),
        *(f"anomaly_images_thresholded/{name}.png" for name in names),
    ]
    detector = load_detector(checkpoint, "cpu")
    level = decision_of(detector, 0.25, None).map_level
    for name in names:
        half_HW = tifffile.imread(tmp_path / f"out/anomaly_images/{name}.tiff")
        with Image.open(tmp_path / f"out/anomaly_images_thresholded/{name}.png") as picture:
            assert picture.mode == "L"
            called_HW = np.asarray(picture)
        assert (half_HW.dtype, half_HW.shape, called_HW.shape) == (np.float16, (20, 20), (20, 20))
        image = detector.read(index.root / f"{name}.png")
        grids = detector.score(image[None]).grids
        map_HW = detector.maps(grids, (20, 20))[0]
        np.testing.assert_array_equal(called_HW, np.where(map_HW > level, 255, 0))
        order = np.argsort(map_HW, axis=None)
        assert (np.diff(half_HW.ravel()[order].astype(float)) >= 0).all()
        np.testing.assert_allclose(half_HW, stretched(map_HW, len(grids)), rtol=1e-3, atol=1e-3)


def test_stretching_keeps_the_order_where_sixteen_bits_would_not():
    logs = -np.geomspace(0.01, 4000, 2000).reshape(1, 1, -1)
    map_HW = calibrated([logs, logs - 1], [0.0, 0.0], (1, 2000))[0]
    found = stretched(map_HW, 2)
    assert (np.diff(map_HW[0]) > 0).all()
    assert (np.diff(found[0]) > 0).all()
    n_plain, n_stretched = (np.unique(one.astype(np.float16)).size for one in (map_HW, found))
    assert n_plain < 1000
    assert n_stretched > 1700


def test_finished_maps_are_written_as_they_are_and_too_large_ones_refused(index, tmp_path):
    class Doubled:
        """Imitate the detector of a method whose maps are finished."""

        factor = 2.0
        detector = type("Finished", (), {"kind": "anomaly_map"})

        def decode(self, file):
            return Image.open(file).convert("L")

        def read(self, image):
            return np.asarray(image, np.float32)

        def score(self, images):
            return dataclasses.make_dataclass("Batch", ["grids"])({"map": self.factor * images})

        def maps(self, grids, size):
            assert grids["map"].shape == (1, *size)
            return grids["map"]

    files = private_images(index)
    written = list(write_submission(Doubled(), "can", files, tmp_path / "out", 300.0))
    first = files["test_private"][0]
    values = 2.0 * np.asarray(Image.open(first).convert("L"), np.float32)
    np.testing.assert_array_equal(tifffile.imread(written[0]), values)
    with Image.open(tmp_path / f"out/anomaly_images_thresholded/can/test_private/{first.stem}.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture) == 255, values > 300)
    Doubled.factor = 1e4
    with pytest.raises(DataError, match=r"Expected scores within 65504, .*000_regular.png reaches 2.*e\+06. Scale"):
        list(write_submission(Doubled(), "can", files, tmp_path / "large", 0.0))


def test_other_data_sets_and_missing_images_are_refused(index, tmp_path):
    mvtec(tmp_path / "ad", "bottle")
    other = build_index("mvtec_ad", "bottle", tmp_path / "ad", check_counts=False)
    with pytest.raises(ConfigError, match=r"Expected a run on mvtec_ad_2, .* but got one on mvtec_ad"):
        private_images(other)
    shutil.rmtree(Path(index.root, "can/test_private_mixed"))
    with pytest.raises(DataError, match=r"there are none in .*can/test_private_mixed. Complete the copy"):
        private_images(index)
