"""Digests change with what the code and the configuration do, and with nothing else."""

import json
import os
import shutil
import subprocess

import pytest

from sanflow.encoders.bundled import SHA256
from sanflow.methods.flow.settings import OfficialExperiment, SanflowExperiment
from sanflow.methods.method import DetectorMethod
from sanflow.methods.registry import detector_method, methods
from sanflow.provenance import (
    NEUTRAL,
    PACKAGE,
    STAGES,
    Provenance,
    Step,
    code_digest,
    digest_of,
    environment,
    fit_digest,
    modules_digest,
    modules_of,
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
    found = modules_of((*STAGES["score"], *detector_method("sanflow").load_modules))
    assert {"sanflow.scoring", "sanflow.methods.flow.coupling_flow", "sanflow.data.decode"} <= found
    assert not {module for module in found if module.startswith(("sanflow.report", "sanflow.errors", "sanflow.cli"))}


def test_editing_figures_changes_the_digest_of_figures_alone(package):
    append(next((package / "report/figures").glob("[a-z]*.py")), "\nEDITED = True\n")
    changed = {stage for stage in STAGES if code_digest(stage, package=package) != code_digest(stage)}
    assert changed == {"figures"}


def test_editing_a_page_changes_the_digest_of_what_writes_it(package):
    append(package / "report/explorer/page/assets/grid.js", "// Edited.\n")
    changed = {stage for stage in STAGES if code_digest(stage, package=package) != code_digest(stage)}
    assert changed == {"explorer"}


def test_editing_the_flow_changes_training_and_scoring_of_flows_alone(package):
    append(package / "methods/flow/coupling_flow.py", "\nEDITED = True\n")
    method = detector_method("sanflow")
    assert modules_digest(method.fit_modules, package) != modules_digest(method.fit_modules)
    assert code_digest("score", method.load_modules, package) != code_digest("score", method.load_modules)
    assert not [stage for stage in STAGES if code_digest(stage, package=package) != code_digest(stage)]


def test_the_registry_of_methods_and_settings_decide_no_fit():
    """A new method must not train the others again."""
    for method in methods().values():
        if isinstance(method, DetectorMethod):
            found = modules_of(method.fit_modules)
            assert not {"sanflow.methods.registry", "sanflow.cli", "sanflow.pipeline.benchmark"} & found


def test_comments_docstrings_layout_and_touching_change_nothing(package):
    path = package / "methods/flow/coupling_flow.py"
    path.write_text("# A remark.\n\n\n" + path.read_text("utf-8").replace('"""', '"""More words. ', 1), "utf-8")
    modules = detector_method("sanflow").fit_modules
    assert modules_digest(modules, package) == modules_digest(modules)


def test_a_function_of_a_docstring_alone_still_has_a_body(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('def nothing():\n    """Says it."""\n')
    monkeypatch.setitem(STAGES, "tables", ("sanflow.a",))
    assert len(code_digest("tables", package=tmp_path)) == 64


def experiment(**changes):
    return SanflowExperiment.model_validate({"method": "sanflow", "encoder": "torchvision/squeezenet1_0", **changes})


def test_another_weights_file_under_the_same_name_fits_again(tmp_path):
    path = tmp_path / "encoder.pth"
    settings = experiment(weights=str(path))
    missing = fit_digest(settings, "d", "c")
    path.write_bytes(b"one")
    first = fit_digest(settings, "d", "c")
    os.utime(path, (1, 1))
    assert fit_digest(settings, "d", "c") == first  # touched, not changed
    path.write_bytes(b"two")
    assert len({missing, first, fit_digest(settings, "d", "c")}) == 3


def test_another_digest_of_the_bundled_weights_trains_and_scores_again(package):
    path = package / "encoders/bundled.py"
    path.write_text(path.read_text("utf-8").replace(SHA256, "0" * 64), "utf-8")
    method = detector_method("sanflow")
    assert modules_digest(method.fit_modules, package) != modules_digest(method.fit_modules)
    assert code_digest("score", method.load_modules, package) != code_digest("score", method.load_modules)


def test_another_file_of_the_authors_imports_again(tmp_path):
    path = tmp_path / "bottle.pt"
    settings = OfficialExperiment(
        method="official", encoder="timm/x.y", official_weights=str(tmp_path / "{category}.pt")
    )
    path.write_bytes(b"one")
    first = fit_digest(settings, "d", "bottle")
    path.write_bytes(b"two")
    assert fit_digest(settings, "d", "bottle") != first


def test_a_label_changes_no_fit():
    assert fit_digest(experiment(label="Ours"), "d", "c") == fit_digest(experiment(), "d", "c")
    assert fit_digest(experiment(epochs=10), "d", "c") != fit_digest(experiment(), "d", "c")


def test_a_provenance_survives_a_file():
    provenance = Provenance("d", "c", "e", {"epochs": 3}, "i", "k", seed=1).with_step(
        "fit", Step("code", "cpu", "fp32")
    )
    again = Provenance.from_dict(json.loads(json.dumps(provenance.to_dict())))
    assert again == provenance
    assert provenance.with_step("score", Step("other"), epoch=2).epoch == 2


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_environment_names_the_versions():
    found = environment()
    assert found["packages"]["numpy"]
    assert found["python"].startswith("3.")
    assert found["sanflow"]


def test_the_commit_is_that_of_sanflow_and_of_no_repository_around_it(tmp_path, monkeypatch):
    """As where the package is installed into an environment within the folder of another project."""
    installed = tmp_path / "project" / ".venv" / "sanflow"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    (tmp_path / "project" / "analysis.py").touch()

    def git(*arguments):
        author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", "-C", tmp_path / "project", *author, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", "analysis.py")
    git("commit", "--quiet", "--message", "theirs")
    monkeypatch.setattr("sanflow.provenance.PACKAGE", installed)
    environment.cache_clear()
    try:
        assert (environment()["git_commit"], environment()["git_dirty"]) == (None, False)
        git("add", "--force", ".venv")  # a checkout of sanflow within a larger one
        git("commit", "--quiet", "--message", "ours too")
        environment.cache_clear()
        assert environment()["git_commit"] == git("rev-parse", "HEAD")
    finally:
        environment.cache_clear()
