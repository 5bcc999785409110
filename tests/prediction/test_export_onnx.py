"""One ONNX file of each method: the maps and scores of torch, its metadata, and what is refused."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sanflow.anomaly_maps.fusion import calibrated
from sanflow.anomaly_maps.maps import resized
from sanflow.cli import app
from sanflow.encoders.licences import weights_licence
from sanflow.errors import ConfigError, ExportError
from sanflow.evaluation.conformal import threshold
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import detector_method, methods
from sanflow.prediction import export_onnx as module
from sanflow.prediction.exported_model import CalibratedFusion, ExportedModel, Resizing
from sanflow.tracking import Tracker
from tests.helpers.small_training import SETTINGS, small_experiment, small_index

DISTANCE = {key: SETTINGS[key] for key in ("encoder", "weights", "taps", "input_size")}
# A size that the grids do not divide, a crop, and every branch of the image scores.
CASES = {
    "sanflow": {"method": "sanflow", "epochs": 1, "passes_per_epoch": 2, "input_size": [20, 28]},
    "padim": {"method": "padim", "dimensions": 20, "input_size": [24, 20], "crop": 16},
    "patchcore": {
        "method": "patchcore",
        "coreset_fraction": 0.5,
        "projected_dimensions": 8,
        "image_score": "reweighted",
        "pooled_dimensions": 24,
        "input_size": [40, 160],
    },
    "tiles": {"method": "padim", "dimensions": 20, "input_size": [48, 64], "tile_size": 32, "tile_overlap": 16},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    torch.set_num_threads(1)
    return small_index(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def fitted(index, tmp_path_factory):
    """Checkpoint of a small fit of a method, each made once."""
    made = {}

    def fit(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            changes = CASES[name]
            if name == "sanflow":
                experiment = small_experiment(**changes)
            else:
                settings = DISTANCE | {"smoothing": 1.0} | changes
                experiment = methods()[changes["method"]].settings.model_validate(settings)
            outputs = Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state")
            job = FitJob(experiment, "small", index, 0, outputs, Tracker(), device="cpu")
            detector_method(experiment.method).fit(job)
            made[name] = outputs.checkpoint
        return made[name]

    return fit


@pytest.fixture
def extra():
    for name in module.EXTRA:
        pytest.importorskip(name, reason="needs the extra `onnx`")


@pytest.mark.parametrize(
    "name", [*(name for name in CASES if name != "tiles"), pytest.param("tiles", marks=pytest.mark.slow)]
)
def test_onnx_equals_torch(fitted, tmp_path, name, extra):
    detector = module.load_for_export(fitted(name))
    images_NHW3 = module.random_images(detector.input_size, 5)
    images_NHW3[1] //= 8
    images_NHW3[2, 4:9, 4:9] = 255
    found = module.export_onnx(detector, tmp_path / "model.onnx", images_NHW3, batch_size=3)
    assert found.images == 5
    assert found.largest_difference < 1e-3
    exported = module.OnnxDetector(tmp_path / "model.onnx")
    for count in (1, 5):  # any number of images
        expected, (maps_BHW, scores_B) = detector.score(images_NHW3[:count]), exported.score(images_NHW3[:count])
        extent = np.ptp(expected.maps_BHW)
        assert extent > 0
        assert maps_BHW.shape == (count, *detector.input_size)
        np.testing.assert_allclose(maps_BHW, expected.maps_BHW, rtol=0, atol=1e-3 * extent)
        np.testing.assert_allclose(scores_B, expected.scores_B, rtol=0, atol=1e-3 * extent)


def test_the_file_says_how_to_read_images_and_what_good_parts_score(fitted, tmp_path, extra):
    import onnxruntime

    detector = module.load_for_export(fitted("padim"))
    scores = np.arange(1.0, 21.0)
    held_out = {"scores": scores.tolist(), "map_maxima": scores.tolist(), "from": "a test"}
    detector.checkpoint = dataclasses.replace(detector.checkpoint, held_out=held_out)
    path = tmp_path / "model.onnx"
    path.write_bytes(content := module.onnx_bytes(detector))
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert found["method"] == "padim"
    assert found["checkpoint_digest"] == detector.checkpoint.digest
    assert len(found["checkpoint_digest"]) == 64
    assert found["licence_of_encoder_weights"] == "none needed (random weights)"
    assert found["licence_of_data"] == "not registered: the user's own data"
    entered = json.loads(found["input"])
    assert (entered["size"], entered["range"], entered["layout"]) == ([24, 20], [0.0, 1.0], "B3HW")
    assert json.loads(found["reading"])["usual_size"] == [16, 16]
    assert json.loads(found["held_out"]) == {
        "parts": 20,
        "smallest": 1.0,
        "median": 10.5,
        "largest": 20.0,
        "false_alarm_rate": 0.05,
        "threshold": threshold(0.05, scores),
    }
    assert b"detector.py" not in content  # no path of this machine


def test_the_command_writes_the_file_beside_the_checkpoint(fitted, index, tmp_path, extra):
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(fitted("padim").read_bytes())
    line = ["export", str(checkpoint), "--format", "onnx", "--check", str(index.root), "--most-images", "3"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "checkpoint.onnx").is_file()
    assert "of the map's range on 3 images; onnxruntime" in result.output


def test_a_file_that_computes_something_else_is_not_kept(fitted, tmp_path, monkeypatch, extra):
    detector = module.load_for_export(fitted("padim"))
    content = module.onnx_bytes(detector)
    detector.detector.mean_PD.add_(1.0)
    monkeypatch.setattr(module, "onnx_bytes", lambda _: content)
    with pytest.raises(ExportError, match=r"within 0\.001 of torch's, relative to their range, but the largest diff"):
        module.export_onnx(detector, tmp_path / "model.onnx", module.random_images(detector.input_size, 1))
    assert list(tmp_path.iterdir()) == []


def test_what_is_larger_than_the_format_allows_is_refused(fitted, monkeypatch, extra):
    monkeypatch.setattr(module, "LARGEST_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"at most 0\.00 GB, the most that one ONNX file holds, but this one has"):
        module.onnx_bytes(module.load_for_export(fitted("padim")))


def test_a_graph_of_one_number_of_images_is_refused(fitted, monkeypatch, extra):
    detector = module.load_for_export(fitted("padim"))
    head = detector.detector.head
    monkeypatch.setattr(detector.detector, "head", lambda features: head(features) * len(features[0]))
    with pytest.raises(ExportError, match="scores any number of images, but its graph is fixed to one number"):
        module.onnx_bytes(detector)


def test_without_the_extra_the_command_names_it(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(module, "EXTRA", ("onnxruntime",))
    with pytest.raises(ConfigError, match=r"onnxruntime cannot be imported .*`pip install 'sanflow\[onnx\]'`"):
        module.load_for_export(fitted("padim"))
    result = CliRunner().invoke(app, ["export", str(fitted("padim"))])
    assert isinstance(result.exception, ConfigError)


def test_a_detector_without_a_graph_is_refused():
    with pytest.raises(ExportError, match="Expected a detector whose `score_floats` is a graph of tensor operations"):
        ExportedModel(object())


def test_bf16_is_exported_as_fp32(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXTRA", ())
    checkpoint = module.load_checkpoint(fitted("sanflow"))
    experiment = checkpoint.experiment.model_copy(update={"precision": "bf16"})
    monkeypatch.setattr(module, "load_checkpoint", lambda _: dataclasses.replace(checkpoint, experiment=experiment))
    assert module.load_for_export(tmp_path).detector.precision == "fp32"


def test_fusion_in_torch_equals_numpy_s_also_in_the_tail():
    random = np.random.default_rng(0)
    # Some pixels keep a probability, some are far below what a float can hold.
    grids = {
        name: random.normal(-scale, scale, (2, *size))
        for name, size, scale in (("a", (5, 7), 3.0), ("b", (3, 4), 40.0), ("c", (1, 2), 4000.0))
    }
    constants = {"a": 0.5, "b": -0.25, "c": -9000.0}
    for names in (["a", "b", "c"], ["b"]):
        chosen = {name: grids[name].astype(np.float32) for name in names}
        fusion = CalibratedFusion({name: grid.shape[1:] for name, grid in chosen.items()}, constants, (20, 31))
        expected = calibrated(list(chosen.values()), [constants[name] for name in names], (20, 31))
        found = fusion([torch.from_numpy(grid) for grid in chosen.values()]).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert (expected > 1).any()
    assert (expected < 0.5).any()


@pytest.mark.parametrize("size", [(9, 14), (4, 3), (6, 5)])
def test_finished_maps_are_resized_as_prediction_does(size):
    map_HW = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    found = Resizing((6, 5), size)([torch.from_numpy(map_HW)[None]])[0]
    np.testing.assert_allclose(found, resized(map_HW, size), atol=1e-6)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({"weights": "random", "name": "timm/resnet18.tv_in1k"}, "none needed (random weights)"),
        ({"weights": "bundled", "name": "timm/tf_efficientnet_lite0.in1k"}, "Apache-2.0"),
        ({"weights": "pretrained", "name": "timm/wide_resnet50_2.tv_in1k"}, "bsd-3-clause"),
        ({"weights": "pretrained", "name": "torchvision/resnet18"}, "unknown"),
        ({"weights": "file", "name": "timm/resnet18.tv_in1k"}, "unknown"),
    ],
)
def test_licences_of_weights(identity, expected):
    assert weights_licence(identity) == expected
