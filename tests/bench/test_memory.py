"""The memory of a step on fake tensors: counted as it is by hand, and by laws."""

import pytest
import torch

from sanflow.bench.memory import LiveBytes, bench_memory
from sanflow.config.experiment import SCORED_AT_ONCE
from sanflow.methods.flow.coupling_flow import position_condition
from sanflow.methods.flow.settings import SanflowExperiment

SMALL = {"encoder": "timm/resnet18.tv_in1k", "batch_size": 2, "precision": "fp32", "position_channels": 8}


def test_freed_memory_is_not_counted_and_views_are_not_counted_twice():
    with LiveBytes() as counted:
        ones = torch.ones(1000)
        halves = ones.chunk(2)
        assert counted.live == 4000
        del ones
        assert counted.live == 4000  # the views hold it
        del halves
        assert counted.live == 0
        torch.ones(500)
    assert counted.peak == 4000


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["timm/resnet18.tv_in1k", "timm/wide_resnet50_2.tv_in1k"])
@pytest.mark.parametrize("size", [256, 512])
def test_a_scheduler_reserves_enough(encoder, size):
    """A process on a CPU needs up to 1.5 times its tensors and 1 GiB, see docs/performance.md."""
    experiment = SanflowExperiment(method="sanflow", encoder=encoder, input_size=size)
    for part, batch_size, reserved in (
        ("train_bytes", experiment.batch_size, experiment.fit_memory_mb("", "")),
        ("score_bytes", SCORED_AT_ONCE, experiment.score_memory_mb("", "")),
    ):
        found = bench_memory(encoder=encoder, input_size=size, batch_size=batch_size, precision="fp32", update="joint")
        assert 0.2 * reserved < (1.5 * found[part] + 2**30) / 1e6 <= reserved, part


@pytest.mark.slow
def test_the_peak_of_a_step():
    small, large = (bench_memory(**SMALL, input_size=size, update="joint") for size in (64, 128))
    per_scale = bench_memory(**SMALL, input_size=128, update="per_scale")
    assert small["weights_bytes"] == large["weights_bytes"] < small["score_bytes"] < small["train_bytes"]
    # What is not of the weights grows with the pixels; joint updates hold all scales at once.
    assert large["score_bytes"] - large["weights_bytes"] > 3 * (small["score_bytes"] - small["weights_bytes"])
    assert per_scale["train_bytes"] < large["train_bytes"]
    # No fake position code stays in the cache.
    assert type(position_condition(8, 4, 4, torch.device("cpu"), torch.float32)) is torch.Tensor
