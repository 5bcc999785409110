"""The scripts for anomalib, with random weights; on demand, as anomalib has an environment of its own:

SANFLOW_ANOMALIB_PYTHON=.anomalib/bin/python pytest tests/workflow/scripts
"""

import json
import os
import subprocess

import numpy as np
import pytest

from sanflow.anomaly_maps.scores_file import Scores
from sanflow.data.images import load_masks
from sanflow.data.index import build_index
from sanflow.errors import ToolError
from sanflow.methods.command.maker import make
from sanflow.methods.command.settings import CommandExperiment
from sanflow.methods.method import MapJob
from sanflow.tracking import Tracker
from tests.helpers.workflow import draw_category

PYTHON = os.environ.get("SANFLOW_ANOMALIB_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="SANFLOW_ANOMALIB_PYTHON names no Python with anomalib 2.x"),
    pytest.mark.timeout(900),
]
RANDOM = {"backbone": "resnet18", "pre_trained": False}
FOLDERS = [word for name in ("train", "test", "maps") for word in (f"--{name}", f"{{{name}}}")]
VALUES = [word for name in ("seed", "device", "height", "width") for word in (f"--{name}", f"{{{name}}}")]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    draw_category(root / "nut", None)
    return build_index("parts", "nut", root, kind="folder")


@pytest.fixture
def scores_of(root, index, tmp_path):
    """Run the adapter as a job and read its scores."""

    def run(model: str, *more: str, seed: int = 0, **arguments: object) -> Scores:
        script = str(root / "workflow/scripts/anomalib/adapter.py")
        words = ["--model", model, "--arguments", json.dumps(RANDOM | arguments), "--workers", "0", *more]
        command = [PYTHON, script, *words, *FOLDERS, *VALUES]
        experiment = CommandExperiment(method="command", command=command, input_size=(64, 96))
        files = (tmp_path / "scores.npz", tmp_path / "train.json", tmp_path / "work")
        make(MapJob(experiment, "theirs", index, seed, *files, "cpu", Tracker()))
        return Scores.load(files[0])

    return run


@pytest.mark.parametrize(
    ("model", "more", "arguments"),
    [
        ("Padim", [], {}),
        ("Patchcore", ["--test-batch-size", "2"], {"coreset_sampling_ratio": 0.1}),
        ("Fastflow", ["--batch-size", "2", "--trainer", '{"max_epochs": 1}'], {"flow_steps": 2}),
    ],
)
def test_maps_are_raw_and_highest_at_the_defects(scores_of, index, model, more, arguments):
    maps = scores_of(model, *more, **arguments).grids["map"]
    assert maps.dtype == np.float32
    assert maps.shape == (6, 64, 96)
    assert maps.max() > 1 or maps.min() < 0, "as the model gives them, not scaled to [0, 1]"
    masks = np.array(load_masks(index, (64, 96)))
    defective = masks.any(axis=(1, 2))
    assert defective.sum() == 3
    assert maps[masks].mean() > maps[~masks].mean()
    assert maps[defective].max(axis=(1, 2)).min() > maps[~defective].max()


def test_the_seed_decides(scores_of):
    first, again, other = (scores_of("Padim", seed=seed).grids["map"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_an_unknown_model_is_an_error_of_the_job(scores_of):
    with pytest.raises(ToolError, match=r"Expected a model of anomalib among .*Patchcore.*, but got 'Patchcor'"):
        scores_of("Patchcor")


@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_both_are_timed_on_the_same_features(root, index, method):
    script = str(root / "workflow/scripts/anomalib/compare_speed.py")
    images = str(index.root / index.train.image[0].rsplit("/", 1)[0])
    words = ["--images", images, "--method", method, "--input-size", "64", "--training-images", "4"]
    line = [PYTHON, script, *words, "--batch-size", "2", "--windows", "1", "--threads", "1"]
    known = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(line, capture_output=True, text=True, env=known, check=False)
    if "No module named" in done.stderr:
        pytest.skip("sanflow's dependencies are not installed beside anomalib")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["head"]["ratio"] > 0
    assert found["from_images_to_maps"]["ours_images_per_second"] > 0
    if method == "patchcore":
        assert found["bank"] == [4 * 64, 384]
        assert found["largest_difference_of_scores"] < 5e-3
