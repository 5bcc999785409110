r"""Patches of an image and their distance to the nearest patch of normal images.

Shapes: B images, C channels of a tap, h x w cells of its grid, P patches of an image, N patches of a batch, D
dimensions of a patch, M patches in the memory bank, K neighbours.

Source: Towards total recall in industrial anomaly detection (Roth, Pemula, Zepeda, Schoelkopf, Brox and Gehler, CVPR
2022), https://arxiv.org/abs/2106.08265.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sanflow.device import multiplies_bf16
from sanflow.methods.patchcore.candidates import CandidateSearch

# Patches compared at once: their distances to a bank of 20,000 take 20 MB.
BLOCK = 256


def patch_features(features: Sequence[Tensor], patch_size: int = 3, pooled_dimensions: int | None = None) -> Tensor:
    """Describe every patch of a batch: the mean over its cells of each tap, brought to the finest grid.

    Arguments:
        features: One tensor features_BChw a tap.
        patch_size: A patch is this many by this many cells; odd. Cells beyond the border are zeros, which count.
        pooled_dimensions: Average neighbouring channels so that each tap, and then all taps together, have this many
            dimensions (the authors' code has 1024); None keeps all channels.

    Returns:
        patches_BDhw.
    """
    means = [F.avg_pool2d(tap_BChw, patch_size, stride=1, padding=patch_size // 2) for tap_BChw in features]
    size = max((mean.shape[2:] for mean in means), key=lambda shape: shape[0] * shape[1])
    resized = [
        mean if mean.shape[2:] == size else F.interpolate(mean, size=size, mode="bilinear", align_corners=False)
        for mean in means
    ]
    if pooled_dimensions is None:
        return torch.cat(resized, dim=1)
    return _pool_channels(
        torch.cat([_pool_channels(mean, pooled_dimensions) for mean in resized], 1), pooled_dimensions
    )


def _pool_channels(features_BChw: Tensor, dimensions: int) -> Tensor:
    batch, _, height, width = features_BChw.shape
    rows_NC = features_BChw.permute(0, 2, 3, 1).flatten(0, 2)
    pooled_ND = F.adaptive_avg_pool1d(rows_NC[:, None], dimensions)[:, 0]
    return pooled_ND.reshape(batch, height, width, dimensions).permute(0, 3, 1, 2)


class MemoryBank:
    """Patches of normal images, to look up the nearest one.

    Arguments:
        patches_MD: Float32, on the device that is used.
    """

    def __init__(self, patches_MD: Tensor) -> None:
        # Distances stay the same, and smaller norms lose fewer digits to cancellation.
        self.mean_D = patches_MD.mean(0)
        self.patches_MD = patches_MD - self.mean_D
        self.squares_M1 = self.patches_MD.square().sum(1, keepdim=True)
        # On a GPU each look for candidates would have to be waited for.
        is_fast = patches_MD.device.type == "cpu" and multiplies_bf16(patches_MD.device)
        self.search = CandidateSearch(self.patches_MD) if is_fast and patches_MD.dtype == torch.float32 else None

    def distances(self, patches_ND: Tensor) -> Tensor:
        """Compute the distance of each patch to its nearest neighbour in the bank; (N,)."""
        nearest_N = patches_ND.new_empty(len(patches_ND))
        for first in range(0, len(patches_ND), BLOCK):
            block_BD, nearest_B = patches_ND[first : first + BLOCK], nearest_N[first : first + BLOCK]
            if self.search is None:
                nearest_B[:] = self._nearest(block_BD)
                continue
            nearest_B[:] = self.search.nearest(block_BD - self.mean_D)
            undecided_K = torch.nonzero(torch.isinf(nearest_B))[:, 0]
            if len(undecided_K):
                nearest_B[undecided_K] = self._nearest(block_BD[undecided_K])
        return nearest_N.clamp_(min=0).sqrt_()

    def distances_of_images(self, patches_BPD: Tensor) -> Tensor:
        """Compute the same distances for the patches of some images; (B, P)."""
        if not torch.compiler.is_compiling():
            return self.distances(patches_BPD.flatten(0, 1)).reshape(patches_BPD.shape[:2])
        # An exported graph takes any number of images, so its blocks are positions in all of them.
        parts = [
            self._nearest(block_BQD.flatten(0, 1)).unflatten(0, (-1, block_BQD.shape[1]))
            for block_BQD in patches_BPD.split(BLOCK, dim=1)
        ]
        return torch.cat(parts, dim=1).clamp(min=0).sqrt()

    def _nearest(self, patches_ND: Tensor) -> Tensor:
        """Compute the squared distance of each patch to its nearest neighbour; rounding may make it negative."""
        centred_ND = patches_ND - self.mean_D
        return self._compared(centred_ND).amin(0) + centred_ND.square().sum(1)

    def _compared(self, centred_ND: Tensor) -> Tensor:
        """Compute squared distances (M, N) less the squared length of each of the N patches."""
        return torch.addmm(self.squares_M1, self.patches_MD, centred_ND.T, alpha=-2)

    def reweighted(self, farthest_BD: Tensor, distances_B: Tensor, neighbours: int) -> Tensor:
        r"""Compute image scores from the farthest patch, lower where normal patches are rare too.

        s = (1 - exp(||x - m*||) / \sum_{m \in N(m*)} exp(||x - m||)) ||x - m*||, with m* the patch of the bank nearest
        to the image's farthest patch x, and N(m*) the patches of the bank nearest to m*, itself included (equation 7).

        Arguments:
            farthest_BD: x of each image.
            distances_B: ||x - m*||.
            neighbours: How many patches N(m*) has; at most M.

        Returns:
            (B,).
        """
        centred_BD = farthest_BD - self.mean_D
        nearest_BD = self.patches_MD[self._compared(centred_BD).argmin(0)]
        around_KB = self._compared(nearest_BD).topk(neighbours, dim=0, largest=False).indices
        distances_KB = torch.linalg.vector_norm(centred_BD - self.patches_MD[around_KB], dim=2)
        to_nearest_B = torch.linalg.vector_norm(centred_BD - nearest_BD, dim=1)
        share_B = (to_nearest_B - distances_KB.logsumexp(0)).exp()
        return (1 - share_B) * distances_B
