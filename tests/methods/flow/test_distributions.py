"""Densities against closed forms, torch's own distributions and numerical integrals."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from sanflow.methods.flow.distributions import InverseGamma, UnitVariance, gaussian_log_prob


def inverse_gamma(alpha: list[float], beta: list[float], grad: bool = False) -> InverseGamma:
    logs = (torch.tensor(values, dtype=torch.float64).log().requires_grad_(grad) for values in (alpha, beta))
    return InverseGamma(*logs)


def test_gaussian_is_torchs():
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    variance = torch.tensor([0.1, 1, 2, 4.9, 1e-3], dtype=torch.float64)
    expected = Normal(1.5, variance.sqrt()[:, None].expand(5, 3)).log_prob(z).sum(1)
    torch.testing.assert_close(gaussian_log_prob(z, variance, mean=1.5), expected)
    torch.testing.assert_close(gaussian_log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1).double())


def test_variance_is_the_mode():
    base = inverse_gamma([59.5, 3.0, 1e-9, 1e9], [6.05, 100.0, 2.0, 1.0])
    # The last two: alpha is clamped to [1e-8, 1e4]; the second: the variance is clamped to 5.
    expected = torch.tensor([0.1, 5.0, 2 / (1 + 1e-8), 1 / 10_001], dtype=torch.float64)
    torch.testing.assert_close(base.variance(), expected)


def test_expected_log_prob_is_an_expectation_but_for_the_released_factor():
    alpha, beta, z = 4.0, 2.0, torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    variance = stats.invgamma(alpha, scale=beta)
    channels = z.shape[1]
    mean_log_variance = variance.expect(np.log)
    mean_precision = variance.expect(lambda v: 1 / v)
    exact = (
        -0.5 * channels * (math.log(2 * math.pi) + mean_log_variance) - 0.5 * float(z.square().sum()) * mean_precision
    )
    ours = inverse_gamma([alpha], [beta]).expected_log_prob(z)
    # D1: the release counts the expected log variance once more by half.
    assert float(ours) == pytest.approx(exact - 0.5 * channels * mean_log_variance, rel=1e-6)


def test_divergence_against_integration():
    prior = stats.invgamma(59.5, scale=6.05)
    for alpha, beta in [(59.5, 6.05), (40.0, 6.0), (80.0, 5.0)]:
        q = stats.invgamma(alpha, scale=beta)
        expected = q.expect(lambda v, q=q: q.logpdf(v) - prior.logpdf(v), lb=q.ppf(1e-9), ub=q.ppf(1 - 1e-9))
        assert float(inverse_gamma([alpha], [beta]).divergence()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(inverse_gamma([59.5], [6.05]).divergence()) == pytest.approx(0, abs=1e-9)


def test_held_locations_keep_the_gradient_of_alpha_alone():
    base = inverse_gamma([3.0, 3.0], [2.0, 2.0], grad=True)
    z = torch.ones(2, 4, dtype=torch.float64)
    (base.expected_log_prob(z, torch.tensor([False, True])).sum()).backward()
    # psi(alpha) is differentiated everywhere, ln beta and alpha / beta at the first location only.
    trigamma = float(torch.polygamma(1, torch.tensor(3.0, dtype=torch.float64)))
    expected_alpha = [4 * 3 * trigamma - 0.5 * 4 * 1.5, 4 * 3 * trigamma]
    expected_beta = [-4 + 0.5 * 4 * 1.5, 0]
    np.testing.assert_allclose(base.log_alpha.grad, expected_alpha, rtol=1e-9)
    np.testing.assert_allclose(base.log_beta.grad, expected_beta, rtol=1e-9)


def test_holding_changes_no_value():
    base = inverse_gamma([3.0, 0.5], [2.0, 7.0])
    z = torch.ones(2, 4, dtype=torch.float64)
    held = torch.tensor([True, False])
    assert torch.equal(base.expected_log_prob(z, held), base.expected_log_prob(z))
    assert torch.equal(base.divergence(held), base.divergence())


def test_score_does_not_differentiate_the_variance():
    base = inverse_gamma([3.0], [2.0], grad=True)
    assert not base.log_prob(torch.ones(1, 2, dtype=torch.float64)).requires_grad


@pytest.mark.parametrize("log_beta", [-1e4, -200.0, -80.0, 0.0, 80.0, 1e4])
@pytest.mark.parametrize("log_alpha", [-1e4, -80.0, 0.0, 80.0, 1e4])
@pytest.mark.parametrize("length", [0.0, 1.0, 1e3])
def test_no_parameter_gives_nan(log_alpha, log_beta, length):
    base = InverseGamma(*(torch.tensor([value], requires_grad=True) for value in (log_alpha, log_beta)))
    z = torch.full((1, 64), length, requires_grad=True)
    held = torch.tensor([False])
    terms = base.expected_log_prob(z, held) + base.divergence(held) + base.log_prob(z) + base.log_prob(z, 1.0)
    terms.sum().backward()
    assert 0 < float(base.variance().detach()) <= 5
    for value in (terms, z.grad, base.log_alpha.grad, base.log_beta.grad):
        assert value.isfinite().all(), (log_alpha, log_beta, length)


def test_clamped_parameters_get_no_gradient():
    base = InverseGamma(torch.tensor([10.0], requires_grad=True), torch.tensor([0.0], requires_grad=True))
    (base.expected_log_prob(torch.ones(1, 2)) - base.divergence()).sum().backward()
    assert float(base.log_alpha.grad) == 0
    assert float(base.log_beta.grad) != 0


def test_grid_takes_the_nearest_pixel():
    rows = torch.arange(6.0)[:, None].expand(6, 4)
    base = InverseGamma(rows[None], 10 * rows[None]).at_grid(4, 2)
    # floor(i 6 / 4) for i = 0 .. 3.
    assert base.log_alpha[0].tolist() == [[0, 0], [1, 1], [3, 3], [4, 4]]
    assert base.flatten().log_beta.tolist() == [0, 0, 10, 10, 30, 30, 40, 40]


def test_unit_variance_is_the_standard_normal():
    base = UnitVariance().at_grid(3, 2).flatten()
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(z), expected)
    torch.testing.assert_close(base.expected_log_prob(z, torch.ones(4, dtype=torch.bool)), expected)
    torch.testing.assert_close(base.log_prob(z, 1.0), Normal(1.0, 1.0).log_prob(z).sum(1))
    assert base.divergence() is None
