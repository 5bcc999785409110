"""The table of metrics: what is added there appears everywhere, and importing it loads nothing else."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from sanflow.bench.metrics import smooth_fields
from sanflow.data.index import build_index
from sanflow.evaluation.evaluate import evaluate
from sanflow.evaluation.metric_table import (
    AUPIMO_RANGE,
    AUPRO_LIMIT,
    AUPRO_STRICT_LIMIT,
    HEADLINE,
    METRICS,
    Metric,
    metrics_of,
)
from sanflow.evaluation.metrics import aupimo, aupro, image_metrics, pixel_metrics
from tests.helpers.results import draw_data_set, imagine_scores


def test_the_metrics_and_their_order():
    assert HEADLINE == ("image_auroc", "pixel_auroc", "aupro")
    assert tuple(METRICS)[:3] == HEADLINE
    assert list(metrics_of("image")) == ["image_auroc", "image_ap", "image_f1_max"]
    assert {**metrics_of("image"), **metrics_of("pixel"), **metrics_of("region")} == METRICS
    assert list(metrics_of("region")) == ["spro_01", "spro_05", "spro_10", "spro_30", "spro_100"]
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


def test_the_limits_are_those_of_the_functions():
    maps, masks = smooth_fields(8, 5, 128, seed=2)
    found = pixel_metrics(maps, masks)
    assert found["aupro"] == pytest.approx(aupro(maps, masks, AUPRO_LIMIT), abs=1e-14)
    assert found["aupro_05"] == pytest.approx(aupro(maps, masks, AUPRO_STRICT_LIMIT), abs=1e-14)
    assert aupro(maps, masks) == aupro(maps, masks, AUPRO_LIMIT)
    assert found["aupimo"] == aupimo(maps, masks) == aupimo(maps, masks, *AUPIMO_RANGE)


def test_a_level_has_its_metrics_and_a_threshold():
    assert list(image_metrics([1, 2], [0, 1])) == [*metrics_of("image"), "image_f1_threshold"]
    maps, masks = np.arange(32.0).reshape(2, 4, 4), np.zeros((2, 4, 4), bool)
    masks[1, 3] = True
    assert list(pixel_metrics(maps, masks)) == [*metrics_of("pixel"), "pixel_f1_threshold"]


@pytest.mark.filterwarnings("ignore::sanflow.evaluation.metrics.MetricWarning")
def test_an_added_metric_is_measured_under_every_prefix_with_an_interval(monkeypatch, tmp_path):
    monkeypatch.setitem(METRICS, "aupro_10", Metric("AUPRO at 0.1", "pixel", lambda found: found.region_overlap(0.1)))
    monkeypatch.setitem(METRICS, "image_half", Metric("Half", "image", lambda found: found.auroc() / 2, interval=False))
    root = draw_data_set(tmp_path, categories=("nut",), size=(80, 96))
    index = build_index("parts", "nut", root, kind="folder")
    metrics = evaluate(imagine_scores(index, (64, 64)), index, evaluate_at="native", resamples=5).metrics
    for prefix in ("", "testset_", "native_", "testset_native_"):
        assert 0 < metrics[f"{prefix}aupro_10"] <= 1
        assert metrics[f"{prefix}image_half"] == metrics[f"{prefix}image_auroc"] / 2
    low, high = metrics["intervals"]["aupro_10"]
    assert 0 <= low <= high <= 1
    assert "image_half" not in metrics["intervals"]


ADDED = """
import json, sys
from sanflow.evaluation.metric_table import METRICS, Metric
METRICS["new"] = Metric("New metric", "pixel", lambda found: found.auroc())
from sanflow.report.names import TABLES
assert not {"numpy", "pandas", "matplotlib", "scipy", "torch"} & set(sys.modules)
from sanflow.report.tables import BUILDERS
print(json.dumps([TABLES == tuple(BUILDERS), "new" in TABLES]))
"""


def test_an_added_metric_has_a_table_and_names_stay_light():
    """In a process of its own: the names are read once, when modules are imported."""
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True]


def test_the_page_about_metrics_names_each_with_its_limit(root):
    page = (root / "docs/metrics.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted([*METRICS, "image_f1_threshold", "pixel_f1_threshold"])
    row = next(line for line in rows if "`aupro_05`" in line)
    assert f"rate of {AUPRO_LIMIT}, of {AUPRO_STRICT_LIMIT}" in row
    assert "rates 1e-5 to 1e-4" in next(line for line in rows if "`aupimo`" in line)
    assert AUPIMO_RANGE == (1e-5, 1e-4)
