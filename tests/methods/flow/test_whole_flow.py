"""The whole flow at once against its blocks one by one: latents, log-determinants and every gradient."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sanflow.methods.flow.coupling_flow import ConditionalFlow
from sanflow.methods.flow.whole_flow import whole_flow

N, C, P = 20, 7, 8
# Each location has a condition of its own, or it repeats from image to image.
LENGTHS = pytest.mark.parametrize("n_conditions", [N, N // 4])


@pytest.fixture(params=["index", "rotation"])
def flow(request) -> ConditionalFlow:
    """A flow of an odd number of channels, away from its initial weights."""
    generator = torch.Generator().manual_seed(1)
    flow = ConditionalFlow(C, P, blocks=3, permutation=request.param).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow


def inputs(n_conditions: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x_NC, condition_MP = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((N, C), (n_conditions, P))
    )
    return x_NC.requires_grad_(), condition_MP.requires_grad_()


def results(flow: ConditionalFlow, n_conditions: int, in_half_precision: bool = False) -> list[list[Tensor]]:
    """Outputs of the whole flow, then gradients of a sum with different weights for each of them; those of blocks."""
    found = []
    blocks = list(flow.blocks.module_list)
    for call in (partial(whole_flow, blocks), lambda x_NC, condition_MP: flow.blocks(x_NC, [condition_MP])):
        x_NC, condition_MP = inputs(n_conditions, flow.blocks.module_list[0].global_scale.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_half_precision):
            z_NC, log_det_N = call(x_NC, condition_MP)
        weighted = (z_NC.square() * torch.arange(C)).sum() + (log_det_N * torch.arange(N)).sum()
        found.append([z_NC, log_det_N, *torch.autograd.grad(weighted, [x_NC, condition_MP, *flow.parameters()])])
    return found


@LENGTHS
def test_values_and_gradients_equal_those_of_the_blocks(flow, n_conditions):
    for found, expected in zip(*results(flow, n_conditions), strict=True):
        assert ((found - expected).abs() <= 1e-12 * (1 + expected.abs())).all()


@LENGTHS
def test_in_half_precision_they_differ_by_its_rounding(flow, n_conditions):
    exact = results(flow, n_conditions)[0]
    ours, theirs = results(flow.float(), n_conditions, in_half_precision=True)
    for found, blocks, expected in zip(ours, theirs, exact, strict=True):
        assert found.dtype == torch.float32
        # Rounding decides the sign of a few ReLUs, in both ways of computing: up to 0.15 of a gradient's norm.
        assert (found - expected).norm() <= 3 * (blocks - expected).norm() + 0.02 * expected.norm()
    assert not torch.equal(ours[0], exact[0].float())  # bf16 was really used


def test_features_without_a_gradient_get_none_and_weights_do(flow):
    x_NC, condition_NP = (tensor.detach() for tensor in inputs())
    z_NC, _ = flow(x_NC, condition_NP)
    z_NC.sum().backward()
    assert x_NC.grad is None
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_the_flow_uses_it_where_each_location_has_its_own_condition(flow):
    x_NC, condition_NP = inputs()
    assert type(flow(x_NC, condition_NP)[0].grad_fn).__name__ == "_WholeFlowBackward"
    for condition_MP in (condition_NP[: N // 2], condition_NP[:1]):
        assert type(flow(x_NC, condition_MP)[0].grad_fn).__name__ != "_WholeFlowBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert type(flow(x_NC, condition_NP)[0].grad_fn).__name__ != "_WholeFlowBackward"
