"""The whole flow at once against its blocks one by one: latents, log-determinants and every gradient."""

import pytest
import torch
from torch import Tensor

from sanflow.methods.flow.coupling_flow import ConditionalFlow
from sanflow.methods.flow.whole_flow import whole_flow

N, C, P = 20, 7, 8


@pytest.fixture(params=["index", "rotation"])
def flow(request) -> ConditionalFlow:
    """A flow of an odd number of channels, away from its initial weights."""
    generator = torch.Generator().manual_seed(1)
    flow = ConditionalFlow(C, P, blocks=3, permutation=request.param).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x_NC, condition_NP = (torch.randn(N, n, generator=generator, dtype=torch.float64) for n in (C, P))
    return x_NC.requires_grad_(), condition_NP.requires_grad_()


def results(flow: ConditionalFlow, call) -> list[Tensor]:
    """Outputs, then gradients of a sum with different weights for each of them."""
    x_NC, condition_NP = inputs()
    z_NC, log_det_N = call(x_NC, condition_NP)
    weighted = (z_NC.square() * torch.arange(C)).sum() + (log_det_N * torch.arange(N)).sum()
    return [z_NC, log_det_N, *torch.autograd.grad(weighted, [x_NC, condition_NP, *flow.parameters()])]


def test_values_and_gradients_equal_those_of_the_blocks(flow):
    blocks = list(flow.blocks.module_list)
    ours = results(flow, lambda x_NC, condition_NP: whole_flow(blocks, x_NC, condition_NP))
    theirs = results(flow, lambda x_NC, condition_NP: flow.blocks(x_NC, [condition_NP]))
    for found, expected in zip(ours, theirs, strict=True):
        assert ((found - expected).abs() <= 1e-12 * (1 + expected.abs())).all()


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
