"""Tiles in every method with an encoder: equal maps where features are pointwise, bounded differences elsewhere."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sanflow import load_detector
from sanflow.data.held_out import split_training
from sanflow.data.images import load_images
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import detector_method, methods
from sanflow.prediction.calibration import calibrate_on_held_out
from sanflow.scoring import score
from sanflow.tracking import Tracker
from tests.helpers.small_training import SETTINGS, small_index

# The stem is a convolution of 4 x 4 pixels with stride 4 and a norm over channels: a cell sees its own pixels only.
POINTWISE = {"encoder": "timm/convnext_atto.d2_in1k", "weights": "random", "taps": ["stem"], "input_size": [32, 48]}
TILES = {"tile_size": 20, "tile_overlap": 8}
FLOW = {key: SETTINGS[key] for key in ("learning_rate", "position_channels", "coupling_blocks", "batch_size")}
FLOW |= {"epochs": 2, "passes_per_epoch": 1, "warmup_epochs": 0.5}
METHODS = {
    "padim": {"dimensions": 10},
    "patchcore": {"coreset_fraction": 0.1, "sampling": "random"},
    "sanflow": FLOW,
    "cflow": FLOW | {"normalize_features": True},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    torch.set_num_threads(1)
    return small_index(tmp_path_factory.mktemp("tiles"))


def fitted(index, folder, method, **changes):
    settings = {"method": method, **POINTWISE, **METHODS[method], **changes}
    experiment = methods()[method].settings.model_validate(settings)
    outputs = Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state")
    detector_method(method).fit(FitJob(experiment, "tiles", index, 0, outputs, Tracker(), device="cpu"))
    return outputs.checkpoint


@pytest.mark.parametrize("method", METHODS)
def test_pointwise_maps_are_those_without_tiles(index, tmp_path, method):
    whole = fitted(index, tmp_path / "whole", method)
    tiled = fitted(index, tmp_path / "tiled", method, **TILES)
    (expected, _), (found, _) = (score(checkpoint, index, device="cpu") for checkpoint in (whole, tiled))
    assert found.grids.keys() == expected.grids.keys()
    for name, grid in expected.grids.items():
        assert found.grids[name].shape == grid.shape
        np.testing.assert_allclose(found.grids[name], grid, rtol=0, atol=1e-4 * np.ptp(grid))
    assert found.provenance["encoder"]["tile_size"] == 20
    assert "tile_size" not in expected.provenance["encoder"]


def test_calibration_and_prediction_use_tiles(index, tmp_path):
    checkpoint = fitted(index, tmp_path, "patchcore", calibration_fraction=0.25, **TILES)
    calibrate_on_held_out(checkpoint, split_training(index, 0.25, 0)[1], device="cpu", cache=None)
    scores, _ = score(checkpoint, index, device="cpu")
    assert scores.held_out_scores.shape == (3,)
    detector = load_detector(checkpoint, "cpu")
    images_NHW3 = np.asarray(load_images(index, "test", detector.input_size))
    batch = detector.score(images_NHW3)
    np.testing.assert_allclose(batch.maps_BHW, scores.grids["map"], rtol=1e-4)
    np.testing.assert_allclose(batch.scores_B, scores.image_scores, rtol=1e-4)
    # The encoder of the checkpoint is cut as that of the fit was.
    encoder = load_checkpoint(checkpoint).build_encoder()
    assert (encoder.tiling.size, encoder.tiling.overlap) == (20, 8)


@pytest.mark.parametrize("overlap", [20, 32])
def test_an_overlap_of_the_whole_tile_is_refused(overlap):
    settings = {"method": "padim", **POINTWISE, "tile_size": 20, "tile_overlap": overlap}
    with pytest.raises(ValidationError, match=rf"expected `tile_overlap` below `tile_size` \(20\), but got {overlap}"):
        methods()["padim"].settings.model_validate(settings)


@pytest.mark.slow
def test_convolutional_maps_differ_by_little_at_seams(index, tmp_path):
    """PatchCore on an EfficientNet with real weights, at a size that it sees whole or in four or nine tiles."""

    def maps(**tiles):
        settings = {"encoder": "timm/tf_efficientnet_lite0.in1k", "weights": "bundled", "input_size": 160}
        settings |= {"taps": ["blocks.2", "blocks.4"]} | tiles
        checkpoint = fitted(index, tmp_path / str(len(list(tmp_path.iterdir()))), "patchcore", **settings)
        return score(checkpoint, index, device="cpu")[0].grids["map"]

    whole_NHW = maps()
    for overlap, largest, mean in ((32, 0.25, 0.04), (64, 0.125, 0.02)):
        difference_NHW = np.abs(maps(tile_size=96, tile_overlap=overlap) - whole_NHW) / np.ptp(whole_NHW)
        assert difference_NHW.max() < largest
        assert difference_NHW.mean() < mean
