"""All pixel metrics in one pass: equal to each by itself, to scikit-learn, fast enough, and bounded in memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk
from typer.testing import CliRunner

from sanflow.bench.metrics import bench_metrics, median_seconds, region_windows, smooth_fields, threshold_loop
from sanflow.evaluation.metrics import (
    MetricWarning,
    PixelMeasures,
    aupimo,
    aupro,
    auroc,
    average_precision,
    f1_max,
    pixel_metrics,
    rank_pixels,
)


@pytest.fixture(scope="module")
def pixel_set():
    return smooth_fields(10, 6, 160, seed=1)


def test_one_pass_gives_what_each_metric_gives(pixel_set):
    maps, masks = pixel_set
    found = pixel_metrics(maps, masks)
    assert {name: value for name, value in found.items() if name != "pixel_f1_threshold"} == pytest.approx(
        {
            "pixel_auroc": auroc(maps, masks),
            "pixel_ap": average_precision(maps, masks),
            "pixel_f1_max": f1_max(maps, masks),
            "aupro": aupro(maps, masks),
            "aupro_05": aupro(maps, masks, 0.05),
            "aupimo": aupimo(maps, masks),
        },
        abs=1e-13,
    )
    called = maps >= found["pixel_f1_threshold"]
    assert sk.f1_score(masks.ravel(), called.ravel()) == pytest.approx(found["pixel_f1_max"])
    assert PixelMeasures(maps, masks).metrics("pixel") == found


def test_agrees_with_scikit_learn(pixel_set):
    maps, masks = pixel_set
    found = pixel_metrics(maps, masks)
    assert found["pixel_auroc"] == pytest.approx(sk.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert found["pixel_ap"] == pytest.approx(sk.average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)


def test_a_transformation_that_keeps_the_order_keeps_all_but_the_threshold(pixel_set):
    maps, masks = pixel_set
    moved = pixel_metrics(np.exp(maps.astype(np.float64)), masks)
    expected = pixel_metrics(maps, masks)
    assert moved.pop("pixel_f1_threshold") == pytest.approx(np.exp(expected.pop("pixel_f1_threshold")))
    assert moved == expected


def test_a_set_without_anomalies_is_nan_throughout():
    with pytest.warns(MetricWarning, match="without anomalies"):
        found = pixel_metrics(np.zeros((2, 8, 8)), np.zeros((2, 8, 8), dtype=bool))
    assert all(np.isnan(value) for value in found.values())


def test_the_threshold_loop_of_the_bench_approaches_aupro(pixel_set):
    maps, masks = pixel_set
    thresholds = np.linspace(maps.max(), maps.min(), 400).tolist()
    rates, overlaps = threshold_loop(maps, masks, region_windows(masks), thresholds)
    area = np.sum(np.diff(rates) * np.add(overlaps[1:], overlaps[:-1]) / 2.0)
    assert area == pytest.approx(aupro(maps, masks, limit=1.0), abs=2e-3)
    assert rank_pixels(maps, masks).n_regions == len(region_windows(masks))


def test_bench_reports_every_metric_and_the_loop():
    found = bench_metrics(sizes=[64], n_maps=6, n_anomalous=4, repeats=1, loop_thresholds_timed=2)
    (one,) = found["sizes"]
    assert {"aupro", "aupro_05", "aupimo", "pixel_auroc", "pixel_ap", "pixel_f1_max"} <= one["seconds"].keys()
    assert all(seconds >= 0 for seconds in one["seconds"].values())
    loop = one["threshold_loop"]
    assert (loop["thresholds"], loop["thresholds_timed"]) == (1000, 2)
    assert "extrapolated" in loop["seconds_are"]
    assert loop["times_slower_than_aupro"] == pytest.approx(loop["seconds"] / one["seconds"]["aupro"], rel=0.2)


def test_the_bench_command_prints_json():
    from sanflow.cli import app

    arguments = ["bench", "metrics", "--size", "32", "--maps", "4", "--anomalous", "2", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--thresholds", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sizes"][0]["height"] == 32
    refused = CliRunner().invoke(app, ["bench", "metrics", "--maps", "4", "--anomalous", "4"])
    assert refused.exit_code == 2
    assert "Expected fewer anomalous maps than maps" in refused.output


def test_aupro_is_fast():
    """Ten of the hundred times by which it beats the loop: a busy machine passes, a return to loops does not."""
    maps, masks = smooth_fields(20, 15, 256)
    windows = region_windows(masks)
    exact = min(median_seconds(lambda: aupro(maps, masks), 1) for _ in range(3))
    one_threshold = min(median_seconds(lambda: threshold_loop(maps, masks, windows, [1.0]), 1) for _ in range(3))
    assert 1000 * one_threshold > 10 * exact


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_is_bounded():
    """Bytes per pixel beyond interpreter and maps, with 4 % and with 50 % of the pixels anomalous.

    At 40 bytes, 100 maps of 512 x 512 take 1 GB.
    """
    code = (
        "import resource, sys, numpy as np; from sanflow.evaluation.metrics import pixel_metrics\n"
        "rng = np.random.default_rng(0)\n"
        "maps = rng.standard_normal((16, 512, 512), dtype=np.float32)\n"
        "masks = np.zeros(maps.shape, dtype=bool); masks[:12, :int(sys.argv[1])] = True\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pixel_metrics(maps, masks)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    for rows, allowed in (("27", 20), ("340", 40)):
        done = subprocess.run([sys.executable, "-c", code, rows], capture_output=True, text=True, check=True)
        assert 1024 * int(done.stdout) / (16 * 512 * 512) < allowed
