"""PaDiM and PatchCore as methods: fitted, scored, repeated, stopped, and given what they cannot take."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sanflow.data.images import load_images, load_masks
from sanflow.device import unit_images
from sanflow.errors import ConfigError, DataError
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.methods.distance_maps import DistanceMaps
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import detector_method, methods
from sanflow.scoring import score
from sanflow.tracking import Tracker
from tests.helpers.small_training import N_TEST, N_TRAIN, SIZE, small_index

PADIM = {"method": "padim", "dimensions": 20}
PATCHCORE = {"method": "patchcore", "coreset_fraction": 0.5, "projected_dimensions": 8}
BOTH = pytest.mark.parametrize("changes", [PADIM, PATCHCORE], ids=["padim", "patchcore"])


def settings(**changes):
    shared = {
        "encoder": "timm/test_efficientnet.r160_in1k",
        "weights": "random",
        "taps": ["blocks.1", "blocks.2"],
        "input_size": SIZE,
        "smoothing": 1.0,
    }
    return methods()[changes["method"]].settings.model_validate(shared | changes)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    torch.set_num_threads(1)
    return small_index(tmp_path_factory.mktemp("distances"))


def fitted(index, folder, seed=0, device="cpu", **changes):
    outputs = Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state")
    job = FitJob(settings(**changes), "small", index, seed, outputs, Tracker(), device=device)
    detector_method(changes["method"]).fit(job)
    return outputs


def first_training_images(index, count):
    table = index.table
    train = table[table.split == "train"].iloc[:count]
    return dataclasses.replace(index, table=table.loc[[*train.index, *table[table.split == "test"].index]])


@BOTH
def test_dark_squares_are_far_from_normal(index, tmp_path, changes):
    scores, extras = score(fitted(index, tmp_path, **changes).checkpoint, index, device="cpu", batch_size=4)
    map_NHW = scores.grids["map"]
    masks_NHW = np.asarray(load_masks(index, size=(SIZE, SIZE)))
    assert scores.kind == "anomaly_map"
    assert map_NHW.shape == (2 * N_TEST, SIZE, SIZE)
    assert map_NHW[masks_NHW].mean() > 1.2 * map_NHW[~masks_NHW].mean()
    image_scores = map_NHW.max(axis=(1, 2)) if scores.image_scores is None else scores.image_scores
    assert image_scores[scores.labels].min() > image_scores[~scores.labels].max()
    assert extras.variance is None
    assert extras.latents is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees none")
@BOTH
def test_a_real_gpus_maps_are_the_processors(index, tmp_path, changes):
    of_gpu, of_cpu = (
        score(fitted(index, tmp_path / device, device=device, **changes).checkpoint, index, device=device)[0]
        for device in ("cuda", "cpu")
    )
    assert of_gpu.grids["map"] == pytest.approx(of_cpu.grids["map"], rel=1e-3)


@BOTH
def test_a_map_does_not_depend_on_the_batch(index, tmp_path, changes):
    checkpoint = fitted(index, tmp_path, **changes).checkpoint
    alone, _ = score(checkpoint, index, device="cpu", batch_size=1)
    together, _ = score(checkpoint, index, device="cpu", batch_size=6)
    np.testing.assert_allclose(alone.grids["map"], together.grids["map"], rtol=1e-3)


@BOTH
def test_the_seed_decides_the_fit(index, tmp_path, changes):
    states = [
        load_checkpoint(fitted(index, tmp_path / str(run), seed=seed, **changes).checkpoint).state
        for run, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@BOTH
def test_a_stopped_fit_leaves_nothing_and_starts_again(index, tmp_path, monkeypatch, changes):
    whole = fitted(index, tmp_path / "whole", **changes)

    def stop_after_first(self, images_NHW3, device):
        yield self.features(unit_images(torch.from_numpy(np.array(images_NHW3[:4])), device))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DistanceMaps, "features_of_all", stop_after_first)
        with pytest.raises(KeyboardInterrupt):
            fitted(index, tmp_path / "stopped", **changes)
    assert not list((tmp_path / "stopped").glob("**/*.*"))
    again = fitted(index, tmp_path / "stopped", **changes)
    expected, found = (load_checkpoint(outputs.checkpoint).state for outputs in (whole, again))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@BOTH
def test_the_record_says_what_was_fitted(index, tmp_path, changes):
    outputs = fitted(index, tmp_path, **changes)
    record = json.loads(outputs.record.read_text())
    assert record["images"] == record["training_images"] == N_TRAIN
    assert record["images_per_second"] > 0
    assert record["encoder"]["padding"] == "zeros"
    state = load_checkpoint(outputs.checkpoint).state
    kept = state["bank"].numel() if changes is PATCHCORE else state["mean"].numel() + state["factors"].numel()
    assert record["parameters"] == kept


@BOTH
def test_held_out_images_are_not_fitted(index, tmp_path, changes):
    outputs = fitted(index, tmp_path, **changes, calibration_fraction=0.25)
    assert json.loads(outputs.record.read_text())["images"] == N_TRAIN * 3 // 4


@BOTH
def test_outside_the_crop_the_map_repeats_its_border(index, tmp_path, changes):
    size = 24
    crop = {**changes, "input_size": size, "crop": 16, "smoothing": 0.0}
    scores, _ = score(fitted(index, tmp_path, **crop).checkpoint, index, device="cpu")
    map_NHW = scores.grids["map"]
    assert map_NHW.shape[1:] == (size, size)
    assert (map_NHW[:, :4] == map_NHW[:, 4:5]).all()
    assert (map_NHW[:, :, 20:] == map_NHW[:, :, 19:20]).all()
    images_NHW3 = load_images(index, "test", (size, size))
    changed_NHW3 = np.array(images_NHW3)
    changed_NHW3[:, :4], changed_NHW3[:, :, 20:] = 0, 255
    detector = detector_method(changes["method"]).load(load_checkpoint(tmp_path / "checkpoint.pt"), "cpu")
    maps = [detector(torch.from_numpy(np.array(images))).grids["map"] for images in (images_NHW3, changed_NHW3)]
    assert torch.equal(*maps)


def test_image_scores_of_patchcore_are_those_of_the_farthest_patch(index, tmp_path):
    found = {}
    for kind in ("max", "reweighted"):
        checkpoint = fitted(index, tmp_path / kind, **PATCHCORE, image_score=kind, smoothing=0.0).checkpoint
        scores, _ = score(checkpoint, index, device="cpu")
        found[kind] = scores.image_scores
    # The map is enlarged between the centres of cells, so that its largest value is that of a cell at most.
    assert (found["max"] >= scores.grids["map"].max(axis=(1, 2)) * (1 - 1e-5)).all()
    assert (found["reweighted"] < found["max"]).all()
    assert (found["reweighted"] > 0).all()


def test_squared_distances_are_smoothed_on_demand(index, tmp_path):
    grids = {}
    for squared in (False, True):
        changes = {**PATCHCORE, "squared_distances": squared, "upsampling": "nearest", "smoothing": 0.0}
        checkpoint = fitted(index, tmp_path / str(squared), **changes).checkpoint
        grids[squared] = score(checkpoint, index, device="cpu")[0].grids["map"]
    np.testing.assert_allclose(grids[True], grids[False] ** 2, rtol=1e-5)


def test_a_random_memory_bank_holds_training_patches(index, tmp_path):
    everything = load_checkpoint(fitted(index, tmp_path / "all", **PATCHCORE | {"coreset_fraction": 1.0}).checkpoint)
    some = load_checkpoint(fitted(index, tmp_path / "some", **PATCHCORE, sampling="random").checkpoint)
    assert len(some.state["bank"]) == len(everything.state["bank"]) / 2
    known = {tuple(patch.tolist()) for patch in everything.state["bank"]}
    assert {tuple(patch.tolist()) for patch in some.state["bank"]} <= known


def test_padim_needs_two_images(index, tmp_path):
    with pytest.raises(DataError, match="Expected at least 2 training images"):
        fitted(first_training_images(index, 1), tmp_path, **PADIM)


def test_patchcore_needs_enough_patches(index, tmp_path):
    message = "Expected a memory bank of at least 9 patches, because `neighbours` needs so many, but 1 training ima"
    with pytest.raises(DataError, match=message):
        fitted(first_training_images(index, 1), tmp_path, **PATCHCORE | {"coreset_fraction": 0.1})


def test_padim_refuses_more_dimensions_than_channels(index, tmp_path):
    with pytest.raises(ConfigError, match="Expected `dimensions` of at most"):
        fitted(index, tmp_path, **PADIM | {"dimensions": 10_000})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**PADIM, "crop": SIZE + 1}, f"expected `crop` of at most {SIZE} pixels, as `input_size`, but got {SIZE + 1}"),
        ({**PATCHCORE, "patch_size": 4}, "expected an odd `patch_size`, so that a patch has a centre, but got 4"),
        ({**PADIM, "coreset_fraction": 0.1}, "coreset_fraction"),
        ({**PATCHCORE, "dimensions": 10}, "dimensions"),
        ({**PATCHCORE, "coreset_fraction": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_unset_taps_are_the_paper_s_for_a_resnet():
    resnet = {"encoder": "timm/resnet18.tv_in1k", "taps": None}
    assert settings(**PADIM | resnet).taps == ["layer1", "layer2", "layer3"]
    assert settings(**PATCHCORE | resnet).taps == ["layer2", "layer3"]
    assert settings(**PATCHCORE | resnet, scales=2).taps is None
    assert settings(**PADIM, taps=None).taps is None
    assert settings(**PADIM | resnet).padding == "zeros"
