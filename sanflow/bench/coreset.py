"""Measure PatchCore's coreset: our greedy k-center beside the plain loop on the same array, from the same start."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from sanflow.device import choose_device, device_name
from sanflow.methods.patchcore.coreset import greedy_k_center

CELLS = 1024


def random_patches(points: int, dimensions: int, seed: int = 0) -> Tensor:
    """Draw points like the projected patches of aligned images: similar at one cell, and within one image.

    Arguments:
        points: Their number; 200 images of 32 x 32 cells are 204,800.
        dimensions: Numbers of each.
        seed: Of the points.

    Returns:
        (N, D) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    images = -(-points // CELLS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    of_cells_PD = normal(CELLS, 20) @ normal(20, dimensions)
    of_images_ID = 0.3 * normal(images, 10) @ normal(10, dimensions)
    patches_IPD = of_cells_PD + of_images_ID[:, None] + 0.6 * normal(images, CELLS, dimensions)
    return patches_IPD.flatten(0, 1)[:points]


def seconds_of_plain_picks(points_ND: Tensor, start: int, picks: int) -> list[float]:
    """Time of each pick of the plain algorithm: distances of all points to the last pick, then the largest minimum.

    Source: The loop of `KCenterGreedy` in anomalib 2.7, as an algorithm.
    """
    nearest_N = points_ND.new_full((len(points_ND),), torch.inf)
    last, seconds = start, []
    for _ in range(picks):
        begin = time.perf_counter()
        distances_N = torch.linalg.vector_norm(points_ND - points_ND[last], dim=1)
        nearest_N = torch.minimum(nearest_N, distances_N)
        last = int(nearest_N.argmax())
        nearest_N[last] = 0
        seconds.append(time.perf_counter() - begin)
    return seconds


def bench_coreset(
    *,
    points: int = 204_800,
    dimensions: int = 128,
    fraction: float = 0.1,
    plain_picks: int = 40,
    noise: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Time both on one array.

    Arguments:
        points: Points to choose from.
        dimensions: Numbers of each.
        fraction: How many of the points are picked.
        plain_picks: Picks of the plain loop that are timed, half of them before ours and half after; the rest is
            extrapolated, as each costs the same.
        noise: Points without any structure, the hardest case, in place of points like patches.
        device: `auto`, `cuda` or `cpu`.
        seed: Of the points.

    Returns:
        A dict that JSON can hold; times in seconds.
    """
    chosen = choose_device(device)
    count = max(2, round(points * fraction))
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(points, dimensions, generator=generator) if noise else random_patches(points, dimensions, seed)
    points_ND = made.to(chosen)
    half = max(1, plain_picks // 2)
    seconds_of_plain_picks(points_ND, 0, 2)
    before = seconds_of_plain_picks(points_ND, 0, half)
    passes: list[int] = []
    begin = time.perf_counter()
    greedy_k_center(points_ND, count, 0, passes.append)
    seconds = time.perf_counter() - begin
    per_pick = statistics.median(before + seconds_of_plain_picks(points_ND, 0, half))
    return {
        "points": points,
        "dimensions": dimensions,
        "picks": count,
        "data": "noise" if noise else "random patches",
        "device": device_name(chosen),
        "seconds": seconds,
        "picks_per_second": count / seconds,
        "passes_over_all_points": len(passes),
        "plain": {
            "picks_timed": 2 * half,
            "picks_per_second": 1 / per_pick,
            "seconds": per_pick * (count - 1),
            "seconds_are": f"extrapolated: {count - 1} x median of {2 * half} picks",
        },
        "times_faster": per_pick * (count - 1) / seconds,
    }
