"""A fitted detector on files: the run's own scores, regions, resume after a kill, bad input."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from sanflow import load_detector
from sanflow.anomaly_maps.maps import anomaly_maps
from sanflow.cli import app
from sanflow.data.held_out import split_training
from sanflow.errors import ConfigError, DataError
from sanflow.evaluation.conformal import p_values
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.prediction.calibration import calibrate_on_files, calibrate_on_held_out
from sanflow.prediction.predict import Wanted, decision_of, image_files, predict
from sanflow.scoring import score
from tests.helpers.small_training import SIZE, SmallTraining


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small detector with a quarter of its training parts held out."""
    training = SmallTraining(tmp_path_factory.mktemp("prediction"))
    outputs = training(folder=training.folder / "run", epochs=2, passes_per_epoch=3, calibration_fraction=0.25)
    calibrate_on_held_out(outputs.checkpoint, split_training(training.index, 0.25, 0)[1], device="cpu", cache=None)
    return training


@pytest.fixture(scope="module")
def detector(trained):
    return load_detector(trained.outputs.checkpoint, "cpu")


@pytest.fixture
def files(trained):
    return [trained.index.root / name for name in trained.index.test.image]


def rows_of(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_fit_saw_none_of_the_held_out_parts(trained):
    record = load_checkpoint(trained.outputs.checkpoint)
    assert len(record.held_out["scores"]) == 3
    assert record.held_out["from"] == "held out of the training images"


def test_predictions_are_the_runs_own_scores(trained, detector, files, tmp_path):
    scores, _ = score(trained.outputs.checkpoint, trained.index, device="cpu", batch_size=4)
    expected = anomaly_maps(scores, scores.input_size).max(axis=(1, 2))
    outcome = predict(detector, files, tmp_path, decision_of(detector, None, 0.5), batch_size=4)
    rows = rows_of(tmp_path)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    found = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal([float(row["p_value"]) for row in rows], p_values(found, detector.held_out))
    assert [row["anomalous"] == "1" for row in rows] == (found > 0.5).tolist()
    assert outcome.anomalous == (found > 0.5).sum()


def test_one_image_in_python_from_path_pillow_and_array(detector, files):
    by_path = detector(files[0])
    assert detector(Image.open(files[0])).score == by_path.score
    again = detector(np.asarray(Image.open(files[0]).convert("RGB")))
    np.testing.assert_array_equal(again.map_HW, by_path.map_HW)
    assert by_path.map_HW.shape == (SIZE, SIZE)
    assert by_path.p_value in {i / 4 for i in range(1, 5)}
    with pytest.raises(DataError, match=r"got shape \(4,\)"):
        detector(np.zeros(4, np.uint8))
    with pytest.raises(DataError, match="got float64"):
        detector(np.zeros((4, 4)))


def test_maps_overlays_and_regions_have_the_images_own_size(detector, tmp_path):
    pixels = np.full((48, 40, 3), 128, np.uint8)
    pixels[10:20, 5:15] = 0
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/part.png")
    files = image_files([tmp_path / "in"])
    lowest = decision_of(detector, None, -1e9)
    outcome = predict(detector, files, tmp_path / "out", lowest, wanted=Wanted(maps=True, overlays=True))
    (map_file,) = (tmp_path / "out/maps").iterdir()
    map_HW = tifffile.imread(map_file)
    assert (map_HW.shape, map_HW.dtype) == ((48, 40), np.float32)
    (overlay,) = (tmp_path / "out/overlays").iterdir()
    assert Image.open(overlay).size == (40, 48)
    (row,) = rows_of(tmp_path / "out")
    assert 0 <= int(row["x"]) < int(row["x"]) + int(row["width"]) <= 40
    assert 0 <= int(row["y"]) < int(row["y"]) + int(row["height"]) <= 48
    assert outcome.other_aspect == 1


def test_an_unreadable_image_is_reported_and_the_rest_goes_on(trained, detector, files, tmp_path):
    (tmp_path / "in").mkdir()
    for place, file in enumerate(files):
        (tmp_path / "in" / f"{place}.png").write_bytes(file.read_bytes())
    (tmp_path / "in/1.png").write_bytes(b"no image")
    outcome = predict(detector, image_files([tmp_path / "in"]), tmp_path / "out", decision_of(detector, None, 0.0))
    rows = rows_of(tmp_path / "out")
    assert [bool(row["error"]) for row in rows] == [place == 1 for place in range(len(files))]
    assert outcome.unreadable == [str(tmp_path / "in/1.png")]
    line = ["predict", str(trained.outputs.checkpoint), str(tmp_path / "in"), "--output", str(tmp_path / "again")]
    result = CliRunner().invoke(app, [*line, "--threshold", "0", "--device", "cpu"])
    assert result.exit_code == 3, result.output


def test_a_cut_table_is_continued_at_its_last_whole_batch(detector, files, tmp_path):
    decision = decision_of(detector, None, 0.5)
    predict(detector, files, tmp_path / "whole", decision, batch_size=2)
    whole = (tmp_path / "whole/predictions.csv").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 3, len(whole)):
        folder = tmp_path / f"cut{length}"
        predict(detector, files, folder, decision, batch_size=2)
        (folder / "predictions.csv").write_bytes(whole[:length])
        predict(detector, files, folder, decision, batch_size=2)
        assert (folder / "predictions.csv").read_bytes() == whole, length


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_rows_of_one_run(trained, tmp_path):
    many = tmp_path / "in"
    many.mkdir()
    source = (trained.index.root / trained.index.test.image[0]).read_bytes()
    for number in range(300):
        (many / f"{number:03d}.png").write_bytes(source)
    line = [
        sys.executable,
        "-c",
        "import sanflow.cli; sanflow.cli.main()",
        "predict",
        str(trained.outputs.checkpoint),
        str(many),
    ]
    line += ["--threshold", "0.5", "--device", "cpu", "--batch-size", "1", "--output"]
    subprocess.run([*line, str(tmp_path / "whole")], check=True, capture_output=True)
    random = np.random.default_rng(0)
    table = tmp_path / "killed/predictions.csv"
    for _ in range(3):
        process = subprocess.Popen([*line, str(table.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not table.exists() or table.stat().st_size < 200):
            time.sleep(0.02)
        time.sleep(float(random.uniform(0, 0.5)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*line, str(table.parent)], check=True, capture_output=True)
    assert table.read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()


def test_predictions_of_another_run_are_not_continued(detector, files, tmp_path):
    predict(detector, files, tmp_path, decision_of(detector, None, 0.5))
    with pytest.raises(ConfigError, match="holds those of another detector, threshold"):
        predict(detector, files, tmp_path, decision_of(detector, None, 0.6))


def test_a_level_needs_held_out_parts(detector, trained):
    assert decision_of(detector, 0.25, None).score == max(detector.held_out)
    with pytest.raises(ConfigError, match="at least 19 held-out good parts"):
        decision_of(detector, 0.05, None)
    for both in ((0.1, 0.5), (None, None)):
        with pytest.raises(ConfigError, match="either a false-alarm rate or a threshold"):
            decision_of(detector, *both)
    without = load_detector(trained.outputs.checkpoint, "cpu")
    without.checkpoint = dataclasses.replace(without.checkpoint, held_out=None)
    with pytest.raises(ConfigError, match="run `sanflow calibrate`, or give `--threshold`"):
        decision_of(without, 0.25, None)


def test_images_are_found_once_and_missing_ones_are_named(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/1.png", "a/b/2.JPG", "a/.DS_Store", "a/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a/b/empty").mkdir()
    found = image_files([tmp_path, tmp_path / "a/1.png"])
    assert [path.name for path in found] == ["1.png", "2.JPG"]
    with pytest.raises(DataError, match=r"there is none\. Correct the path"):
        image_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="found none of a known type"):
        image_files([tmp_path / "a/b/empty"])


def test_calibrate_replaces_the_held_out_scores(trained, files, tmp_path):
    good = [str(file) for file, label in zip(files, trained.index.test.label, strict=True) if label == 0]
    target = tmp_path / "calibrated.pt"
    line = ["calibrate", str(trained.outputs.checkpoint), *good, "--output", str(target), "--device", "cpu"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    again = load_detector(target, "cpu")
    np.testing.assert_allclose(again.held_out, [again(file).score for file in good], rtol=1e-5)
    assert f"its smallest p-value is 1 / {len(good) + 1}" in result.output


def test_photographs_of_one_part_calibrate_as_one(trained, files, tmp_path):
    """The part is the first character of a file's name; the two of part a are the same photograph."""
    good = [file for file, label in zip(files, trained.index.test.label, strict=True) if label == 0][:3]
    for name, file in zip(("a_left", "b_left", "c_left", "a_right"), [*good, good[0]], strict=True):
        (tmp_path / f"{name}.png").write_bytes(file.read_bytes())
    line = ["calibrate", str(trained.outputs.checkpoint), str(tmp_path), "--device", "cpu", "--output"]
    results = [
        CliRunner().invoke(app, [*line, str(tmp_path / name), *more])
        for name, more in (("photographs.pt", []), ("parts.pt", ["--part-pattern", r"/(\w)_[a-z]+\.png$"]))
    ]
    assert [result.exit_code for result in results] == [0, 0], [result.output for result in results]
    assert "4 good parts calibrate" in results[0].output
    assert "3 good parts calibrate" in results[1].output
    assert "its smallest p-value is 1 / 4." in results[1].output
    again = load_detector(tmp_path / "parts.pt", "cpu")
    assert again.held_out_parts.tolist() == ["a", "a", "b", "c"]
    expected = p_values(np.array([again(files[0]).score]), again.held_out[[0, 2, 3]])
    assert again(files[0]).p_value == expected[0]
    assert decision_of(again, 0.25, None).score == again.held_out.max()
    with pytest.raises(ConfigError, match="at least 4 held-out good parts"):
        decision_of(again, 0.2, None)
    scores, _ = score(tmp_path / "parts.pt", trained.index, device="cpu", batch_size=4)
    assert scores.held_out_parts.tolist() == [0, 0, 1, 2]


def test_held_out_parts_of_a_fit_keep_their_names(trained, tmp_path):
    held_out = split_training(trained.index, 0.25, 0)[1]
    named = dataclasses.replace(held_out, table=held_out.table.assign(part=["a", "", "a"]))
    (tmp_path / "checkpoint.pt").write_bytes(trained.outputs.checkpoint.read_bytes())
    calibrate_on_held_out(tmp_path / "checkpoint.pt", named, device="cpu", cache=None)
    found = load_detector(tmp_path / "checkpoint.pt", "cpu").held_out_parts
    assert found.tolist() == ["a", named.test.image[1], "a"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"Expected a regular expression as part pattern, but got '\('"),
        ("x+y", "Expected all images to match the p"),
    ],
)
def test_a_part_pattern_that_cannot_be_used(trained, files, tmp_path, pattern, message):
    with pytest.raises(ConfigError, match=message):
        calibrate_on_files(trained.outputs.checkpoint, files, tmp_path / "x.pt", device="cpu", part_pattern=pattern)
    assert not (tmp_path / "x.pt").exists()
