"""The statistics network: its shape, its seed, its initial weights."""

import pytest
import torch
from torch import nn

from sanflow.methods.flow.batch_norm import BatchNorm2d
from sanflow.methods.flow.distributions import UnitVariance
from sanflow.methods.flow.statistics_network import FixedBase, StatisticsNetwork


def test_equals_its_layers_written_out():
    network = StatisticsNetwork(seed=2).eval()
    images = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    relu, conv = nn.functional.relu, nn.functional.conv2d
    first = hidden = relu(conv(images, network.first.weight, padding=1))
    for convolution, norm in zip(network.hidden, network.norms, strict=True):
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        shift = norm.bias - norm.running_mean * scale
        hidden = relu(conv(hidden, convolution.weight, padding=1) * scale[:, None, None] + shift[:, None, None])
    expected = conv(first + hidden, network.last.weight, padding=1)
    base = network(images)
    torch.testing.assert_close(torch.stack([base.log_alpha, base.log_beta], 1), expected)


def test_construction_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (StatisticsNetwork(seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])


def test_initial_weights_are_torchs_default():
    network = StatisticsNetwork()
    for convolution, inputs in [(network.first, 3), (network.hidden[1], 64), (network.last, 64)]:
        bound = (9 * inputs) ** -0.5
        assert 0.95 * bound < convolution.weight.abs().max() <= bound
        assert float(convolution.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_last_layer_keeps_full_precision_under_autocast():
    network = StatisticsNetwork().eval()
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    full = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images)
    assert half.log_alpha.dtype == half.log_beta.dtype == torch.float32
    assert 0 < (full.log_alpha - half.log_alpha).abs().max() < 0.02
    assert half.log_alpha.unique().numel() > 50


def test_fixed_base_looks_at_no_image():
    base = FixedBase()
    assert base(torch.zeros(1, 3, 4, 4)) == UnitVariance()
    assert list(base.parameters()) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_keeps_its_digits_over_many_pixels(layout):
    """Against float64, where torch's own kernel loses four digits in channels last."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 16, 128, 128, generator=generator).relu().contiguous(memory_format=layout)
    grads = torch.randn(features.shape, generator=generator).contiguous(memory_format=layout)
    found, expected = [], []
    for norm, dtype, values in ((BatchNorm2d(16), torch.float32, found), (nn.BatchNorm2d(16), torch.float64, expected)):
        norm.to(dtype).load_state_dict({**norm.state_dict(), "weight": torch.linspace(0.5, 2, 16)})
        inputs = features.detach().to(dtype).clone().requires_grad_()
        outputs = norm.train()(inputs)
        outputs.backward(grads.to(dtype))
        values += [outputs.detach(), inputs.grad, norm.running_mean, norm.running_var]
        values += [norm.weight.grad, norm.bias.grad]
    for ours, theirs, limit in zip(found, expected, [1e-6, 2e-6, 1e-6, 1e-6, 1e-4, 1e-4], strict=True):
        assert (ours - theirs).abs().max() <= limit * theirs.abs().max()


def test_batch_norm_is_torchs_in_float64():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    ours, theirs = BatchNorm2d(4).double(), nn.BatchNorm2d(4).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for _ in range(2):
        torch.testing.assert_close(ours(features), theirs(features), rtol=1e-13, atol=1e-13)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features), rtol=1e-13, atol=1e-13)
    inputs = features.clone().requires_grad_()
    assert torch.autograd.gradcheck(ours.train(), inputs)
