"""The model: one conditional flow per scale and one base. The paper and its baseline differ in the base.

The encoder is not part of it: it is frozen, and a checkpoint only keeps its identity.

Shapes: B images, C channels, H x W pixels of the input, h x w cells of a scale's grid, N = B h w locations,
M positions that N is a multiple of, P channels of the position code.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanflow.methods.flow.coupling_flow import ConditionalFlow, Permutation, position_condition
from sanflow.methods.flow.distributions import Base, InverseGamma
from sanflow.methods.flow.losses import Terms, location_objective, loss_of
from sanflow.methods.flow.statistics_network import FixedBase, StatisticsNetwork


class AnomalyFlow(nn.Module):
    """Flows and base of one experiment.

    Arguments:
        channels: Channels of each scale, in the order of the encoder's features.
        position_channels: P of the position code, divisible by 4.
        coupling_blocks: Blocks of each flow.
        permutation: Mixing of the channels after each block, "index" or "rotation".
        base: "predicted" by a statistics network (SANFlow) or "fixed" to N(0, I) (CFLOW-AD).
        abnormal_mean: Mean, in every channel, of the base that synthetic anomalies are mapped to.
        seed: Of all initial weights and permutations; the global generator is neither read nor moved. None: draw none,
            because a state will be loaded.

    Example:
        >>> model = AnomalyFlow([8, 12], position_channels=16, coupling_blocks=2)
        >>> images_B3HW, features_BCHW = torch.zeros(2, 3, 32, 32), torch.zeros(2, 12, 2, 2)
        >>> loss, terms = model.objective(1, features_BCHW, model.base_for(images_B3HW, features_BCHW), mask_B1HW=None)
        >>> sorted(terms)
        ['divergence', 'log_det', 'log_prob']
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        position_channels: int = 512,
        coupling_blocks: int = 8,
        permutation: Permutation = "index",
        base: Literal["predicted", "fixed"] = "predicted",
        abnormal_mean: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        base_seed, *flow_seeds = _spawned(seed, len(channels) + 1)
        self.channels = list(channels)
        self.position_channels = position_channels
        self.abnormal_mean = abnormal_mean
        self.flows = nn.ModuleList(
            ConditionalFlow(scale_channels, position_channels, coupling_blocks, permutation, scale_seed)
            for scale_channels, scale_seed in zip(channels, flow_seeds, strict=True)
        )
        self.base: StatisticsNetwork | FixedBase
        if base == "predicted":
            self.base = StatisticsNetwork(base_seed)
        elif base == "fixed":
            self.base = FixedBase()
        else:
            raise ValueError(f"Expected base 'predicted' or 'fixed', but got {base!r}.")

    @classmethod
    def from_experiment(cls, channels: Sequence[int], experiment: Any, seed: int | None) -> "AnomalyFlow":
        """Build the model that an experiment describes, for an encoder of these channels."""
        return cls(
            channels,
            position_channels=experiment.position_channels,
            coupling_blocks=experiment.coupling_blocks,
            permutation=experiment.permutation,
            base=experiment.base,
            abnormal_mean=experiment.abnormal_mean,
            seed=seed,
        )

    def base_for(self, images_B3HW: Tensor, *features: Tensor) -> Base:
        """Compute the base of images, at the pixels that the grids of these features read or at more.

        Arguments:
            images_B3HW: As the encoder saw them.
            features: features_BCHW of one or more scales; their grids decide how many pixels are left out.
        """
        height, width = images_B3HW.shape[-2:]
        rows = _common_stride(height, [features_BCHW.shape[2] for features_BCHW in features])
        columns = _common_stride(width, [features_BCHW.shape[3] for features_BCHW in features])
        base: Base = self.base(images_B3HW, (rows, columns))
        return base

    def objective(
        self, scale: int, features_BCHW: Tensor, base: Base, mask_B1HW: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """Compute the training loss of one scale over all its locations.

        Arguments:
            scale: Which flow.
            features_BCHW: The encoder's features of that scale.
            base: `model.base_for(images, features)`.
            mask_B1HW: Synthetic anomalies in [0, 1] at image resolution; None if the experiment has none.

        Returns:
            Scalar loss and its terms by name (detached). Nothing waits for the device.
        """
        z_NC, log_det_N = self.latents(scale, features_BCHW)
        return self.objective_of(z_NC, log_det_N, features_BCHW.shape[-2:], base, mask_B1HW)

    def objective_of(
        self, z_NC: Tensor, log_det_N: Tensor, grid: Sequence[int], base: Base, mask_B1HW: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """Compute the loss of one scale from `model.latents(scale, features)`, on a grid of rows and columns."""
        height, width = grid
        abnormal_N = None if mask_B1HW is None else abnormal_locations(mask_B1HW, height, width)
        return self._loss(z_NC, log_det_N, base.at_grid(height, width).flatten(), abnormal_N)

    def objective_at(
        self, scale: int, features_NC: Tensor, condition_MP: Tensor, base: Base, abnormal_N: Tensor | None = None
    ) -> tuple[Tensor, Terms]:
        """Compute the loss for any set of locations, such as a shuffled part of a batch.

        Arguments:
            scale: Which flow.
            features_NC: Features of the locations.
            condition_MP: Their position codes; or those of the first M if they repeat from image to image.
            base: The base at these locations, flat.
            abnormal_N: True at synthetic anomalies; None if the experiment has none.
        """
        z_NC, log_det_N = self.flows[scale](features_NC, condition_MP)
        return self._loss(z_NC, log_det_N, base, abnormal_N)

    def _loss(self, z_NC: Tensor, log_det_N: Tensor, base: Base, abnormal_N: Tensor | None) -> tuple[Tensor, Terms]:
        objective_N, terms = location_objective(z_NC, log_det_N, base, abnormal_N, self.abnormal_mean)
        return loss_of(objective_N, z_NC.shape[1]), terms

    def locations(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return features as rows (images first, then rows, then columns) and the position codes of one image's cells.

        Returns:
            features_NC in the model's precision, and condition_MP with M = h w.
        """
        dtype = next(self.parameters()).dtype
        height, width = features_BCHW.shape[-2:]
        features_NC = features_BCHW.permute(0, 2, 3, 1).flatten(0, 2).to(dtype)
        return features_NC, position_condition(self.position_channels, height, width, features_NC.device, dtype)

    def latents(self, scale: int, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute latents z_NC and log-determinants log_det_N of one scale's locations."""
        return self.flows[scale](*self.locations(features_BCHW))

    @torch.no_grad()
    def score(self, features: Sequence[Tensor], images_B3HW: Tensor, latents_of: int | None = None) -> "FlowScores":
        """Compute the log-probability per channel of every location under the normal base.

        Arguments:
            features: Features of each scale, (B, C, h, w).
            images_B3HW: The images they come from, as the encoder saw them.
            latents_of: A scale whose latents are given too; None for none.

        Raises:
            ValueError: If the model is in training mode, where a score would depend on the other images of its batch.
        """
        if self.training:
            raise ValueError(
                "Expected the model in eval mode for scores, but it is in training mode; call model.eval()."
            )
        base = self.base_for(images_B3HW, *features)
        scores = FlowScores([], base.variance() if isinstance(base, InverseGamma) else None)
        for scale, features_BCHW in enumerate(features):
            batch, channels, height, width = features_BCHW.shape
            z_NC, log_det_N = self.latents(scale, features_BCHW)
            log_prob_N = base.at_grid(height, width).flatten().log_prob(z_NC) + log_det_N
            scores.grids.append((log_prob_N / channels).reshape(batch, height, width))
            if scale == latents_of:
                scores.latents_NC = z_NC
        return scores


@dataclasses.dataclass
class FlowScores:
    """Scores of a batch.

    Arguments:
        grids: For each scale (B, h, w): (log p + log|det J|) / C.
        variance_Bhw: Variance of the base in (0, 5], at the pixels that the grids read; None if the base is fixed.
        latents_NC: Latents of the scale that was asked for.
    """

    grids: list[Tensor]
    variance_Bhw: Tensor | None
    latents_NC: Tensor | None = None


def _spawned(seed: int | None, number: int) -> list[int] | list[None]:
    """Derive independent seeds from one; a scale's depends on its place, not on the number of scales."""
    if seed is None:
        return [None] * number
    return [int(state) for state in np.random.SeedSequence(seed).generate_state(number, np.uint32)]


def _common_stride(pixels: int, cells: Sequence[int]) -> int:
    """Find the largest s such that grids whose cell i reads pixel floor(i pixels / cells) read only multiples of s."""
    if any(pixels % n_cells for n_cells in cells):
        return 1
    return math.gcd(*(pixels // n_cells for n_cells in cells))


def abnormal_locations(mask_B1HW: Tensor, height: int, width: int) -> Tensor:
    """Return True, per location (N,), where the mask's nearest pixel is larger than 0."""
    return F.interpolate(mask_B1HW, size=(height, width), mode="nearest").flatten() > 0
