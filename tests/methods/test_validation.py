"""The criterion by hand, on held-out parts alone; the choice of an epoch, which no test image or mask can reach."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sanflow.data.held_out import split_training
from sanflow.errors import ConfigError, DataError, TrainingError
from sanflow.evaluation.metrics import aupro, auroc, average_precision
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.methods.method import Output
from sanflow.methods.validation import (
    CRITERION,
    MOST_PARTS,
    PREFIX,
    ValidationImages,
    best_epoch,
    index_of,
    is_out_of_patience,
    validate,
    validate_checkpoint,
    validation_images,
)
from tests.helpers.small_training import SIZE, SmallTraining, small_experiment

CHOOSING = {"choose_epoch": "validation", "keep_every": 1, "calibration_fraction": 0.4, "batch_size": 4}


@pytest.fixture(scope="module")
def train_small(tmp_path_factory):
    return SmallTraining(tmp_path_factory.mktemp("validation"))


@pytest.fixture(scope="module")
def chosen(train_small):
    """A training of four epochs that chose one."""
    return train_small(**CHOOSING)


class Darkness:
    """A detector that finds what is dark; its grids are log-probabilities or finished maps."""

    input_size, constants, device, precision = (4, 4), {"scale0": 0.0}, "cpu", "fp32"

    def __init__(self, kind="anomaly_map", image_scores=None):
        self.kind, self.image_scores = kind, image_scores

    def __call__(self, images_BHW3, *, extras=False):
        dark_BHW = -images_BHW3[..., 0].float()
        if self.kind == "log_prob":
            return Output({"scale0": -dark_BHW - 255})
        return Output({"map": dark_BHW}, image_scores=self.image_scores)


def images():
    """Two plain parts of grey 200 with a darker pixel, and one painted: two pixels at 10 and one at 190."""
    plain = np.full((3, 4, 4, 3), 200, np.uint8)
    plain[0, 0, 0] = 150
    plain[2, 1, 1:3] = 10
    plain[2, 2, 1] = 190
    masks = np.zeros((3, 4, 4), bool)
    masks[2, 1, 1:3] = masks[2, 2, 1] = True
    return ValidationImages(plain, masks)


def test_the_measures_by_hand():
    found = validate(Darkness(), images())
    # Painted pixels rank 1, 2 and, after the dark normal one, 4: precisions 1, 1 and 3 / 4.
    assert found["pixel_ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["image_auroc"] == 1
    assert "log_prob" not in found
    assert validate(Darkness(image_scores=torch.tensor([5.0, 0.0, 1.0])), images())["image_auroc"] == 0.5


def test_a_painted_region_counts_alike_whatever_its_size():
    """Two regions of 1 and 9 pixels: the small one is darkest, the large one as light as the plain pixels."""
    pixels = np.full((4, 4, 4, 3), 200, np.uint8)
    masks = np.zeros((4, 4, 4), bool)
    masks[2, 0, 0] = masks[3, :3, :3] = True
    pixels[2, 0, 0] = 10
    # Overlap 1/2 from no false positive on, then all at a false-positive rate of 1: a line from 1/2 to 1.
    area, chance = 0.3 * 0.5 + 0.5 * 0.3**2 / 2, 0.3**2 / 2
    found = validate(Darkness(), ValidationImages(pixels, masks))
    assert found["region_overlap"] == pytest.approx(0.5 * (1 + (area - chance) / (0.3 - chance)))


def test_the_likelihood_is_that_of_the_plain_parts_alone():
    found = validate(Darkness("log_prob"), images())
    # 31 plain pixels at 200 - 255 and one at 150 - 255
    assert found["log_prob"] == pytest.approx((31 * -55 - 105) / 32)


def test_the_measures_are_those_of_the_evaluation():
    """`methods` may not import `evaluation`, so the two are computed apart."""
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    masks = np.zeros((12, 16, 16), bool)
    masks[4:, 3:9, 2:7] = True
    masks[6:, 9:14, 6] = True
    detector = Darkness()
    detector.input_size = (16, 16)
    found = validate(detector, ValidationImages(pixels, masks))
    maps = -pixels[..., 0].astype(float)
    assert found["pixel_ap"] == pytest.approx(average_precision(maps, masks), abs=1e-12)
    assert found["image_auroc"] == pytest.approx(auroc(maps.max(axis=(1, 2)), masks.any(axis=(1, 2))), abs=1e-12)
    # One region an image. McClish: the area between chance, limit / 2, and all becomes 0.5 to 1.
    limit = 0.3
    chance, area = limit**2 / 2, limit * aupro(maps, masks, limit)
    assert found["region_overlap"] == pytest.approx(0.5 * (1 + (area - chance) / (limit - chance)), abs=1e-9)


def test_scores_that_are_not_finite_are_refused():
    diverged = Darkness("log_prob")
    diverged.constants = {"scale0": float("nan")}
    with pytest.raises(TrainingError, match=r"Expected finite scores of the held-out parts.*the model has diverged"):
        validate(diverged, images())


def test_each_part_is_used_plain_and_with_each_kind_that_shows(train_small):
    index = split_training(train_small.index, 0.2, seed=0)[1]
    found = validation_images(index, (SIZE, SIZE), seed=0)
    n_parts = len(index.test)
    assert not found.masks_NHW[:n_parts].any()
    assert n_parts < len(found.images_NHW3) <= 5 * n_parts
    assert found.is_painted_N[n_parts:].all()
    again, other = (validation_images(index, (SIZE, SIZE), seed=seed) for seed in (0, 1))
    assert np.array_equal(found.images_NHW3, again.images_NHW3)
    assert not np.array_equal(found.masks_NHW[n_parts:][:4], other.masks_NHW[n_parts:][:4])


def test_many_parts_are_thinned(train_small, monkeypatch):
    held_out = split_training(train_small.index, 0.5, seed=0)[1]
    monkeypatch.setattr("sanflow.methods.validation.KINDS", ("stain",))
    many = dataclasses.replace(held_out, table=held_out.table.iloc[[0] * 70])
    found = validation_images(many, (SIZE, SIZE), seed=0)
    assert MOST_PARTS / 2 < (~found.is_painted_N).sum() <= MOST_PARTS


def test_parts_on_which_nothing_shows_are_refused(train_small, monkeypatch):
    monkeypatch.setattr("sanflow.methods.validation.KINDS", ())
    with pytest.raises(DataError, match=r"on which a painted defect can be seen, but none can .*choose_epoch: last"):
        validation_images(split_training(train_small.index, 0.5, seed=0)[1], (SIZE, SIZE), seed=0)


def history(*values):
    return [{"epoch": epoch} | ({} if v is None else {PREFIX + CRITERION: v}) for epoch, v in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "best", "patience"),
    [
        ((0.5, 0.7, 0.6), 2, {1: True, 2: False}),
        ((0.5, 0.7, 0.7), 2, {1: True, 2: False}),  # as good is not better
        ((None, 0.5, None, 0.4, None, 0.3), 2, {1: True, 2: True, 3: False}),
        ((0.1, 0.2, 0.3), 3, {1: False}),
    ],
)
def test_the_choice_and_the_patience_by_hand(values, best, patience):
    assert best_epoch(history(*values)) == best
    for n, over in patience.items():
        assert is_out_of_patience(history(*values), n) == over
    assert not is_out_of_patience(history(*values), None)


def test_the_chosen_epoch_is_the_checkpoint(chosen):
    outputs, record = chosen, json.loads(chosen.record.read_text())
    values = [epoch[PREFIX + CRITERION] for epoch in record["history"]]
    checkpoint = load_checkpoint(outputs.checkpoint)
    assert record["epoch"] == checkpoint.provenance.epoch == 1 + int(np.argmax(values))
    kept = load_checkpoint(outputs.kept / f"epoch{record['epoch']:02d}.pt")
    assert checkpoint.digest == kept.digest
    assert kept.provenance.steps["fit"].details[PREFIX + CRITERION] == max(values)
    assert record["seconds"]["validation"] > 0
    assert sorted(path.name for path in outputs.kept.iterdir()) == [f"epoch{n:02d}.pt" for n in (1, 2, 3, 4)]


def test_the_last_epoch_is_a_candidate_too(train_small):
    outputs = train_small(**CHOOSING | {"keep_every": 3})
    assert sorted(path.name for path in outputs.kept.iterdir()) == ["epoch03.pt", "epoch04.pt"]


def test_choosing_changes_no_weight_of_the_training(train_small, chosen):
    """With the same parts held out, the last epoch has the same weights whether or not an epoch is chosen."""
    last = train_small(calibration_fraction=0.4)
    first, second = (load_checkpoint(path).state for path in (chosen.kept / "epoch04.pt", last.checkpoint))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_patience_ends_the_training(train_small, monkeypatch):
    falling = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr("sanflow.methods.flow.training.loop.validate", lambda *_: {CRITERION: next(falling)})
    seen: list[int] = []
    outputs = train_small(**CHOOSING, patience=2, epochs=6, on_step=seen.append)
    record = json.loads(outputs.record.read_text())
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4]
    assert (record["epoch"], load_checkpoint(outputs.checkpoint).provenance.epoch) == (2, 2)
    assert record["images"] == 4 * seen[-1] < 4 * record["steps"]
    assert len(list(outputs.kept.iterdir())) == 4
    # A lost checkpoint is written again without training; the chosen epoch is in the saved state.
    outputs.checkpoint.unlink()
    train_small(
        folder=outputs.checkpoint.parent,
        **CHOOSING,
        patience=2,
        epochs=6,
        on_step=lambda step: pytest.fail("trained again"),
    )
    assert load_checkpoint(outputs.checkpoint).provenance.epoch == 2


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_training_chooses_the_same_epoch(train_small, chosen, tmp_path, stop):
    def on_step(step):
        if step == stop:
            raise Stop

    with pytest.raises(Stop):
        train_small(folder=tmp_path, save_every_seconds=0.0, on_step=on_step, **CHOOSING)
    seen: list[int] = []
    again = train_small(folder=tmp_path, on_step=seen.append, **CHOOSING)
    assert len(seen) < 4
    first, second = (json.loads(outputs.record.read_text()) for outputs in (chosen, again))
    assert (first["history"], first["epoch"]) == (second["history"], second["epoch"])
    states = [load_checkpoint(outputs.checkpoint).state for outputs in (chosen, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_no_test_image_label_or_mask_reaches_the_choice(train_small, chosen, tmp_path, monkeypatch):
    """The same epoch with the test labels exchanged, and with all test images and masks deleted."""
    expected = json.loads(chosen.record.read_text())
    table = train_small.index.table.copy()
    test = table.split == "test"
    labels = ["label", "defect_type", "mask", "mask_sha256", "defect_pixels"]
    table.loc[test, labels] = table.loc[test, labels].to_numpy()[::-1]
    shutil.copytree(train_small.index.root / "noise" / "train", tmp_path / "noise" / "train")
    other = dataclasses.replace(train_small.index, table=table, root=tmp_path)
    assert other.digest != train_small.index.digest
    monkeypatch.setattr(train_small, "index", other)
    found = json.loads(train_small(**CHOOSING).record.read_text())
    assert (found["history"], found["epoch"]) == (expected["history"], expected["epoch"])


def test_half_of_the_held_out_parts_calibrates(train_small):
    from sanflow.methods.method import FitJob, Outputs
    from sanflow.tracking import Tracker

    def job(**changes):
        outputs = Outputs(*[train_small.folder] * 3)
        return FitJob(small_experiment(**changes), "small", train_small.index, 0, outputs, Tracker())

    choosing, plain = job(**CHOOSING), job(calibration_fraction=0.4)
    assert (len(choosing.choosing.test), len(choosing.held_out.test)) == (2, 3)
    assert plain.choosing is None
    assert len(plain.held_out.test) == 5
    assert set(choosing.choosing.test.image) | set(choosing.held_out.test.image) == set(plain.held_out.test.image)


def test_a_finished_run_is_validated_by_the_same_half(train_small, chosen):
    record = json.loads(chosen.record.read_text())
    found = validate_checkpoint(chosen.kept / "epoch03.pt", train_small.index, device="cpu")
    assert found == {
        name.removeprefix("validation_"): value
        for name, value in record["history"][2].items()
        if name.startswith("validation_")
    }


def test_the_command_compares_finished_runs(train_small, chosen):
    from sanflow.cli import app

    table = train_small.folder / "index.csv"
    assert index_of(chosen.checkpoint) == table
    result = CliRunner().invoke(
        app, ["validate", str(chosen.checkpoint.parent), str(chosen.kept / "epoch01.pt"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(chosen.record.read_text())
    for epoch in (record["epoch"], 1):
        assert f"{record['history'][epoch - 1][PREFIX + CRITERION]:.4f}" in result.output


def test_a_checkpoint_away_from_its_index_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"but found no index\.csv above .* Name the folder of a run"):
        index_of(tmp_path / "checkpoint.pt")


def test_a_run_without_held_out_parts_and_one_of_other_images_are_refused(train_small, tmp_path):
    outputs = train_small(epochs=1, warmup_epochs=0.5)
    with pytest.raises(ConfigError, match=r"Expected a fit with held-out parts, but .* has `calibration_fraction: 0`"):
        validate_checkpoint(outputs.checkpoint, train_small.index, device="cpu")
    other = dataclasses.replace(train_small.index, table=train_small.index.table.iloc[1:])
    with pytest.raises(DataError, match=r"as it is indexed .* Name the index that it was fitted with"):
        validate_checkpoint(outputs.checkpoint, other, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_every": None}, "expected `keep_every` with `choose_epoch: validation`"),
        ({"calibration_fraction": 0.0}, "expected `calibration_fraction` above 0"),
        ({"choose_epoch": "last", "patience": 2}, "expected `choose_epoch: validation` with `patience`"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_experiment(**CHOOSING | changes)


def test_with_patience_no_epoch_is_promised_to_be_scored():
    assert small_experiment(**CHOOSING).kept_epochs == [1, 2, 3, 4]
    assert small_experiment(**CHOOSING | {"keep_every": 3}).kept_epochs == [3, 4]
    assert small_experiment(**CHOOSING | {"keep_every": 3, "patience": 1}).kept_epochs == []
    assert small_experiment(keep_every=3).kept_epochs == [3]
