"""Digests change with what the code and the configuration do, and with nothing else."""

import shutil

import pytest

from sanflow.provenance import PACKAGE, STAGES, code_digest, digest_of, environment


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "sanflow"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def append(path, text):
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def test_every_stage_lists_files_that_exist():
    missing = [entry for entries in STAGES.values() for entry in entries if not (PACKAGE / entry).exists()]
    assert not missing, missing


def test_editing_figures_changes_the_digest_of_figures_alone(package):
    append(next((package / "figures").glob("[a-z]*.py")), "\nEDITED = True\n")
    changed = {stage for stage in STAGES if code_digest(stage, package) != code_digest(stage)}
    assert changed == {"figures"}


def test_editing_the_flow_changes_training_and_scoring(package):
    append(package / "flow.py", "\nEDITED = True\n")
    changed = {stage for stage in STAGES if code_digest(stage, package) != code_digest(stage)}
    assert {"train", "score"} <= changed
    assert not changed & {"index", "evaluate", "tables", "figures"}


def test_comments_docstrings_layout_and_touching_change_nothing(package):
    path = package / "flow.py"
    path.write_text("# A remark.\n\n\n" + path.read_text("utf-8").replace('"""', '"""More words. ', 1), "utf-8")
    assert code_digest("train", package) == code_digest("train")


def test_a_function_of_a_docstring_alone_still_has_a_body(tmp_path):
    (tmp_path / "official.py").write_text('def nothing():\n    """Says it."""\n')
    assert len(code_digest("import_official", tmp_path)) == 64


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_environment_names_the_versions():
    found = environment()
    assert found["packages"]["numpy"]
    assert found["python"].startswith("3.")
    assert found["sanflow"]
