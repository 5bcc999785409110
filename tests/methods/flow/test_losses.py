"""The training objective from its parts, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from sanflow.methods.flow.distributions import InverseGamma, UnitVariance
from sanflow.methods.flow.losses import location_objective, loss_of, two_class_loss

Z = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
LOG_DET = torch.tensor([0.5, -0.25])


def test_matched_baseline_is_plain_likelihood():
    objective, terms = location_objective(Z, LOG_DET, UnitVariance())
    expected = [-math.log(2 * math.pi) - 2.5 + 0.5, -math.log(2 * math.pi) - 1 - 0.25]
    assert objective.tolist() == pytest.approx(expected)
    assert set(terms) == {"log_prob", "log_det"}
    assert float(terms["log_prob"]) == pytest.approx(-math.log(2 * math.pi) - 1.75)
    assert float(terms["log_det"]) == pytest.approx(0.125)
    assert float(loss_of(objective, 2)) == pytest.approx(sum(math.log1p(math.exp(-g / 2)) for g in expected) / 2)


def test_abnormal_locations_go_to_their_own_base():
    abnormal = torch.tensor([False, True])
    objective, terms = location_objective(Z, LOG_DET, UnitVariance(), abnormal, abnormal_mean=1.0)
    normal, far = -math.log(2 * math.pi) - 2.5, -math.log(2 * math.pi)
    # p_normal - p_abnormal: 5 - 1 = 4 in squared distance at the first location, 2 - 0 at the second.
    first = 1 / (1 + math.exp(2.0))
    second = 1 / (1 + math.exp(1.0))
    cross_entropy = (
        -math.log(math.exp(first) / (math.exp(first) + math.exp(1 - first)))
        - math.log(math.exp(1 - second) / (math.exp(second) + math.exp(1 - second)))
    ) / 2
    assert float(terms["two_class"]) == pytest.approx(cross_entropy)
    expected = [normal + 0.5 - 0.2 * cross_entropy, far - 0.25 - 0.2 * cross_entropy]
    assert objective.tolist() == pytest.approx(expected)


def test_two_class_term_takes_its_softmax_twice():
    sure = torch.tensor([0.0]), torch.tensor([-1e9])
    assert float(two_class_loss(*sure, torch.tensor([False]))) == pytest.approx(math.log1p(math.exp(-1)))
    assert float(two_class_loss(*sure, torch.tensor([True]))) == pytest.approx(math.log1p(math.exp(-1)) + 1)


def test_two_class_term_equals_a_cross_entropy_of_softmax_in_float64():
    generator = torch.Generator().manual_seed(0)
    normal, abnormal = (100 * torch.randn(2, 1000, generator=generator, dtype=torch.float64)).requires_grad_()
    abnormal_N = torch.rand(1000, generator=generator) < 0.3
    probability_N2 = torch.softmax(torch.stack([normal, abnormal], dim=1), dim=1)
    expected = F.cross_entropy(probability_N2, abnormal_N.long())
    found = two_class_loss(normal, abnormal, abnormal_N)
    assert abs(found - expected) < 1e-12
    gradients = [torch.autograd.grad(loss, (normal, abnormal), retain_graph=True) for loss in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_predicted_base_adds_its_divergence():
    base = InverseGamma(torch.full((2,), math.log(59.5)), torch.full((2,), math.log(12.1)))
    objective, terms = location_objective(Z, LOG_DET, base)
    divergence = base.divergence()
    assert float(terms["divergence"]) == pytest.approx(float(divergence.mean()))
    torch.testing.assert_close(objective, base.expected_log_prob(Z) + LOG_DET - divergence)


def test_mask_of_zeros_still_counts_the_two_class_term():
    # As in the release: an image without an anomaly is an example of the normal class.
    without, _ = location_objective(Z, LOG_DET, UnitVariance(), None)
    zeros, terms = location_objective(Z, LOG_DET, UnitVariance(), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(zeros, without - 0.2 * terms["two_class"])


def test_terms_carry_no_graph():
    z = Z.clone().requires_grad_()
    base = InverseGamma(torch.zeros(2, requires_grad=True), torch.zeros(2))
    objective, terms = location_objective(z, LOG_DET, base, torch.tensor([False, True]))
    assert objective.requires_grad
    assert set(terms) == {"log_prob", "log_det", "divergence", "two_class"}
    assert not any(term.requires_grad for term in terms.values())
