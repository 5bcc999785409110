r"""The base's log densities of latent vectors, the prior, and the variance.

Both bases have the same methods, so that the paper and its baseline differ in one object:
`InverseGamma` (the variance is predicted for each location) or `UnitVariance` (it is 1 everywhere).

Shapes: B images, H x W pixels or grid cells, N locations (all cells of a batch), C channels.
K = -0.5 ln(2 pi) is the log of the standard normal density at its mean.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

K = -0.5 * math.log(2 * math.pi)

LOG_ALPHA_RANGE = (math.log(1e-8), math.log(1e4))
# D3: without a bound a growing beta overflows float32 and every number becomes NaN.
LOG_BETA_RANGE = (math.log(1e-8), math.log(1e8))
LARGEST_VARIANCE = 5.0

# The prior of the variance: its mode is 6.05 / (59.5 + 1) = 0.1.
PRIOR_ALPHA, PRIOR_BETA = 59.5, 6.05


class Base(Protocol):
    """The base as the training objective and the scores use it; every result is per location."""

    def at_grid(self, height: int, width: int) -> "Base":
        """Return the base at the cells of a coarser grid, by torch's nearest interpolation."""

    def flatten(self) -> "Base":
        """Return the base with one axis of locations, images first, then rows, then columns."""

    def log_prob(self, z_NC: Tensor, mean: float = 0.0) -> Tensor:
        """Log density of z at the predicted variance, which is not differentiated."""

    def expected_log_prob(self, z_NC: Tensor, held_N: Tensor | None = None) -> Tensor:
        """Log density of normal z in training, averaged over the variance's distribution."""

    def divergence(self, held_N: Tensor | None = None) -> Tensor | None:
        """Compute the KL divergence of the variance's distribution from its prior; None if it has no distribution."""


def gaussian_log_prob(z_NC: Tensor, variance_N: Tensor | None = None, mean: float = 0.0) -> Tensor:
    r"""Log density of an isotropic Gaussian, C K - 0.5 ||z - mean||^2 / sigma^2 - (C/2) ln sigma^2.

    Arguments:
        z_NC: Latent vectors.
        variance_N: sigma^2 > 0 of each location; 1 if not given.
        mean: The mean, equal in all channels.

    Returns:
        Log density, shape (N,).

    Example:
        >>> gaussian_log_prob(torch.ones(1, 2), torch.tensor([4.0]), mean=1.0)
        tensor([-3.2242])
    """
    channels = z_NC.shape[1]
    squared_distance_N = (z_NC - mean if mean else z_NC).square().sum(dim=1)
    if variance_N is None:
        return channels * K - 0.5 * squared_distance_N
    return channels * K - 0.5 * squared_distance_N / variance_N - 0.5 * channels * variance_N.log()


@dataclass(frozen=True)
class InverseGamma:
    r"""The distribution of the base's variance at each pixel, grid cell or location.

    Arguments:
        log_alpha: ln alpha, unconstrained; clamped to [ln 1e-8, ln 1e4] wherever it is used.
        log_beta: ln beta, unconstrained, same shape; clamped to [ln 1e-8, ln 1e8] wherever it is used.
    """

    log_alpha: Tensor
    log_beta: Tensor

    def at_grid(self, height: int, width: int) -> "InverseGamma":
        """Interpolate (B, H, W) parameters by the nearest pixel: cell i reads pixel floor(i H / height)."""
        both_2BHW = torch.stack([self.log_alpha, self.log_beta])
        if torch.compiler.is_compiling():
            # In an exported graph the interpolation is another library's, which rounds in a way of its own.
            rows_h, columns_w = (
                nearest_pixels(pixels, cells).to(both_2BHW.device)
                for pixels, cells in zip(both_2BHW.shape[2:], (height, width), strict=True)
            )
            log_alpha_Bhw, log_beta_Bhw = both_2BHW.index_select(2, rows_h).index_select(3, columns_w)
            return InverseGamma(log_alpha_Bhw, log_beta_Bhw)
        log_alpha_Bhw, log_beta_Bhw = F.interpolate(both_2BHW, size=(height, width), mode="nearest")
        return InverseGamma(log_alpha_Bhw, log_beta_Bhw)

    def flatten(self) -> "InverseGamma":
        """Return the parameters with one axis of locations."""
        return InverseGamma(self.log_alpha.reshape(-1), self.log_beta.reshape(-1))

    def variance(self) -> Tensor:
        """Compute the mode of the inverse gamma, sigma^2 = beta / (alpha + 1), in (0, 5]; shape of the parameters."""
        log_alpha, log_beta = self._clamped()
        return (log_beta.exp() / (log_alpha.exp() + 1)).clamp(max=LARGEST_VARIANCE)

    def log_prob(self, z_NC: Tensor, mean: float = 0.0) -> Tensor:
        """Log density of z at the mode of the variance, shape (N,); the variance gets no gradient."""
        return gaussian_log_prob(z_NC, self.variance().detach(), mean)

    def expected_log_prob(self, z_NC: Tensor, held_N: Tensor | None = None) -> Tensor:
        r"""Log density of normal z in training, C K - C (ln beta - psi(alpha)) - 0.5 ||z||^2 alpha / beta.

        Arguments:
            z_NC: Latent vectors.
            held_N: True where ln beta and alpha / beta are not differentiated (abnormal locations); psi(alpha) is.

        Returns:
            Log density, shape (N,).
        """
        channels = z_NC.shape[1]
        log_alpha, _ = self._clamped()
        held_log_alpha, held_log_beta = self._held(held_N)
        precision_N = (held_log_alpha - held_log_beta).exp()
        # D1: C as released, where the exact expectation of the log variance has C / 2.
        log_variance_N = channels * (held_log_beta - torch.digamma(log_alpha.exp()))
        return channels * K - log_variance_N - 0.5 * z_NC.square().sum(dim=1) * precision_N

    def divergence(self, held_N: Tensor | None = None) -> Tensor:
        r"""Compute the KL divergence of this inverse gamma from the prior's, shape of the parameters, >= 0.

        (alpha - alpha0) psi(alpha) + lnGamma(alpha0) - lnGamma(alpha) + alpha0 (ln beta - ln beta0)
        + beta0 alpha / beta - alpha, with alpha0 = 59.5 and beta0 = 6.05.

        Arguments:
            held_N: True where ln beta and alpha / beta are not differentiated; the bare alpha is.
        """
        log_alpha, _ = self._clamped()
        alpha = log_alpha.exp()
        held_log_alpha, held_log_beta = self._held(held_N)
        return (
            (alpha - PRIOR_ALPHA) * torch.digamma(alpha)
            + math.lgamma(PRIOR_ALPHA)
            - torch.lgamma(alpha)
            + PRIOR_ALPHA * (held_log_beta - math.log(PRIOR_BETA))
            + PRIOR_BETA * (held_log_alpha - held_log_beta).exp()
            - alpha
        )

    def _clamped(self) -> tuple[Tensor, Tensor]:
        return self.log_alpha.clamp(*LOG_ALPHA_RANGE), self.log_beta.clamp(*LOG_BETA_RANGE)

    def _held(self, held: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (ln alpha, ln beta), cut from the graph where `held`."""
        log_alpha, log_beta = self._clamped()
        if held is None:
            return log_alpha, log_beta
        return torch.where(held, log_alpha.detach(), log_alpha), torch.where(held, log_beta.detach(), log_beta)


def nearest_pixels(pixels: int, cells: int) -> Tensor:
    """Return the pixel that each cell of an axis reads in torch's nearest interpolation.

    That is floor(i pixels / cells), but for torch's rounding of pixels / cells to 32 bits.

    Example:
        >>> nearest_pixels(20, 3)
        tensor([ 0,  6, 13])
    """
    positions = np.arange(cells, dtype=np.float32) * (np.float32(pixels) / np.float32(cells))
    return torch.from_numpy(np.minimum(positions.astype(np.int64), pixels - 1))


@dataclass(frozen=True)
class UnitVariance:
    """The base of CFLOW-AD and of the matched baseline: N(0, I) at every location of every image."""

    def at_grid(self, height: int, width: int) -> "UnitVariance":
        """Return the same base, because it does not depend on the grid."""
        return self

    def flatten(self) -> "UnitVariance":
        """Return the same base, because it does not depend on the location."""
        return self

    def log_prob(self, z_NC: Tensor, mean: float = 0.0) -> Tensor:
        """Log density under N(mean, I), shape (N,)."""
        return gaussian_log_prob(z_NC, mean=mean)

    def expected_log_prob(self, z_NC: Tensor, held_N: Tensor | None = None) -> Tensor:
        """Log density under N(0, I), shape (N,): there is nothing to average over."""
        return gaussian_log_prob(z_NC)

    def divergence(self, held_N: Tensor | None = None) -> None:
        """Return None: there is no prior."""
        return
