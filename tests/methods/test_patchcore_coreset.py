"""The fast coreset: its picks are those of plain greedy k-center, to 1e-5 of each distance."""

import numpy as np
import pytest
import torch

from sanflow.methods.patchcore import coreset
from sanflow.methods.patchcore.coreset import greedy_k_center, random_projection


def shortfalls(points_ND: torch.Tensor, picks: torch.Tensor) -> np.ndarray:
    """By how much each pick's distance falls short of the largest, relative, in float64 by the plain algorithm."""
    points = points_ND.double().numpy()
    nearest = np.full(len(points), np.inf)
    missed = []
    for before, pick in zip(picks[:-1].tolist(), picks[1:].tolist(), strict=True):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[before], axis=1))
        missed.append(1 - nearest[pick] / nearest.max())
    return np.array(missed)


def clusters(spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=generator) * spread
    return (centres[:, None] + torch.randn(20, 150, 16, generator=generator)).flatten(0, 1)


@pytest.mark.parametrize("spread", [0.0, 3.0, 1e4])
@pytest.mark.parametrize(("candidates", "block"), [(1024, 2048), (64, 500), (1, 3000)])
def test_each_pick_is_the_farthest_point(monkeypatch, spread, candidates, block):
    monkeypatch.setattr(coreset, "CANDIDATES", candidates)
    monkeypatch.setattr(coreset, "BLOCK", block)
    points_ND = clusters(spread) + 50
    picks = greedy_k_center(points_ND, count=300, start=7)
    assert picks[0] == 7
    assert len(set(picks.tolist())) == 300
    assert shortfalls(points_ND, picks).max() <= 1e-5


def test_picks_by_hand():
    points_ND = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert greedy_k_center(points_ND, 4, start=0).tolist() == [0, 3, 2, 1]


def test_the_same_points_and_start_give_the_same_picks():
    points_ND = clusters(3.0)
    assert torch.equal(greedy_k_center(points_ND, 200, 3), greedy_k_center(points_ND, 200, 3))


def test_equal_points_are_each_picked_once():
    picks = greedy_k_center(torch.ones(6, 2), 6, start=2)
    assert sorted(picks.tolist()) == list(range(6))
    twins = torch.tensor([[0.0], [0.0], [4.0], [4.0]])
    assert greedy_k_center(twins, 2, start=0)[1] in (2, 3)


def test_progress_is_reported_up_to_the_last_pick():
    reported: list[int] = []
    greedy_k_center(clusters(3.0), 250, 0, reported.append)
    assert reported[0] == 1
    assert reported[-1] == 250
    assert reported == sorted(reported)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (7, 0), (2, 6)])
def test_impossible_counts_and_starts_are_refused(count, start):
    with pytest.raises(ValueError, match="Expected to pick 1 to 6 points and to start at one of them, but got count"):
        greedy_k_center(torch.ones(6, 2), count, start)


def test_projection_keeps_squared_distances_on_average():
    projection_CD = random_projection(400, 300, seed=0)
    assert projection_CD.shape == (400, 300)
    assert projection_CD.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(projection_CD, random_projection(400, 300, seed=0))
    assert not torch.equal(projection_CD, random_projection(400, 300, seed=1))
