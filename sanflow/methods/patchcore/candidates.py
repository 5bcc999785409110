r"""Find the nearest patch of a memory bank with bf16 products, exactly.

Processors with matrix instructions for bf16 multiply it several times as fast as float32, but its rounding of a
distance may hide the nearest patch. So bf16 only finds candidates, and their distances are computed in float32:

1. Round patches x and m of the bank to bf16, x' and m'. With e = ||x - x'|| + max_m ||m - m'||, the triangle inequality
   gives | ||x - m|| - ||x' - m'|| | <= e. So the nearest patch has ||x' - m'|| <= min_m ||x' - m'|| + 2 e.
2. One matrix product gives r = x'.m' - ||x'||^2 / 2 - ||m'||^2 / 2 = -||x' - m'||^2 / 2 for all pairs. The squared
   lengths are further terms of it, each as a sum of two bf16 numbers. It is rounded to bf16 once, by at most u |r|.
3. Patches for which r is not certainly below the limit of step 1 are candidates: usually one to three.

Shapes: N patches, M patches in the bank, D dimensions, E = D + 4 terms, G groups of the bank, S = `GROUP` patches of a
group, L pairs of a patch and a group, K candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Maxima of groups are computed first: candidates are looked for in few groups only.
GROUP = 32
# A patch with candidates in more groups is not decided here: float32 for all of the bank takes less time.
MOST_GROUPS = 32
# Numbers of candidates that are compared at once: 1 MB stays in a processor's cache.
BLOCK_NUMBERS = 2**18

BF16 = torch.bfloat16
UNIT = torch.finfo(BF16).eps / 2


class CandidateSearch:
    """A memory bank for step 1 to 3.

    Arguments:
        patches_MD: Float32, centred.
    """

    def __init__(self, patches_MD: Tensor) -> None:
        self.patches_MD = patches_MD
        rounded_MD = patches_MD.to(BF16)
        squares_M = rounded_MD.float().square().sum(1)
        self.largest_error = torch.linalg.vector_norm(patches_MD - rounded_MD.float(), dim=1).max()
        self.largest_square = squares_M.max()
        ones_M2 = torch.ones(len(patches_MD), 2, dtype=BF16, device=patches_MD.device)
        bank_ME = torch.cat([rounded_MD, _two_terms(-squares_M / 2), ones_M2], 1)
        # Whole groups: added rows are infinitely far from all patches.
        self.bank_ME = F.pad(bank_ME, (0, 0, 0, -len(bank_ME) % GROUP))
        self.bank_ME[len(bank_ME) :, -4] = -torch.inf

    def nearest(self, patches_ND: Tensor) -> Tensor:
        """Compute the squared distance of each patch to its nearest neighbour.

        Arguments:
            patches_ND: Float32, less the bank's mean.

        Returns:
            (N,); infinite for a patch with too many candidates, such as one that is far away from all of the bank.
        """
        count, dimensions = patches_ND.shape
        rounded_ND = patches_ND.to(BF16)
        squares_N = rounded_ND.float().square().sum(1)
        errors_N = torch.linalg.vector_norm(patches_ND - rounded_ND.float(), dim=1) + self.largest_error
        ones_N2 = torch.ones(count, 2, dtype=BF16, device=patches_ND.device)
        queries_NE = torch.cat([rounded_ND, ones_N2, _two_terms(-squares_N / 2)], 1)
        rough_GSN = (self.bank_ME @ queries_NE.T).unflatten(0, (-1, GROUP))
        highest_GN = rough_GSN.amax(1)
        # Of a sum of D terms in float32, and of the two terms of a squared length.
        slack_N = (dimensions * 2**-23 + 2**-16) * (squares_N + self.largest_square)
        shortest_N = ((2 / (1 - UNIT)) * (slack_N - highest_GN.amax(0).float()).clamp(min=0)).sqrt()
        limit_N = -(1 + UNIT) * (shortest_N + 2 * errors_N).square() / 2 - slack_N
        limit_N = (limit_N * (1 + 2 * UNIT)).to(BF16)  # rounding it must not raise it
        found_GN = highest_GN >= limit_N
        groups_L, patches_L = torch.nonzero(found_GN & (found_GN.sum(0) <= MOST_GROUPS), as_tuple=True)
        within_L, members_K = torch.nonzero(
            rough_GSN[groups_L, :, patches_L] >= limit_N[patches_L, None], as_tuple=True
        )
        of_patch_K, in_bank_K = patches_L[within_L], groups_L[within_L] * GROUP + members_K
        nearest_N = torch.full_like(squares_N, torch.inf)
        size = max(1, BLOCK_NUMBERS // dimensions)
        for of_patch_k, in_bank_k in zip(of_patch_K.split(size), in_bank_K.split(size), strict=True):
            squared_k = (patches_ND[of_patch_k] - self.patches_MD[in_bank_k]).square().sum(1)
            nearest_N.scatter_reduce_(0, of_patch_k, squared_k, "amin")
        return nearest_N


def _two_terms(values_N: Tensor) -> Tensor:
    """Return two bf16 numbers whose sum is each value, to 16 bits; (N, 2)."""
    high_N = values_N.to(BF16)
    return torch.stack([high_N, (values_N - high_N.float()).to(BF16)], 1)
