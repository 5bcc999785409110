"""Digests change with what the code and the configuration do, and with nothing else."""

import os
import shutil

import pytest

from sanflow.encoders.bundled import SHA256
from sanflow.provenance import (
    NEUTRAL,
    PACKAGE,
    STAGES,
    code_digest,
    digest_of,
    environment,
    listing_digest,
    modules_of,
    training_digest,
)


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "sanflow"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def append(path, text):
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def test_neutral_modules_exist():
    for module in NEUTRAL:
        path = PACKAGE.joinpath(*module.split(".")[1:])
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


def test_a_stage_depends_on_what_its_modules_import():
    found = modules_of(STAGES["score"])
    assert {"sanflow.scoring", "sanflow.methods.flow.coupling_flow", "sanflow.data.decode"} <= found
    assert not {module for module in found if module.startswith(("sanflow.report", "sanflow.errors", "sanflow.cli"))}


def test_editing_figures_changes_the_digest_of_figures_alone(package):
    append(next((package / "report/figures").glob("[a-z]*.py")), "\nEDITED = True\n")
    changed = {stage for stage in STAGES if code_digest(stage, package) != code_digest(stage)}
    assert changed == {"figures"}


def test_editing_the_flow_changes_training_and_scoring(package):
    append(package / "methods/flow/coupling_flow.py", "\nEDITED = True\n")
    changed = {stage for stage in STAGES if code_digest(stage, package) != code_digest(stage)}
    assert {"train", "score"} <= changed
    assert not changed & {"index", "evaluate", "tables", "figures"}


def test_comments_docstrings_layout_and_touching_change_nothing(package):
    path = package / "methods/flow/coupling_flow.py"
    path.write_text("# A remark.\n\n\n" + path.read_text("utf-8").replace('"""', '"""More words. ', 1), "utf-8")
    assert code_digest("train", package) == code_digest("train")


def test_a_function_of_a_docstring_alone_still_has_a_body(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('def nothing():\n    """Says it."""\n')
    monkeypatch.setitem(STAGES, "tables", ("sanflow.a",))
    assert len(code_digest("tables", tmp_path)) == 64


def test_another_weights_file_under_the_same_name_trains_again(tmp_path):
    path = tmp_path / "encoder.pth"
    settings = {"encoder": "torchvision/squeezenet1_0", "weights": str(path)}
    missing = training_digest(settings)
    path.write_bytes(b"one")
    first = training_digest(settings)
    os.utime(path, (1, 1))
    assert training_digest(settings) == first  # touched, not changed
    path.write_bytes(b"two")
    assert len({missing, first, training_digest(settings)}) == 3


@pytest.mark.parametrize("weights", ["pretrained", "random", "bundled"])
def test_weights_without_a_file_of_the_users_are_settled_by_the_settings(weights):
    settings = {"encoder": "timm/tf_efficientnet_lite0.in1k", "weights": weights}
    assert training_digest(settings) == digest_of([settings, [None, None]])


def test_another_digest_of_the_bundled_weights_trains_and_scores_again(package):
    path = package / "encoders/bundled.py"
    path.write_text(path.read_text("utf-8").replace(SHA256, "0" * 64), "utf-8")
    assert all(code_digest(stage, package) != code_digest(stage) for stage in ("train", "score"))


def test_another_file_of_the_authors_imports_again(tmp_path):
    path = tmp_path / "bottle.pt"
    settings = {"encoder": "timm/x.y", "weights": "pretrained", "official_weights": str(path)}
    path.write_bytes(b"one")
    first = training_digest(settings)
    path.write_bytes(b"two")
    assert training_digest(settings) != first


def test_a_listing_notices_names_and_sizes_and_times_if_asked(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"1")
    plain, timed = listing_digest(tmp_path), listing_digest(tmp_path, times=True)
    os.utime(tmp_path / "a/1.png", (1, 1))
    assert (listing_digest(tmp_path) == plain, listing_digest(tmp_path, times=True) == timed) == (True, False)
    (tmp_path / "a/1.png").write_bytes(b"12")
    assert listing_digest(tmp_path) != plain
    assert listing_digest(tmp_path / "missing") == digest_of([])


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_environment_names_the_versions():
    found = environment()
    assert found["packages"]["numpy"]
    assert found["python"].startswith("3.")
    assert found["sanflow"]
