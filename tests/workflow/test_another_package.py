"""A method that another package brings runs to the tables, with no edit of this project."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.helpers import pixel_mean
from tests.helpers.workflow import draw_category, snakemake

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The package as pip would install it: its module, and its name in the list of entry points."""
    folder = tmp_path / "site"
    facts = folder / "pixel_mean-1.0.dist-info"
    facts.mkdir(parents=True)
    shutil.copy(pixel_mean.__file__, folder / "pixel_mean.py")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pixel-mean\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[sanflow.methods]\npixel-mean = pixel_mean:PIXEL_MEAN\n")
    return folder


@pytest.mark.slow
def test_a_toy_detector_runs_to_the_tables(root, tmp_path, plugin):
    draw_category(tmp_path / "parts/nut", None)
    experiments = {"mean": {"method": "pixel-mean", "power": 2, "input_size": 64, "label": "Mean"}}
    content = {"datasets": {"parts": {"kind": "folder", "root": "parts"}}, "experiments": experiments}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    snakemake(root, tmp_path, "results/small/tables/image_auroc.csv", more_packages=plugin)
    folder = tmp_path / "results/small/parts/nut/mean/seed0"
    images = pd.read_csv(folder / "images.csv")
    mean_HW3 = np.mean([pixels(path) for path in sorted((tmp_path / "parts/nut/train/good").iterdir())], 0)
    expected = [(np.abs(pixels(tmp_path / "parts" / path) - mean_HW3).mean(-1) ** 2).sum() for path in images.image]
    np.testing.assert_allclose(images.score, expected, rtol=1e-5)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["image_auroc"] == 1.0
    assert metrics["pixel_auroc"] > 0.99
    assert "Mean" in (tmp_path / "results/small/tables/image_auroc.md").read_text()
    # A misspelt key of the method is reported with the nearest valid one.
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content).replace("power", "pwoer"))
    answer = snakemake(root, tmp_path, "--dry-run", check=False, more_packages=plugin)
    assert "Did you mean 'power'?" in answer.output


def test_without_the_package_the_method_is_unknown(root, tmp_path):
    draw_category(tmp_path / "parts/nut", None)
    content = {
        "datasets": {"parts": {"kind": "folder", "root": "parts"}},
        "experiments": {"a": {"method": "pixel-mean"}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    answer = snakemake(root, tmp_path, "--dry-run", check=False)
    assert answer.returncode == 1
    assert "pixel-mean" in answer.output


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, float)
