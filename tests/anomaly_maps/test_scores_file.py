"""The scores file: what goes in comes out, and no damage passes unseen."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from sanflow.anomaly_maps import scores_file as scores_module
from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.errors import DataError, IntegrityError


def example(**changes):
    rng = np.random.default_rng(0)
    values = {
        "kind": "log_prob",
        "grids": {"scale0": rng.normal(size=(3, 8, 8)), "scale1": rng.normal(size=(3, 4, 4))},
        "constants": {"scale0": -0.5, "scale1": -0.25},
        "paths": ["test/good/0.png", "test/crack/0.png", "test/Ölfleck/1.png"],
        "labels": [False, True, True],
        "defect_types": ["good", "crack", "Ölfleck"],
        "input_size": [64, 32],
        "provenance": {"seed": 3, "index_digest": "ab"},
        "cost": {"images_per_second": 7.5},
    }
    return Scores(**(values | changes))


def test_scores_survive_the_file(tmp_path):
    before = example()
    before.save(tmp_path / "scores.npz")
    after = Scores.load(tmp_path / "scores.npz")
    for field in dataclasses.fields(Scores):
        if field.name not in ("grids", "labels"):
            assert getattr(after, field.name) == getattr(before, field.name), field.name
    assert list(after.grids) == ["scale0", "scale1"]
    example(held_out_scores=[0.5, 1.5, 2.0], held_out_parts=[0, 1, 1]).save(tmp_path / "scores.npz")
    held_out = Scores.load(tmp_path / "scores.npz")
    assert (held_out.held_out_scores.tolist(), held_out.held_out_parts.tolist()) == ([0.5, 1.5, 2.0], [0, 1, 1])
    for name, grid in after.grids.items():
        assert grid.dtype == np.float32
        np.testing.assert_array_equal(grid, before.grids[name])
    np.testing.assert_array_equal(after.labels, [False, True, True])
    assert after.input_size == (64, 32)


def test_extras_survive_the_file(tmp_path):
    Extras(["a", "b"], np.ones((2, 3, 3)), np.eye(4), np.array([1, 0, 0, 1]), "scale1").save(tmp_path / "extras.npz")
    after = Extras.load(tmp_path / "extras.npz")
    assert (after.paths, after.latent_scale) == (["a", "b"], "scale1")
    assert after.variance.dtype == after.latents.dtype == np.float16
    np.testing.assert_array_equal(after.latents, np.eye(4))
    np.testing.assert_array_equal(after.latent_labels, [True, False, False, True])


def test_extras_may_be_empty(tmp_path):
    Extras(["a"]).save(tmp_path / "extras.npz")
    after = Extras.load(tmp_path / "extras.npz")
    assert after.variance is None
    assert after.latents is None
    assert after.latent_labels is None


def test_any_changed_byte_is_found_or_harmless(tmp_path):
    path = tmp_path / "scores.npz"
    before = example()
    before.save(path)
    content = path.read_bytes()
    found = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            after = Scores.load(path)
        except IntegrityError:
            found += 1
        else:
            np.testing.assert_array_equal(after.grids["scale0"], before.grids["scale0"])
            assert after.paths == before.paths
    assert found > len(content) / 7 / 2


def test_a_truncated_file_is_found(tmp_path):
    path = tmp_path / "scores.npz"
    example().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(IntegrityError, match=r"scores\.npz, but it is damaged.*Delete it"):
        Scores.load(path)


def test_changed_content_is_found(tmp_path):
    path = tmp_path / "scores.npz"
    example().save(path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["grid_scale0"] = arrays["grid_scale0"] + 1
    np.savez(path, **arrays)
    with pytest.raises(IntegrityError, match="changed by hand"):
        Scores.load(path)


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "scores.npz"
    np.savez(path, header=np.array([{"file": "scores"}], dtype=object), digest=np.array(""))
    with pytest.raises(IntegrityError, match="damaged"):
        Scores.load(path)


def test_another_kind_or_format_is_refused(tmp_path, monkeypatch):
    Extras(["a"]).save(tmp_path / "extras.npz")
    with pytest.raises(IntegrityError, match=r"Expected a file of scores, format 1, .* got 'extras'"):
        Scores.load(tmp_path / "extras.npz")
    monkeypatch.setattr(scores_module, "FORMAT", 99)
    example().save(tmp_path / "scores.npz")
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="format 99"):
        Scores.load(tmp_path / "scores.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"scores at .*nowhere\.npz"):
        Scores.load(tmp_path / "nowhere.npz")


def test_the_file_holds_no_pickle_and_a_readable_header(tmp_path):
    example().save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["header"]))["provenance"]["seed"] == 3
    assert zipfile.ZipFile(tmp_path / "scores.npz").testzip() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "logits"}, "kind to be one of"),
        ({"grids": {}, "constants": {}}, "one grid per scale"),
        ({"kind": "anomaly_map", "constants": {}}, "single one named 'map'"),
        ({"grids": {"scale0": np.zeros((2, 4, 4))}}, r"\(3, h, w\)"),
        ({"labels": [True]}, "a label and a defect type"),
        ({"paths": ["a", "a", "b"]}, "occurs twice"),
        ({"constants": {"scale0": 0.0}}, "calibration constants"),
    ],
)
def test_what_does_not_agree_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        example(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variance": np.zeros((2, 4, 4))}, "variance maps"),
        ({"latents": np.zeros((2, 4))}, "together with their labels"),
        ({"latents": np.zeros((2, 4)), "latent_labels": np.zeros(3)}, "M labels"),
    ],
)
def test_extras_that_do_not_agree_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Extras(["a"], **changes)


def test_scores_that_are_not_finite_are_refused():
    grid = np.zeros((3, 2, 2))
    grid[1, 0, 0] = np.nan
    bad = example(grids={"scale0": grid}, constants={"scale0": 0.0})
    with pytest.raises(DataError, match=r"1 of 3 images, first test/crack/0\.png"):
        bad.require_finite("scores.npz")
    example().require_finite()
