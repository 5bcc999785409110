"""Environments: the lock, the conda file and the container hold what pyproject.toml asks for."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKED = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\]*)?(?: \\)?\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)", re.MULTILINE
)

# Tools of this repository; images under a licence that forbids commercial use.
NOT_LOCKED = {"dev", "elpv"}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def locked(root):
    text = (root / "envs/requirements.lock").read_text()
    return {canonicalize_name(name): (Version(version), hashes) for name, version, hashes in LOCKED.findall(text)}


def test_the_lock_holds_every_dependency_at_a_version_that_pyproject_allows(project, locked):
    extras = project["optional-dependencies"]
    wanted = [line for name in extras if name not in NOT_LOCKED for line in extras[name]]
    assert len(wanted) >= 4
    for line in [*project["dependencies"], *wanted]:
        requirement = Requirement(line)
        assert canonicalize_name(requirement.name) in locked, f"{line} is not in envs/requirements.lock; make it anew"
        version, _ = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"envs/requirements.lock has {requirement.name} {version}, not {line}"


def test_every_locked_package_is_held_to_a_hash(root, locked):
    pins = re.findall(r"^[A-Za-z0-9._-]+==", (root / "envs/requirements.lock").read_text(), re.MULTILINE)
    assert len(pins) == len(locked) > 100
    assert [name for name, (_, hashes) in locked.items() if not hashes] == []


def test_the_lock_names_no_index_and_no_local_path(root):
    text = (root / "envs/requirements.lock").read_text()
    assert re.findall(r"https?://|file://|--index-url|--find-links", text) == []


def test_conda_and_container_take_the_lock_and_a_python_that_pyproject_allows(root, project):
    environment = yaml.safe_load((root / "envs/sanflow.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--require-hashes", "--requirement requirements.lock"]
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    container = (root / "envs/Containerfile").read_text()
    assert f"python:{python.removeprefix('python=')}-slim" in container
    assert "--require-hashes --requirement" in container
    assert (
        Version(f"{python.removeprefix('python=')}.0") in Requirement(f"python{project['requires-python']}").specifier
    )


def test_the_snakefile_and_the_profile_name_the_image_of_this_version(root, project):
    image = f"ghcr.io/sanflow/sanflow:{project['version']}"
    assert f'container: "docker://{image}"' in (root / "workflow/Snakefile").read_text()
    assert f"container-image: {image}" in (root / "profiles/kubernetes/config.yaml").read_text()
    assert f"--tag {image}" in (root / "envs/Containerfile").read_text()


@pytest.mark.slow
def test_the_lock_can_be_installed(root, tmp_path):
    """A new environment would take every package at its hash, and the list lacks none that another one needs."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    lock = root / "envs/requirements.lock"
    answer = subprocess.run(
        [
            tmp_path / "venv/bin/python",
            *["-m", "pip", "install", "--dry-run", "--require-hashes", "--requirement"],
            lock,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "Would install" in answer.stdout


def test_the_command_tells_its_version(project):
    done = subprocess.run(["sanflow", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sanflow {project['version']}\n"


def test_the_lock_names_the_extras_that_it_holds(root, project):
    header = (root / "envs/requirements.lock").read_text().partition("==")[0]
    assert set(re.findall(r"--extra (\w+)", header)) == set(project["optional-dependencies"]) - NOT_LOCKED
