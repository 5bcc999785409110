"""Laws of the conditional flow, away from its initial weights, and equality with FrEIA 0.2's block."""

import importlib.metadata

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sanflow.methods.flow.authors_weights import flow_state
from sanflow.methods.flow.coupling_flow import (
    INITIAL_GLOBAL_SCALE,
    ConditionalFlow,
    IndexPermutation,
    Rotation,
    position_code,
    position_condition,
)

PERMUTATIONS = ["index", "rotation"]


def away_from_initial(module: nn.Module, size: float = 0.3, seed: int = 1) -> nn.Module:
    """Move every parameter, so that no law holds by being the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


@pytest.fixture(params=PERMUTATIONS)
def flow(request) -> ConditionalFlow:
    flow = ConditionalFlow(channels=7, condition_channels=4, blocks=3, permutation=request.param, seed=3)
    return away_from_initial(flow).double()


def inputs(locations: int = 6, channels: int = 7, condition: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        2 * torch.randn(locations, channels, generator=generator, dtype=torch.float64),
        torch.randn(locations, condition, generator=generator, dtype=torch.float64),
    )


def test_inverse(flow):
    x, condition = inputs()
    z, log_det = flow(x, condition)
    back, log_det_back = flow.inverse(z, condition)
    assert (z - x).abs().mean() > 0.5
    # A rotation is kept in float32, so it is orthogonal to 1e-7 only.
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5 if isinstance(flow.blocks[0].mixing, Rotation) else 1e-12)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-5)


def test_log_determinant_is_that_of_autograds_jacobian(flow):
    x, condition = inputs()
    _, log_det = flow(x, condition)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(
            lambda row, i=i: flow(row[None], condition[i : i + 1])[0][0], x[i]
        )
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-6, atol=1e-6)


def test_gradients_are_right_and_reach_every_parameter(flow):
    x, condition = inputs(locations=2)
    assert torch.autograd.gradcheck(lambda x: flow(x, condition), x.requires_grad_())
    z, log_det = flow(x, condition)
    (z.square().sum() - log_det.sum()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_condition_of_one_image_serves_the_batch(flow):
    x, condition = inputs(locations=6)
    z, log_det = flow(x, condition[:2])
    z_repeated, log_det_repeated = flow(x, condition[:2].repeat(3, 1))
    torch.testing.assert_close(z, z_repeated)
    torch.testing.assert_close(log_det, log_det_repeated)


@pytest.mark.skipif(importlib.metadata.version("FrEIA") != "0.2", reason="the reference is FrEIA 0.2's own block")
@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("channels", [6, 7])
def test_equal_to_freia(permutation, channels):
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    theirs = SequenceINN(channels)
    state = np.random.get_state()  # noqa: NPY002  (FrEIA draws from it)
    for _ in range(3):
        theirs.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(4,),
            subnet_constructor=lambda inputs, outputs: nn.Sequential(
                nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs)
            ),
            affine_clamping=1.9,
            permute_soft=permutation == "rotation",
        )
    np.random.set_state(state)  # noqa: NPY002
    for name, parameter in theirs.named_parameters():
        if "w_perm" not in name:
            away_from_initial(nn.ParameterList([parameter]))
    ours = ConditionalFlow(channels, 4, blocks=3, permutation=permutation)
    ours.load_state_dict(flow_state(theirs.state_dict()))
    theirs.double(), ours.double()
    x, condition = inputs(channels=channels)
    for our, their in zip(ours(x, condition), theirs(x, [condition]), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)
    for our, their in zip(ours.inverse(x, condition), theirs(x, [condition], rev=True), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_construction_depends_on_the_seed_alone(permutation):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ConditionalFlow(6, 4, 2, permutation, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = ConditionalFlow(6, 4, 2, permutation, seed=5).state_dict()
    other = ConditionalFlow(6, 4, 2, permutation, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_initial_weights():
    flow = ConditionalFlow(channels=64, condition_channels=32, blocks=1, seed=0)
    block = flow.blocks[0]
    scale = 0.1 * torch.nn.functional.softplus(block.global_scale, beta=0.5)
    torch.testing.assert_close(scale, torch.ones(64))
    assert pytest.approx(2 * np.log(np.exp(5.0) - 1)) == INITIAL_GLOBAL_SCALE
    assert not block.global_offset.any()
    # torch's nn.Linear draws from U(-1 / sqrt(inputs), 1 / sqrt(inputs)); D = 32 + 32 inputs, 128 hidden.
    subnet = block.subnet
    for parameter, fan_in in [(subnet.features_weight, 64), (subnet.condition_weight, 64), (subnet.output_weight, 128)]:
        bound = fan_in**-0.5
        assert 0.98 * bound < parameter.abs().max() <= bound
        assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_parameters_are_those_of_the_paper():
    # WRN-50-2 at three scales: 137.5 million.
    total = 0
    for channels in (512, 1024, 2048):
        inputs = channels // 2 + 512
        total += 8 * (2 * channels + (inputs + 1) * 2 * inputs + (2 * inputs + 1) * channels)
    assert total == pytest.approx(137.5e6, rel=1e-3)
    flow = ConditionalFlow(16, 8, blocks=8)
    inputs = 8 + 8
    assert sum(parameter.numel() for parameter in flow.parameters()) == 8 * (
        2 * 16 + (inputs + 1) * 2 * inputs + (2 * inputs + 1) * 16
    )


def test_a_loaded_permutation_brings_its_inverse():
    first, second = (ConditionalFlow(8, 4, blocks=2, seed=seed) for seed in (0, 1))
    assert "blocks.module_list.0.mixing.inverse_order" not in first.state_dict()
    second.load_state_dict(first.state_dict())
    x, condition = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 4)
    torch.testing.assert_close(second.inverse(second(x, condition)[0], condition)[0], x, rtol=1e-4, atol=1e-5)
    assert torch.equal(first(x, condition)[0], second(x, condition)[0])


def test_seedless_construction_takes_a_state():
    for permutation in PERMUTATIONS:
        flow = ConditionalFlow(6, 4, 2, permutation, seed=4)
        empty = ConditionalFlow(6, 4, 2, permutation, seed=None)
        empty.load_state_dict(flow.state_dict())
        assert all(torch.equal(value, empty.state_dict()[key]) for key, value in flow.state_dict().items())


def test_rotation_is_special_orthogonal():
    for seed in range(4):
        matrix = Rotation(9, torch.Generator().manual_seed(seed)).matrix.double()
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-6)
        assert torch.linalg.det(matrix) == pytest.approx(1, abs=1e-5)


def test_index_permutation_equals_its_matrix():
    mixing = IndexPermutation(5, torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    matrix = torch.eye(5)[mixing.order]
    assert torch.equal(mixing(x), x @ matrix.T)
    assert torch.equal(mixing.inverse(mixing(x)), x)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_half_precision_touches_the_subnet_only(permutation):
    flow = away_from_initial(ConditionalFlow(8, 4, 2, permutation), size=0.1)
    x, condition = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 4)
    z, log_det = flow(x, condition)
    with torch.autocast("cpu", torch.bfloat16):
        z_half, log_det_half = flow(x, condition)
        back, _ = flow.inverse(z_half, condition)
    assert z_half.dtype == log_det_half.dtype == torch.float32
    assert 0 < (z_half - z).abs().max() < 0.02
    assert (log_det_half - log_det).abs().max() < 0.05
    # The first channels of each block pass the same numbers to the same subnet on the way back.
    torch.testing.assert_close(back, x, rtol=1e-2, atol=1e-2)


def test_position_code_by_hand():
    code = position_code(8, height=3, width=2)
    # Frequencies of a half of 4 channels: 1 and 10^-2.
    expected = [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01), np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]
    np.testing.assert_allclose(code[:, 2, 1].numpy(), expected, rtol=1e-6)
    assert torch.equal(code[:, 0, 0], torch.tensor([0.0, 1.0] * 4))
    rows_PHW, columns_PHW = position_code(8, 3, 5)[4:], position_code(8, 3, 5)[:4]
    assert torch.equal(rows_PHW[:, :, :1].expand_as(rows_PHW), rows_PHW)
    assert torch.equal(columns_PHW[:, :1].expand_as(columns_PHW), columns_PHW)


def test_position_condition_is_made_once_and_trains_after_scoring():
    device = torch.device("cpu")
    with torch.inference_mode():
        condition = position_condition(12, 3, 2, device, torch.float32)
    assert condition is position_condition(12, 3, 2, device, torch.float32)
    assert torch.equal(condition[3], position_code(12, 3, 2)[:, 1, 1])
    flow = ConditionalFlow(4, 12, blocks=1)
    flow(torch.ones(6, 4), condition)[0].sum().backward()


def test_what_does_not_fit_is_refused():
    flow = ConditionalFlow(6, 4, blocks=1)
    with pytest.raises(ValueError, match=r"features of shape \(N, 6\).*\(3, 5\)"):
        flow(torch.zeros(3, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"condition of shape \(M, 4\).*\(3, 5\)"):
        flow(torch.zeros(3, 6), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"each of the 3 locations.*got 2"):
        flow.inverse(torch.zeros(3, 6), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="divisible by 4, but got 6"):
        position_code(6, 2, 2)
    with pytest.raises(ValueError, match="at least 2 channels"):
        ConditionalFlow(1, 4)
    with pytest.raises(ValueError, match="'index' or 'rotation', but got 'none'"):
        ConditionalFlow(6, 4, permutation="none")
