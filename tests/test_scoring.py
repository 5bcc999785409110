"""Scores of a small trained model: the model's own numbers, in the order of the index, whatever the batch."""

import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.cli import app
from sanflow.data.images import load_images, load_masks
from sanflow.errors import DataError
from sanflow.methods.checkpoints import load_checkpoint, save_checkpoint
from sanflow.methods.flow.detector import FlowDetector, load
from sanflow.scoring import sample_locations, score
from tests.helpers.small_training import N_TEST, SIZE, SmallTraining

YAML = """
datasets: {noisy: {kind: folder, root: ROOT}}
experiments:
  small: {method: sanflow, encoder: timm/test_efficientnet.r160_in1k, weights: random, input_size: 32,
          epochs: 1, passes_per_epoch: 1, warmup_epochs: 0.1, batch_size: 4, position_channels: 8, coupling_blocks: 1}
  other: {method: external, maps: /maps}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small training, done."""
    training = SmallTraining(tmp_path_factory.mktemp("scoring"))
    training(folder=training.folder / "trained", epochs=2, passes_per_epoch=4)
    return training


@pytest.fixture(scope="module")
def scored(small):
    return score(small.outputs.checkpoint, small.index, device="cpu", batch_size=4)


def test_scores_are_the_model_s_own(small, scored):
    scores, _ = scored
    detector = load(load_checkpoint(small.outputs.checkpoint), "cpu")
    encoder, model = detector.encoder, detector.model
    images_NHW3 = torch.from_numpy(load_images(small.index, "test", (SIZE, SIZE)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    images_N3HW = (images_NHW3.permute(0, 3, 1, 2) / 255 - mean) / std
    expected = model.score(encoder(images_N3HW), images_N3HW).grids
    assert list(scores.grids) == ["scale0", "scale1", "scale2"]
    for grid_Nhw, expected_Nhw in zip(scores.grids.values(), expected, strict=True):
        np.testing.assert_allclose(grid_Nhw, expected_Nhw.numpy(), rtol=1e-4, atol=1e-4)
    assert scores.kind == "log_prob"
    assert scores.paths == list(small.index.test.image)
    assert scores.labels.tolist() == [kind != "good" for kind in small.index.test.defect_type]
    assert scores.input_size == (SIZE, SIZE)


def test_constants_are_the_largest_of_normal_training_images(small, scored):
    detector = load(load_checkpoint(small.outputs.checkpoint), "cpu")
    encoder, model = detector.encoder, detector.model
    images_NHW3 = torch.from_numpy(load_images(small.index, "train", (SIZE, SIZE)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    images_N3HW = (images_NHW3.permute(0, 3, 1, 2) / 255 - mean) / std
    grids = model.score(encoder(images_N3HW), images_N3HW).grids
    assert list(scored[0].constants.values()) == pytest.approx([grid.max().item() for grid in grids], rel=1e-4)


def test_scores_do_not_depend_on_the_batch(small, scored):
    alone, _ = score(small.outputs.checkpoint, small.index, device="cpu", batch_size=1)
    for name, grid_Nhw in alone.grids.items():
        np.testing.assert_allclose(grid_Nhw, scored[0].grids[name], rtol=1e-4, atol=1e-4)


def test_where_memory_runs_out_smaller_batches_give_the_same_scores(small, scored, monkeypatch):
    sizes = []
    whole = FlowDetector.__call__

    def call(self, images_BHW3, *, extras=False):
        sizes.append(len(images_BHW3))
        if len(images_BHW3) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.30 GiB.")
        return whole(self, images_BHW3, extras=extras)

    monkeypatch.setattr(FlowDetector, "__call__", call)
    halved, extras = score(small.outputs.checkpoint, small.index, device="cpu", batch_size=8)
    assert len(small.index.test) == 6
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert halved.paths == scored[0].paths
    for name, grid_Nhw in halved.grids.items():
        np.testing.assert_allclose(grid_Nhw, scored[0].grids[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(extras.latents, scored[1].latents, rtol=1e-2, atol=1e-2)


def test_dark_squares_are_less_likely_than_noise(small, scored):
    grid_Nhw = scored[0].grids["scale0"]
    masks_Nhw = load_masks(small.index, size=grid_Nhw.shape[1:])
    assert grid_Nhw[masks_Nhw].mean() < grid_Nhw[~masks_Nhw].mean()


def test_extras_hold_variances_and_labelled_latents(small, scored):
    scores, extras = scored
    assert extras.variance.shape == (2 * N_TEST, *scores.grids["scale0"].shape[1:])
    assert (extras.variance > 0).all()
    assert extras.latent_scale == "scale1"
    assert len(extras.latents) == len(extras.latent_labels)
    masks_Nhw = load_masks(small.index, size=scores.grids["scale1"].shape[1:])
    assert extras.latent_labels.sum() == min(500, masks_Nhw.sum())
    assert np.isfinite(extras.latents).all()


def test_a_fixed_base_has_no_variance(tmp_path):
    small = SmallTraining(tmp_path)
    outputs = small(method="cflow-matched", epochs=1, warmup_epochs=0.5)
    _, extras = score(outputs.checkpoint, small.index, device="cpu")
    assert extras.variance is None
    assert extras.latents is not None


def test_provenance_says_what_was_scored(small, scored):
    provenance = scored[0].provenance
    assert provenance["experiment"]["encoder"] == "timm/test_efficientnet.r160_in1k"
    assert (provenance["dataset"], provenance["category"], provenance["seed"]) == ("noisy", "noise", 0)
    assert provenance["index_digest"] == small.index.digest
    assert provenance["checkpoint_digest"] == load_checkpoint(small.outputs.checkpoint).digest
    assert set(provenance["steps"]) == {"fit", "score"}
    assert provenance["steps"]["score"]["device"].startswith("cpu")


def test_where_memory_runs_out_the_rest_is_scored_in_smaller_batches(small, scored, monkeypatch):
    from sanflow.methods.flow.detector import FlowDetector

    whole, sizes = FlowDetector.__call__, []

    def with_little_memory(self, images_BHW3, *, extras=False):
        sizes.append(len(images_BHW3))
        if len(images_BHW3) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, images_BHW3, extras=extras)

    monkeypatch.setattr(FlowDetector, "__call__", with_little_memory)
    scores, _ = score(small.outputs.checkpoint, small.index, device="cpu", batch_size=8)
    assert sizes[:3] == [6, 3, 1]
    for name, grid in scored[0].grids.items():
        np.testing.assert_allclose(scores.grids[name], grid, rtol=1e-4, atol=1e-4)


def test_the_sample_is_seeded():
    masks_Nhw = np.random.RandomState(0).rand(10, 20, 20) > 0.5
    assert np.array_equal(sample_locations(masks_Nhw, 1), sample_locations(masks_Nhw, 1))
    assert not np.array_equal(sample_locations(masks_Nhw, 1), sample_locations(masks_Nhw, 2))


def test_a_checkpoint_of_another_category_is_refused(small, tmp_path):
    checkpoint = load_checkpoint(small.outputs.checkpoint)
    other = tmp_path / "other.pt"
    elsewhere = dataclasses.replace(checkpoint.provenance, category="stripes")
    save_checkpoint(other, dataclasses.replace(checkpoint, provenance=elsewhere))
    with pytest.raises(DataError, match="Expected a checkpoint of noisy/noise, but got one of noisy/stripes"):
        score(other, small.index, device="cpu")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_and_score_from_the_command_line(small, tmp_path):
    benchmark = tmp_path / "noisy.yaml"
    benchmark.write_text(YAML.replace("ROOT", str(small.folder / "data")))
    index, state = small.folder / "index.csv", tmp_path / "state"
    train = ["train", index, "--benchmark", benchmark, "--seed", 3, "--output", tmp_path / "checkpoint.pt"]
    train += ["--history", tmp_path / "train.json", "--state", state, "--device", "cpu", "--cache", tmp_path / "cache"]
    assert "one of small, other, but got 'smal'" in str(run(*train, "--experiment", "smal").exception)
    assert "Expected a method that is fitted, but `external` reads finished maps" in str(
        run(*train, "--experiment", "other").exception
    )
    done = run(*train, "--experiment", "small")
    assert done.exit_code == 0, done.output
    assert state.is_dir()
    files = ["--checkpoint", tmp_path / "checkpoint.pt", "--output", tmp_path / "scores.npz"]
    files += ["--extras", tmp_path / "extras.npz", "--state", state]
    done = run("score", index, *files, "--device", "cpu", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert not state.exists()
    assert Scores.load(tmp_path / "scores.npz").provenance["seed"] == 3
    assert Extras.load(tmp_path / "extras.npz").paths == list(small.index.test.image)
    assert "Expected a command to run" in str(run("gpu-exec").exception)
