"""Drills: damaged checkpoint, scores, index and image cache are detected, named, and remade on request."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.workflow import environment, snakemake, write_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1500)]
SANFLOW = Path(sys.executable).parent / "sanflow"
CATEGORY = "results/small/parts/nut"
RUN = f"{CATEGORY}/tiny/seed0"


@pytest.fixture(scope="module")
def pristine(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    write_benchmark(folder, experiments=("tiny",))
    snakemake(root, folder)
    return folder


@pytest.fixture
def work(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "work")


def flip(path):
    """Change bytes in the middle of a file, as a bad disk would."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for position in range(middle, middle + 64):
        content[position % len(content)] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path):
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def call(root, work, *arguments):
    return subprocess.run(
        [SANFLOW, *map(str, arguments)], cwd=work, env=environment(root), capture_output=True, text=True, check=False
    )


SCORE = (
    "score",
    f"{CATEGORY}/index.csv",
    "--checkpoint",
    f"{RUN}/checkpoint.pt",
    "--output",
    "s.npz",
    "--extras",
    "e.npz",
)
SCORE = (*SCORE, "--device", "cpu", "--cache", "data/.cache")
EVALUATE = ("evaluate", f"{CATEGORY}/index.csv", "--scores", f"{RUN}/scores.npz", "--output", "m.json")


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        (f"{RUN}/checkpoint.pt", SCORE),
        (f"{RUN}/scores.npz", EVALUATE),
        (f"{CATEGORY}/index.csv", EVALUATE),
        (f"{CATEGORY}/index.json", EVALUATE),
    ],
)
def test_a_damaged_file_is_named_with_exit_code_7(root, work, file, arguments, damage):
    damage(work / file)
    answer = call(root, work, *arguments)
    assert answer.returncode == 7, answer.stdout + answer.stderr
    assert Path(file).name in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("file", "rule"),
    [(f"{CATEGORY}/index.csv", "index"), (f"{RUN}/checkpoint.pt", "train"), (f"{RUN}/scores.npz", "score")],
)
def test_a_damaged_file_is_remade_on_request(root, work, file, rule):
    before = json.loads((work / RUN / "metrics.json").read_text())
    cut(work / file)
    cut(work / RUN / "metrics.json")
    snakemake(root, work, "--forcerun", rule, "evaluate")
    after = json.loads((work / RUN / "metrics.json").read_text())
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert before[name] == after[name]


def test_a_damaged_image_cache_is_noticed_and_made_again(root, work):
    expected = call(root, work, *SCORE)
    assert expected.returncode == 0, expected.stderr
    files = [path for path in (work / "data/.cache").rglob("*") if path.is_file() and path.stat().st_size > 5000]
    assert files, "nothing was cached"
    good = (work / "s.npz").read_bytes()
    for path in files:
        flip(path)
    answer = call(root, work, *SCORE)
    assert answer.returncode == 0, answer.stderr
    import numpy as np

    (work / "good.npz").write_bytes(good)
    before, after = np.load(work / "good.npz", allow_pickle=False), np.load(work / "s.npz", allow_pickle=False)
    for name in before.files:
        if before[name].dtype.kind == "f":
            np.testing.assert_array_equal(before[name], after[name])
