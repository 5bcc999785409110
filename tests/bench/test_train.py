"""The speed measurements: what is counted, and that every number is there."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sanflow.bench import train as bench
from sanflow.bench.bare import CountProducts
from sanflow.bench.score import bench_score
from sanflow.bench.timing import WARM_UP_STEPS, interleaved
from sanflow.cli import app
from sanflow.errors import ConfigError

SMALL = {
    "encoder": "timm/test_efficientnet.r160_in1k",
    "input_size": 32,
    "precision": "fp32",
    "device": "cpu",
    "position_channels": 8,
}


def test_products_are_counted_forward_and_backward():
    layer = nn.Linear(5, 7)
    convolution = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    with CountProducts() as counted:
        layer(torch.ones(4, 5))
    assert counted.macs == 4 * 5 * 7
    with CountProducts() as counted:
        layer(torch.ones(4, 5)).sum().backward()
    assert counted.macs == 2 * 4 * 5 * 7  # the input needs no gradient
    with CountProducts() as counted, torch.inference_mode():
        layer(torch.ones(4, 5))
        convolution(torch.ones(1, 2, 6, 6))
    assert counted.macs == 4 * 5 * 7 + 36 * 2 * 3 * 9
    assert counted.bare_seconds(1, lambda: None) > 0


def test_bench_train_tells_all(tmp_path):
    torch.set_num_threads(1)
    found = bench.bench_train(
        **SMALL, batch_size=2, update="joint", windows=1, reference=False, profile=tmp_path / "trace.json"
    )
    phases = {"images", "encoder", "statistics_network", "flows", "losses_and_backward", "optimizer"}
    assert set(found["milliseconds"]) == phases
    assert all(value > 0 for value in found["milliseconds"].values())
    assert found["images_per_second"] == pytest.approx(2 / found["seconds_per_step"][0])
    assert found["ratio_to_reference"] is None
    assert found["bare_ratio"] > 0
    assert found["fraction_of_matmul_peak"] > 0
    assert (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.parametrize("measure", [["train", "--update", "jont"], ["score", "--precision", "fp16"]])
def test_what_cannot_be_timed_is_told_as_a_users_error(measure):
    result = CliRunner().invoke(app, ["bench", *measure, "--device", "cpu"])
    assert isinstance(result.exception, ConfigError)
    assert f"but got '{measure[-1]}'" in str(result.exception)


def test_the_reference_takes_turns_with_ours():
    calls = []
    ours, other = interleaved(
        lambda: calls.append("ours"), lambda: calls.append("other"), windows=2, steps=1, synchronize=lambda: None
    )
    assert calls == ["ours"] * WARM_UP_STEPS + ["other"] * WARM_UP_STEPS + ["ours", "other"] * 2
    assert len(ours) == len(other) == 2


@pytest.mark.slow
def test_the_reference_runs_in_a_process_of_its_own():
    found = bench.bench_train(**SMALL, batch_size=2, update="per_scale", windows=1, bare=False)
    assert found["ratio_to_reference"] > 0


def test_bench_score_tells_all():
    found = bench_score(**SMALL, batch_size=2, windows=1)
    assert found["images_per_second"] > 0
    assert found["ratio_to_reference"] > 0
    assert found["gmac_per_image"] > 0
    assert set(found["milliseconds"]) == {"encoder", "statistics_network", "flows", "images_and_likelihoods"}
    assert all(value > 0 for value in found["milliseconds"].values())
    assert 0 < found["weights_fraction_of_memory_peak"] < 10
