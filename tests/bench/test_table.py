"""The table of all measurements: its rows and their ratios."""

from typer.testing import CliRunner

from sanflow.bench import table
from sanflow.cli import app


def test_every_part_has_its_row(monkeypatch):
    train = {"images_per_second": 2.0, "ratio_to_reference": 4.0}
    monkeypatch.setattr(table, "bench_train", lambda **settings: train)
    monkeypatch.setattr(table, "bench_score", lambda **settings: train)
    methods = {"padim": {"torch_milliseconds_of_one_image": 40.0, "onnx_milliseconds_of_one_image": 60.0}}
    monkeypatch.setattr(table, "bench_predict", lambda **settings: {"methods": methods})
    sizes = {
        "sizes": [
            {
                "seconds": {"aupro": 0.5, "all_pixel_metrics_in_one_pass": 1.5},
                "threshold_loop": {"times_slower_than_aupro": 80.0},
            }
        ]
    }
    monkeypatch.setattr(table, "bench_metrics", lambda **settings: sizes)
    data = {"images_per_second": {"cache": 900.0}, "cache_is_faster_by": 30.0}
    monkeypatch.setattr(table, "bench_data", lambda **settings: data)
    monkeypatch.setattr(table, "bench_startup", lambda: {"sanflow --help": {"seconds": 0.4}})
    coreset = {"seconds": 2.0, "plain": {"seconds": 13.0}}
    monkeypatch.setattr(table, "bench_coreset", lambda **settings: coreset)
    result = CliRunner().invoke(app, ["bench", "all"])
    assert result.stdout.splitlines() == [
        "| part | value | unit | times as fast as | |",
        "|---|---|---|---|---|",
        "| train, joint | 2 | images/s | 4.0 | plain training |",
        "| train, per_scale | 2 | images/s | 4.0 | plain training |",
        "| score | 2 | images/s | 4.0 | plain networks |",
        "| predict: padim, one image | 0.04 | s | 1.5 | the same exported to ONNX |",
        "| metrics: AUPRO | 0.5 | s | 80.0 | threshold loop |",
        "| metrics: all of pixels | 1.5 | s |  |  |",
        "| data: cache | 900 | images/s | 30.0 | decoding PNG files |",
        "| start: sanflow --help | 0.4 | s |  |  |",
        "| coreset | 2 | s | 6.5 | plain loop |",
    ]
