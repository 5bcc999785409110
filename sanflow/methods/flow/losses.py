r"""The training objective of one scale, from latents, log-determinants and the base.

Shapes: N locations, C channels. A location is abnormal where the synthetic anomaly's mask is larger than 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sanflow.methods.flow.distributions import Base

TWO_CLASS_WEIGHT = 0.2

Terms = dict[str, Tensor]


def two_class_loss(normal_log_prob_N: Tensor, abnormal_log_prob_N: Tensor, abnormal_N: Tensor) -> Tensor:
    r"""Compute the mean cross entropy of telling normal from abnormal locations by the two bases, a scalar.

    D2: the softmax's output goes into a cross entropy that applies a softmax again, as released; so the loss is
    between 0.31 and 1.31. With two classes that is softplus(1 - 2 q) at abnormal locations and softplus(2 q - 1) at
    normal ones, where q = sigmoid(log p_abnormal - log p_normal).

    Example:
        >>> two_class_loss(torch.tensor([0.0]), torch.tensor([-99.0]), torch.tensor([False]))
        tensor(0.3133)
    """
    margin_N = 2 * torch.sigmoid(abnormal_log_prob_N - normal_log_prob_N) - 1
    return F.softplus(torch.where(abnormal_N, -margin_N, margin_N)).mean()


def location_objective(
    z_NC: Tensor, log_det_N: Tensor, base: Base, abnormal_N: Tensor | None = None, abnormal_mean: float = 1.0
) -> tuple[Tensor, Terms]:
    r"""Compute what training maximises at each location, g = log p + log|det J| - KL - 0.2 CE.

    log p is the expected density under the normal base, or at abnormal locations the density under the base of mean
    `abnormal_mean`; KL is the base's divergence from its prior; CE the two-class loss, a mean over all N locations.

    Arguments:
        z_NC: Latents, at least float32.
        log_det_N: Log-determinants of the flow.
        base: The base at the N locations.
        abnormal_N: True at synthetic anomalies; None if there are none by design, and then there is no CE.
        abnormal_mean: Mean of the abnormal base in every channel.

    Returns:
        g of shape (N,) and its terms by name (detached, means over the locations).
    """
    log_prob_N = normal_log_prob_N = base.expected_log_prob(z_NC, abnormal_N)
    if abnormal_N is not None:
        abnormal_log_prob_N = base.log_prob(z_NC, abnormal_mean)
        log_prob_N = torch.where(abnormal_N, abnormal_log_prob_N, normal_log_prob_N)
    objective_N = log_prob_N + log_det_N
    terms = {"log_prob": log_prob_N.detach().mean(), "log_det": log_det_N.detach().mean()}

    divergence_N = base.divergence(abnormal_N)
    if divergence_N is not None:
        objective_N = objective_N - divergence_N
        terms["divergence"] = divergence_N.detach().mean()
    if abnormal_N is not None:
        two_class = two_class_loss(normal_log_prob_N, abnormal_log_prob_N, abnormal_N)
        objective_N = objective_N - TWO_CLASS_WEIGHT * two_class
        terms["two_class"] = two_class.detach()
    return objective_N, terms


def loss_of(objective_N: Tensor, channels: int) -> Tensor:
    """Compute the scalar loss, mean(-logsigmoid(g / C)); the sigmoid bounds the gain from a single location.

    Example:
        >>> loss_of(torch.zeros(3), channels=8)
        tensor(0.6931)
    """
    return -F.logsigmoid(objective_N / channels).mean()
