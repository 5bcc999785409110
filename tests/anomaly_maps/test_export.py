"""Export of maps: the run's own maps at the images' own sizes, under the images' names, and read back."""

import dataclasses

import numpy as np
import pytest
import tifffile
import typer
from typer.testing import CliRunner

from sanflow.anomaly_maps.export import export_maps, write_map
from sanflow.anomaly_maps.from_other_tools import score_external
from sanflow.anomaly_maps.maps import anomaly_maps, anomaly_maps_at
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.cli import results as results_commands
from sanflow.data.index import build_index, write_index
from sanflow.errors import DataError, IntegrityError
from sanflow.evaluation.evaluate import evaluate
from sanflow.methods.external import ExternalExperiment
from sanflow.prediction import predict
from tests.helpers.results import draw_data_set, imagine_scores

NATIVE = (96, 80)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = draw_data_set(tmp_path_factory.mktemp("data"), categories=("nut",), size=NATIVE)
    return build_index("my_parts", "nut", root, kind="folder")


@pytest.fixture(scope="module")
def scores(index):
    return imagine_scores(index, (64, 64))


@pytest.fixture
def run(index, scores, tmp_path):
    folder = tmp_path / "results/mine/my_parts/nut/sanflow/seed0"
    folder.mkdir(parents=True)
    write_index(index, folder.parents[1] / "index.csv")
    scores.save(folder / "scores.npz")
    return folder


def command(*arguments: object):
    app = typer.Typer()
    results_commands.register(app)
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


def test_maps_have_the_names_and_sizes_of_the_test_images(index, scores, run, tmp_path):
    done = command("maps", run, "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert done.output.startswith("11 maps of ")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {name.replace(".png", ".tiff") for name in index.test.image}
    assert "nut/test/dot/001.tiff" in files
    for name, map_HW in zip(index.test.image, anomaly_maps(scores, NATIVE), strict=True):
        read_HW = tifffile.imread(tmp_path / "out" / name.replace(".png", ".tiff"))
        assert read_HW.dtype == np.float32
        np.testing.assert_allclose(read_HW, map_HW, rtol=1e-6)


def test_an_epoch_that_is_kept_and_the_other_fusion(scores, run, tmp_path):
    epoch = run / "epoch05"
    epoch.mkdir()
    scores.save(epoch / "scores.npz")
    assert command("maps", epoch, "--output", tmp_path / "out", "--fusion", "testset").exit_code == 0
    expected = anomaly_maps_at(scores, [NATIVE] * 11, "testset")[3]
    read_HW = tifffile.imread(tmp_path / "out" / scores.paths[3].replace(".png", ".tiff"))
    # Up to a constant, which changes no order.
    np.testing.assert_allclose(read_HW - read_HW.min(), expected - expected.min(), atol=1e-5)


def test_another_evaluator_finds_the_same_numbers(index, scores, tmp_path):
    """The maps read back as those of another tool, at the same resolution."""
    list(export_maps(scores, index, tmp_path))
    read = score_external(
        index, tmp_path, ExternalExperiment(method="external", maps="m", input_size=64), name="theirs"
    )
    ours = evaluate(scores, index, evaluate_at="native", resamples=5).metrics
    theirs = evaluate(read, index, evaluate_at="native", resamples=5).metrics
    for name in ("native_image_auroc", "native_pixel_auroc", "native_aupro"):
        assert theirs[name] == pytest.approx(ours[name], abs=1e-6)


def test_it_is_the_writer_of_predict():
    assert predict.write_map is write_map


def test_names_that_differ_in_their_endings_are_refused(index, scores, tmp_path):
    table = index.table.replace({"image": {"nut/test/dot/001.png": "nut/test/dot/000.bmp"}})
    same = dataclasses.replace(index, table=table)
    given = dataclasses.replace(scores, paths=list(same.test.image), provenance={})
    with pytest.raises(DataError, match=r"got nut/test/dot/000.png and nut/test/dot/000.bmp, whose maps"):
        list(export_maps(given, same, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_scores_of_other_images_and_broken_ones_are_refused(index, scores, tmp_path):
    other = dataclasses.replace(scores, provenance={"index_digest": "0" * 64})
    with pytest.raises(IntegrityError, match=r"got those of another one \(000000000000\)"):
        list(export_maps(other, index, tmp_path))
    grids = {name: np.full_like(grid, np.nan) for name, grid in scores.grids.items()}
    with pytest.raises(DataError, match="Expected finite numbers in the scores of my_parts/nut"):
        list(export_maps(dataclasses.replace(scores, grids=grids), index, tmp_path))


def test_a_folder_that_is_no_run_is_reported(scores, tmp_path):
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"Expected a file of scores at .*c/scores.npz, but there is none"):
        command("maps", folder, "--output", tmp_path / "out")
    scores.save(folder / "scores.npz")
    with pytest.raises(DataError, match=r"two or three levels above .*a/b/c. Name the folder of a run"):
        command("maps", folder, "--output", tmp_path / "out")


def test_finished_maps_are_resized(index, tmp_path):
    grid = np.arange(11 * 4 * 5, dtype=np.float32).reshape(11, 4, 5)
    finished = Scores("anomaly_map", {"map": grid}, {}, list(index.test.image), index.test.label, ["x"] * 11, (4, 5))
    first = next(export_maps(finished, index, tmp_path))
    assert first == tmp_path / index.test.image[0].replace(".png", ".tiff")
    np.testing.assert_array_equal(tifffile.imread(first), anomaly_maps(finished, NATIVE)[0])
