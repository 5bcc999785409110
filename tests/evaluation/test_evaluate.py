"""Evaluation: the numbers in the files are those of the metrics, at each fusion and resolution."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

from sanflow.anomaly_maps.fusion import calibrated, fused_over_test_set
from sanflow.anomaly_maps.maps import anomaly_maps, anomaly_maps_at, image_scores, resized
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.cli import results as results_commands
from sanflow.data.images import load_masks
from sanflow.data.index import Index, build_index, read_index, write_index
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.evaluation.conformal import proportion_interval
from sanflow.evaluation.evaluate import evaluate, evaluate_files, training_cost
from sanflow.evaluation.metric_table import METRICS
from sanflow.evaluation.metrics import (
    aupro,
    auroc,
    average_precision,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    pixels,
)
from sanflow.files import sha256_of_file, write_json
from tests.helpers.results import draw_data_set, imagine_history, imagine_scores

SIZE = (64, 64)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = draw_data_set(tmp_path_factory.mktemp("data"), categories=("nut",), size=(96, 80))
    return build_index("my_parts", "nut", root, kind="folder")


@pytest.fixture(scope="module")
def scores(index):
    return imagine_scores(index, SIZE, quality=2.0, experiment={"evaluate_at": "native"})


@pytest.fixture(scope="module")
def evaluation(scores, index):
    return evaluate(scores, index, evaluate_at="native", resamples=20)


def test_headline_is_calibrated_fusion_at_the_input_size(evaluation, scores, index):
    maps = calibrated(list(scores.grids.values()), list(scores.constants.values()), SIZE)
    masks = load_masks(index, SIZE)
    best = maps.max(axis=(1, 2))
    metrics = evaluation.metrics
    assert metrics["image_auroc"] == pytest.approx(auroc(best, scores.labels), abs=1e-12)
    assert metrics["image_ap"] == pytest.approx(average_precision(best, scores.labels), abs=1e-12)
    assert metrics["pixel_auroc"] == pytest.approx(auroc(maps, masks), abs=1e-12)
    assert metrics["aupro"] == pytest.approx(aupro(maps, masks), abs=1e-12)
    assert metrics["aupro_05"] == pytest.approx(aupro(maps, masks, 0.05), abs=1e-12)
    assert list(metrics)[:3] == ["image_auroc", "pixel_auroc", "aupro"]


def test_test_set_fusion_and_native_resolution_stand_beside_it(evaluation, scores, index):
    maps = fused_over_test_set(list(scores.grids.values()), SIZE)
    assert evaluation.metrics["testset_aupro"] == pytest.approx(aupro(maps, load_masks(index, SIZE)), abs=1e-12)
    native = calibrated(list(scores.grids.values()), list(scores.constants.values()), (96, 80))
    masks = load_masks(index)
    assert masks[0].shape == (96, 80)
    assert evaluation.metrics["native_pixel_auroc"] == pytest.approx(auroc(native, np.stack(masks)), abs=1e-12)
    assert evaluation.metrics["native_aupro"] == pytest.approx(aupro(native, masks), abs=1e-12)
    assert "testset_native_image_auroc" in evaluation.metrics


def test_aupimo_is_computed_once_per_set_of_maps(scores, index, monkeypatch):
    calls = []
    real = pixels.aupimo_per_image
    monkeypatch.setattr(pixels, "aupimo_per_image", lambda *given: calls.append(given) or real(*given))
    found = evaluate(scores, index, resamples=5)
    assert len(calls) == 2  # calibrated and test-set fusion
    assert found.metrics["aupimo"] == np.nanmean(found.images.aupimo)


def test_native_resolution_is_not_measured_unasked(scores, index):
    metrics = evaluate(scores, index, resamples=5).metrics
    assert not [name for name in metrics if "native" in name]
    assert metrics["evaluate_at"] == "input"


def test_images_have_a_row_each(evaluation, scores, index):
    images = evaluation.images
    assert list(images.columns) == [
        *["image", "label", "defect_type", "score", "testset_score", "defect_pixels", "aupimo"]
    ]
    assert list(images.image) == list(index.test.image)
    assert list(images.label) == list(index.test.label)
    np.testing.assert_array_equal(images.score, anomaly_maps(scores, SIZE).max(axis=(1, 2)).astype(float))
    np.testing.assert_array_equal(images.defect_pixels, load_masks(index, SIZE).sum(axis=(1, 2)))
    assert images.aupimo.isna().tolist() == (images.label == 0).tolist()


def test_curves_have_the_metrics_as_areas(evaluation):
    curves = evaluation.curves
    area = np.trapezoid(curves["pixel_roc_y"], curves["pixel_roc_x"])
    assert area == pytest.approx(evaluation.metrics["pixel_auroc"], abs=1e-3)
    assert curves["pixel_histogram_edges"].shape == (201,)
    total = curves["pixel_histogram_normal"].sum() + curves["pixel_histogram_anomalous"].sum()
    assert total == len(evaluation.images) * 64 * 64


def test_intervals_hold_the_headline(evaluation):
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        low, high = evaluation.metrics["intervals"][name]
        assert low - 1e-9 <= evaluation.metrics[name] <= high + 0.05
        assert 0 <= low <= high <= 1


def test_photographs_of_one_part_are_resampled_and_counted_together(index):
    test = index.table.split == "test"
    names = [f"part {place // 2}" for place in range(len(index.table))]
    named = dataclasses.replace(index, table=index.table.assign(part=names))
    scores = dataclasses.replace(
        imagine_scores(named, SIZE, quality=2.0), held_out_scores=np.arange(40.0), held_out_parts=np.arange(40) // 2
    )
    metrics = evaluate(scores, named, resamples=20).metrics
    parts = named.table.part[test].to_numpy()
    image_N = anomaly_maps(scores, SIZE).max(axis=(1, 2))
    expected = bootstrap_image_metrics(image_N, scores.labels, parts=parts, resamples=20)["image_auroc"]
    assert metrics["intervals"]["image_auroc"] == [expected.low, expected.high]
    maps, masks = anomaly_maps(scores, SIZE), load_masks(named, SIZE)
    expected = bootstrap_pixel_metrics(maps, masks, parts=parts, resamples=20)["aupro"]
    assert metrics["intervals"]["aupro"] == [expected.low, expected.high]
    assert metrics["counts"]["test_parts"] == len(set(parts)) < metrics["counts"]["test_images"]
    assert [point["held_out"] for point in metrics["operating_point"]] == [20, 20]
    (point, _), good = metrics["operating_point"], ~scores.labels
    n_parts = len(set(parts[good]))
    hits = (image_N[good] > point["threshold"]).mean() * n_parts
    assert point["false_alarm_interval"] == pytest.approx(proportion_interval(hits, n_parts))


def test_provenance_names_index_code_and_versions(evaluation, index):
    provenance = evaluation.metrics["provenance"]
    assert provenance["index_digest"] == index.digest
    step = provenance["steps"]["evaluate"]
    assert len(step["code_digest"]) == 64
    assert "numpy" in step["versions"]["packages"]
    assert evaluation.metrics["counts"] == {"test_images": 11, "anomalous": 6, "training_images": 4}
    assert evaluation.metrics["cost"] == {"scoring_images_per_second": 12.5}


def test_a_calibrated_score_does_not_depend_on_other_images(scores):
    part = dataclasses.replace(
        scores,
        grids={name: grid[3:4] for name, grid in scores.grids.items()},
        paths=scores.paths[3:4],
        labels=scores.labels[3:4],
        defect_types=scores.defect_types[3:4],
    )
    np.testing.assert_allclose(anomaly_maps(part, SIZE)[0], anomaly_maps(scores, SIZE)[3], atol=1e-6)
    assert not np.allclose(anomaly_maps(part, SIZE, "testset")[0], anomaly_maps(scores, SIZE, "testset")[3])


@pytest.mark.parametrize("fusion", ["calibrated", "testset"])
def test_maps_of_different_sizes_agree_with_those_of_one_size(scores, fusion):
    sizes = [SIZE if number % 2 else (32, 48) for number in range(len(scores.paths))]
    mixed, whole = anomaly_maps_at(scores, sizes, fusion), anomaly_maps(scores, SIZE, fusion)
    offsets = [float((mixed[i] - whole[i]).mean()) for i in range(len(sizes)) if sizes[i] == SIZE]
    # Test-set fusion subtracts the least value over all maps, which depends on their sizes.
    np.testing.assert_allclose(offsets, offsets[0], atol=1e-6)
    assert fusion == "testset" or abs(offsets[0]) < 1e-6
    if fusion == "testset":
        assert min(map_HW.min() for map_HW in mixed) == 0
    same = anomaly_maps_at(scores, [SIZE] * len(sizes), fusion)
    np.testing.assert_array_equal(np.stack(same), whole)


def test_finished_maps_are_only_resized(index):
    maps = np.random.default_rng(0).random((len(index.test), 32, 32)).astype(np.float32)
    table = index.test
    scores = Scores(
        "anomaly_map", {"map": maps}, {}, list(table.image), table.label == 1, list(table.defect_type), SIZE
    )
    np.testing.assert_array_equal(anomaly_maps(scores, (32, 32)), maps)
    np.testing.assert_array_equal(anomaly_maps(scores, (32, 32), "testset"), maps)
    assert [map_HW.shape for map_HW in anomaly_maps_at(scores, [(8, 9)] * len(maps))] == [(8, 9)] * len(maps)
    np.testing.assert_allclose(image_scores(maps), maps.max(axis=(1, 2)))
    np.testing.assert_allclose(resized(np.full((4, 4), 2.5), (9, 7)), np.full((9, 7), 2.5))
    found = evaluate(scores, index, resamples=5).metrics
    assert found["testset_aupro"] == found["aupro"]


def test_a_missing_class_gives_nan_and_says_so(index, scores, tmp_path):
    good = index.table[(index.table.split == "train") | (index.table.label == 0)]
    alone = Index(index.dataset, index.category, index.root, good.reset_index(drop=True))
    kept = [number for number, label in enumerate(scores.labels) if not label]
    part = Scores(
        "log_prob",
        {name: grid[kept] for name, grid in scores.grids.items()},
        scores.constants,
        [scores.paths[i] for i in kept],
        scores.labels[kept],
        [scores.defect_types[i] for i in kept],
        SIZE,
    )
    found = evaluate(part, alone, resamples=5)
    assert all(math.isnan(found.metrics[name]) for name in ("image_auroc", "pixel_auroc", "aupro", "aupimo"))
    assert any("undefined" in warning for warning in found.metrics["warnings"])
    assert found.metrics["intervals"] == {}
    found.write(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["aupro"] is None


def test_without_masks_image_metrics_alone_are_measured(index, scores, evaluation, tmp_path):
    table = index.table.assign(mask="", mask_sha256="", defect_pixels=0)
    blind = dataclasses.replace(index, table=table)
    assert not blind.knows_pixels
    provenance = {**scores.provenance, "index_digest": blind.digest}
    found = evaluate(dataclasses.replace(scores, provenance=provenance), blind, evaluate_at="native", resamples=20)
    for name in ("image_auroc", "image_ap", "testset_image_auroc"):
        assert found.metrics[name] == evaluation.metrics[name]
    names = [name for name in found.metrics if "pixel" in name or "aupro" in name or "aupimo" in name]
    assert names == []  # absent, not zero
    assert set(found.metrics["intervals"]) == {
        name for name in evaluation.metrics["intervals"] if name.startswith("image_")
    }
    assert found.curves["pixel_pro_x"].size == found.curves["pixel_roc_y"].size == 0
    assert found.curves["pixel_histogram_normal"].sum() == int((~scores.labels).sum()) * 64 * 64
    assert found.curves["pixel_histogram_anomalous"].sum() == 0
    assert found.curves["image_roc_y"].tolist() == evaluation.curves["image_roc_y"].tolist()
    assert found.images.defect_pixels.isna().all()
    assert found.images.aupimo.isna().all()
    assert found.images.score.equals(evaluation.images.score)
    found.write(tmp_path / "metrics.json")
    assert "aupro" not in json.loads((tmp_path / "metrics.json").read_text())


def test_without_good_images_pixels_are_measured(index, scores):
    bad = index.table[(index.table.split == "train") | (index.table.label == 1)].reset_index(drop=True)
    kept = np.flatnonzero(scores.labels)
    part = dataclasses.replace(
        scores,
        grids={name: grid[kept] for name, grid in scores.grids.items()},
        paths=[scores.paths[i] for i in kept],
        labels=scores.labels[kept],
        defect_types=[scores.defect_types[i] for i in kept],
        provenance={},
    )
    found = evaluate(part, dataclasses.replace(index, table=bad), resamples=5).metrics
    assert math.isnan(found["image_auroc"])
    assert 0.5 < found["pixel_auroc"] <= 1
    assert 0 < found["aupro"] <= 1


def test_vanished_defects_and_warnings_of_the_index_are_among_the_warnings(index, scores):
    doubtful = dataclasses.replace(index, warnings=("1 of 6 masks cover more than half",))
    tiny = dataclasses.replace(scores, input_size=(2, 2))
    warned = evaluate(tiny, doubtful, resamples=5).metrics["warnings"]
    assert "1 of 6 masks cover more than half" in warned
    masks = [mask_HW for mask_HW in load_masks(index) if mask_HW.any()]
    # The centres of the four cells of 2 x 2: rows 24 and 72 of 96, columns 20 and 60 of 80.
    lost = sum(not mask_HW[24::48, 20::40].any() for mask_HW in masks)
    assert lost > 0
    assert (
        f"{lost} of {len(masks)} defective images lose all defect pixels at 2 x 2: pixel metrics count them as normal"
        in warned
    )


def test_scores_of_another_index_are_refused(scores, index):
    other = dataclasses.replace(scores, provenance={"index_digest": "0" * 64})
    with pytest.raises(IntegrityError, match=r"another one \(000000000000\): the data set has changed since\. Score"):
        evaluate(other, index)
    order = list(range(len(scores.paths)))[::-1]
    shuffled = dataclasses.replace(scores, paths=[scores.paths[i] for i in order], provenance={})
    with pytest.raises(IntegrityError, match="my_parts/nut"):
        evaluate(shuffled, index)


def test_diverged_scores_are_refused(scores, index):
    grids = {name: grid.copy() for name, grid in scores.grids.items()}
    grids["scale1"][0, 0, 0] = np.inf
    with pytest.raises(DataError, match=r"the scores of my_parts/nut.*scale1"):
        evaluate(dataclasses.replace(scores, grids=grids), index)


@pytest.fixture
def run(tmp_path, scores, index):
    """Files of a run and of its index."""
    write_index(index, tmp_path / "index.csv")
    scores.save(tmp_path / "scores.npz")
    # Four images are in the index; one of them was held out.
    write_json(tmp_path / "train.json", imagine_history() | {"checkpoint_bytes": 1234, "training_images": 3})
    return tmp_path


def test_files_are_written_with_the_cost_of_training(run):
    found = evaluate_files(run / "scores.npz", run / "index.csv", history_path=run / "train.json", resamples=5)
    found.write(run / "out" / "metrics.json")
    metrics = json.loads((run / "out" / "metrics.json").read_text())
    assert metrics["cost"] == {
        "scoring_images_per_second": 12.5,
        "training_seconds": 90.0,
        "training_images_per_second": 8.0,
        "peak_memory_bytes": 1.5e9,
        "parameters": 2_500_000,
        "device": "cpu",
        "checkpoint_bytes": 1234,
    }
    assert metrics["counts"]["training_images"] == 3
    assert metrics["evaluate_at"] == "native"  # as the experiment of the scores says
    assert metrics["provenance"]["scores_digest"] == sha256_of_file(run / "scores.npz")
    pd.testing.assert_frame_equal(pd.read_csv(run / "out" / "images.csv"), found.images)
    with np.load(run / "out" / "curves.npz", allow_pickle=False) as curves:
        np.testing.assert_array_equal(curves["image_roc_x"], found.curves["image_roc_x"])


def test_a_moved_data_set_is_found_again(run, index, tmp_path):
    moved = tmp_path / "elsewhere"
    index.root.rename(moved)
    try:
        with pytest.raises(DataError):
            evaluate_files(run / "scores.npz", run / "index.csv", resamples=5)
        found = evaluate_files(run / "scores.npz", run / "index.csv", resamples=5, data_root=moved)
        assert read_index(run / "index.csv").digest == found.metrics["provenance"]["index_digest"]
    finally:
        moved.rename(index.root)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(5.0, 5.0), ({"total": 9.0, "encoder": 3.0}, 9.0), ({"a": 1.0, "b": 2.0}, 3.0)]
)
def test_training_seconds(seconds, expected):
    assert training_cost({"seconds": seconds})["training_seconds"] == expected


@pytest.fixture
def command():
    app = typer.Typer()
    results_commands.register(app)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def benchmark(tmp_path):
    content = {
        "datasets": {"my_parts": {"kind": "folder", "root": str(tmp_path)}},
        "experiments": {
            "ours": {"method": "sanflow", "encoder": "torchvision/resnet18", "weights": "random", "label": "Ours"},
            "theirs": {"method": "external", "maps": str(tmp_path / "maps/{dataset}/{category}"), "input_size": 64},
        },
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_command_evaluate(run, command, benchmark):
    arguments = ["--scores", run / "scores.npz", "--output", run / "a/metrics.json", "--history", run / "train.json"]
    arguments += ["--benchmark", benchmark, "--experiment", "ours", "--resamples", 5]
    answer = command("evaluate", run / "index.csv", *arguments)
    assert answer.exit_code == 0, answer.output
    metrics = json.loads((run / "a/metrics.json").read_text())
    assert metrics["provenance"]["experiment"]["label"] == "Ours"
    assert metrics["evaluate_at"] == "input"  # the benchmark file decides, not the scores
    assert f"image_auroc {100 * metrics['image_auroc']:.2f}" in answer.output


def test_command_score_external(run, command, benchmark, index, scores):
    folder = run / "maps" / "my_parts" / "nut"
    for path, map_HW in zip(index.test.image, anomaly_maps(scores, SIZE), strict=True):
        file = folder / path.removeprefix("nut/test/").replace(".png", ".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, map_HW)
    arguments = ["--benchmark", benchmark, "--experiment", "theirs", "--output", run / "b/scores.npz"]
    answer = command("score-external", run / "index.csv", *arguments)
    assert answer.exit_code == 0, answer.output
    found = Scores.load(run / "b/scores.npz")
    assert found.kind == "anomaly_map"
    assert found.provenance["experiment"]["method"] == "external"
    ours = evaluate(scores, index, resamples=5).metrics
    theirs = evaluate(found, index, resamples=5).metrics
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert theirs[name] == ours[name], name


def test_command_with_an_unknown_experiment(run, command, benchmark):
    answer = command(
        "score-external", run / "index.csv", "--benchmark", benchmark, "--experiment", "x", "--output", "y"
    )
    assert isinstance(answer.exception, ConfigError)
    assert "one of ours, theirs, but got 'x'" in str(answer.exception)


def test_command_without_maps(run, command, benchmark):
    arguments = ["--benchmark", benchmark, "--experiment", "ours", "--output", run / "s.npz"]
    answer = command("score-external", run / "index.csv", *arguments)
    assert isinstance(answer.exception, ConfigError)
    assert "Expected an experiment with finished maps, but 'ours' is of `sanflow`" in str(answer.exception)


def test_the_page_about_outputs_names_what_is_written(root, evaluation, scores):
    page = (root / "docs/outputs.md").read_text("utf-8")
    for column in evaluation.images.columns:
        assert f"| `{column}` |" in page, column
    prefixes = ("testset_", "native_")
    for key in evaluation.metrics:
        assert key.startswith(prefixes) or f"`{key}`" in page, key
    assert "`resampled_<metric>`" in page
    for entry in evaluation.curves:
        if entry.startswith("resampled_"):
            assert entry.removeprefix("resampled_") in METRICS
            continue
        curve = entry.removesuffix("_x").removesuffix("_y")
        assert f"`{entry}`" in page or f"`{curve}_x`" in page or f"<level>{curve[5:]}_x" in page, entry
    for key in training_cost(imagine_history()):
        assert f"`{key}`" in page, key
