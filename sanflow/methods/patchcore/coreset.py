r"""Choose a small subset of points that covers all of them: greedy k-center.

Each pick is the point farthest from the picks before it, argmax_i min_j ||x_i - c_j||. The plain algorithm passes over
all points once per pick. Here one pass is enough for many picks, and the picks are the same:

1. Of all points take the candidates: those with the largest distances d_i. Every other point has d_i <= T.
2. Pick among the candidates alone, and update their distances, as long as the largest is at least T. Distances only
   shrink, so no other point can be the farthest meanwhile.
3. Update the distances of all points to the new picks with matrix products.

Step 3 computes in float32 and finds the points whose distance may have become smaller, with a margin for rounding.
Only their distances are computed again, in float64; so all distances are in float64.

Shapes: N points, D dimensions, C channels, K new picks.

Source: Active learning for convolutional neural networks: a core-set approach (Sener and Savarese, ICLR 2018),
https://arxiv.org/abs/1708.00489.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CANDIDATES = 1024
# Points of one matrix product: its result stays in a processor's cache.
BLOCK = 2048


def random_projection(channels: int, dimensions: int, seed: int) -> Tensor:
    """Draw a Gaussian matrix that keeps squared distances on average.

    Arguments:
        channels: Rows of the matrix.
        dimensions: Columns of the matrix.
        seed: The global generator is neither read nor moved.

    Returns:
        (C, D) float32, on the CPU.

    Source: Extensions of Lipschitz mappings into a Hilbert space (Johnson and Lindenstrauss, 1984).
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, dimensions, generator=generator) / dimensions**0.5


def greedy_k_center(points_ND: Tensor, count: int, start: int, report: Callable[[int], object] | None = None) -> Tensor:
    """Pick points one after another, each the farthest from those before it.

    Arguments:
        points_ND: Floating-point numbers, on any device.
        count: How many to pick, the first one included.
        start: Index of the first pick.
        report: Called with the number of picks so far, after each pass over the points.

    Returns:
        (count,) int64 indices in the order of picking, each once, on the CPU. Of equally far points any may come first.

    Raises:
        ValueError: If there are fewer points than picks.

    Example:
        >>> greedy_k_center(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), count=3, start=0)
        tensor([0, 3, 2])
    """
    if not 1 <= count <= len(points_ND) or not 0 <= start < len(points_ND):
        raise ValueError(
            f"Expected to pick 1 to {len(points_ND)} points and to start at one of them, but got "
            f"count {count} and start {start}."
        )
    points = _Points(points_ND)
    picks = new = [start]
    while True:
        points.cover(new)
        if report is not None:
            report(len(picks))
        if len(picks) == count:
            return torch.tensor(picks)
        new = points.farthest(count - len(picks))
        picks = picks + new


class _Points:
    """Points with their squared distance to the nearest pick."""

    def __init__(self, points_ND: Tensor) -> None:
        self.points_ND = points_ND
        # Smaller norms lose fewer digits to cancellation.
        self.mean_D = points_ND.mean(0, dtype=torch.float64)
        blocks = [self._rows(slice(first, first + BLOCK)) for first in range(0, len(points_ND), BLOCK)]
        self.squares_N = torch.cat([block_BD.square().sum(1) for block_BD in blocks])
        self.distances_N = torch.full_like(self.squares_N, torch.inf)

    def _rows(self, which: slice | Tensor) -> Tensor:
        return self.points_ND[which].double() - self.mean_D

    def cover(self, new: list[int]) -> None:
        """Update the distances of all points after new picks."""
        new_K = torch.tensor(new, device=self.points_ND.device)
        picks_KD, squares_K1 = -2 * self._rows(new_K), self.squares_N[new_K, None]
        rough_KD, rough_K1 = picks_KD.float(), squares_K1.float()
        # What rounding can add up to in a product of D terms in float32.
        unit = (len(self.mean_D) + 4) * torch.finfo(torch.float32).eps
        largest = squares_K1.max()
        for first in range(0, len(self.points_ND), BLOCK):
            part = slice(first, first + BLOCK)
            block_BD, squares_B = self._rows(part), self.squares_N[part]
            rough_B = torch.addmm(rough_K1, rough_KD, block_BD.float().T).amin(0)
            slack_B = unit * (largest + 2 * (squares_B * largest).sqrt())
            nearer = torch.nonzero(rough_B <= self.distances_N[part] - squares_B + slack_B)[:, 0]
            exact = torch.addmm(squares_K1, picks_KD, block_BD[nearer].T).amin(0) + squares_B[nearer]
            nearer += first
            self.distances_N[nearer] = torch.minimum(self.distances_N[nearer], exact.clamp_(min=0))
        # Below any distance, so that no point is picked twice, even if others are equal to it.
        self.distances_N[new_K] = -1

    def farthest(self, most: int) -> list[int]:
        """Pick as long as the farthest of all points is known to be among the candidates."""
        top, indices = torch.topk(self.distances_N, min(CANDIDATES, len(self.distances_N)))
        # On the CPU: one pick is too little work for a GPU, which would have to be waited for each time.
        distances_M, candidates_MD, squares_M = top.cpu(), self._rows(indices).cpu(), self.squares_N[indices].cpu()
        threshold = distances_M[-1].item()
        picked: list[int] = []
        while len(picked) < most:
            best = int(distances_M.argmax())
            if distances_M[best].item() < max(threshold, 0):
                break
            picked.append(best)
            to_pick_M = torch.mv(candidates_MD, candidates_MD[best]).mul_(-2).add_(squares_M).add_(squares_M[best])
            torch.minimum(distances_M, to_pick_M.clamp_(min=0), out=distances_M)
            distances_M[picked] = -1
        return indices.cpu()[picked].tolist()
