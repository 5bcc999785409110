"""PatchCore: nearest neighbours against brute force, patches by hand, and anomalib's distances on the same features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sanflow.methods.patchcore import memory_bank
from sanflow.methods.patchcore.memory_bank import MemoryBank, patch_features

N_TRAIN = 30


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_distance_by_hand():
    bank = MemoryBank(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    distances = bank.distances(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))
    torch.testing.assert_close(distances, torch.tensor([5.0, 1.0, 0.0]), rtol=1e-6, atol=1e-3)


def test_nearest_distances_equal_brute_force(monkeypatch):
    patches_MD, queries_ND = random_numbers(50, 7) + 20, random_numbers(33, 7, seed=1) + 20
    expected = torch.cdist(queries_ND.double(), patches_MD.double()).amin(1).float()
    whole = MemoryBank(patches_MD).distances(queries_ND)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(memory_bank, "BLOCK", 8)
    torch.testing.assert_close(MemoryBank(patches_MD).distances(queries_ND), expected, rtol=1e-5, atol=1e-5)


def test_reweighted_scores_equal_equation_7():
    patches_MD, farthest_BD = random_numbers(40, 6).double(), random_numbers(3, 6, seed=1).double() * 2
    bank = MemoryBank(patches_MD)
    found = bank.reweighted(farthest_BD, bank.distances(farthest_BD), neighbours=5)
    for image, patch_D in enumerate(farthest_BD):
        to_bank = (patch_D - patches_MD).norm(dim=1)
        nearest = to_bank.argmin()
        around = (patches_MD[nearest] - patches_MD).norm(dim=1).argsort()[:5]
        weight = 1 - to_bank[nearest].exp() / to_bank[around].exp().sum()
        assert found[image].item() == pytest.approx((weight * to_bank[nearest]).item(), rel=1e-9)


def test_reweighting_stays_finite_where_exponentials_overflow():
    bank = MemoryBank(random_numbers(20, 4) * 1000)
    farthest_BD = torch.full((1, 4), 1e4)
    scores = bank.reweighted(farthest_BD, bank.distances(farthest_BD), neighbours=5)
    assert torch.isfinite(scores).all()
    assert (scores > 0).all()


def test_patches_are_means_over_three_by_three_cells():
    features_BChw = torch.zeros(1, 1, 4, 4)
    features_BChw[0, 0, 1, 1] = 9
    expected = torch.zeros(4, 4)
    expected[:3, :3] = 1
    torch.testing.assert_close(patch_features([features_BChw])[0, 0], expected)


def test_coarser_taps_are_enlarged_to_the_finest_grid():
    fine_BChw, coarse_BChw = random_numbers(2, 3, 4, 4), torch.full((2, 5, 2, 2), 9.0)
    patches_BDhw = patch_features([coarse_BChw, fine_BChw])
    assert patches_BDhw.shape == (2, 8, 4, 4)
    # Every 3 x 3 window of a 2 x 2 grid holds its four cells and five zeros.
    torch.testing.assert_close(patches_BDhw[:, :5], torch.full((2, 5, 4, 4), 4.0))
    torch.testing.assert_close(patches_BDhw[:, 5:], patch_features([fine_BChw]))


def test_channels_are_pooled_by_averages():
    features_BChw = torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 2, 2)
    pooled_BDhw = patch_features([features_BChw], pooled_dimensions=4)
    means = patch_features([features_BChw])[0, :, 0, 0].reshape(4, 2).mean(1)
    torch.testing.assert_close(pooled_BDhw[0, :, 0, 0], means)
    assert patch_features([features_BChw, features_BChw], pooled_dimensions=4).shape == (1, 4, 2, 2)


def test_distances_and_scores_equal_anomalib_s():
    golden = np.load(Path(__file__).parents[1] / "reference" / "neighbours.npz")
    patches_BDhw = patch_features([torch.from_numpy(golden[f"tap{i}"]) for i in range(2)])
    patches_BPD = patches_BDhw.flatten(2).permute(0, 2, 1)
    bank = MemoryBank(patches_BPD[:N_TRAIN].flatten(0, 1)[torch.from_numpy(golden["bank"])])
    test_BPD = patches_BPD[N_TRAIN:]
    distances_BP = bank.distances(test_BPD.flatten(0, 1)).reshape(3, 64)
    expected = golden["patchcore_distances"].reshape(3, 64)
    assert np.abs(distances_BP.numpy() - expected).max() <= 1e-4 * expected.max()
    farthest_BD = test_BPD[torch.arange(3), distances_BP.argmax(1)]
    scores_B = bank.reweighted(farthest_BD, distances_BP.amax(1), neighbours=9)
    np.testing.assert_allclose(scores_B, golden["patchcore_scores"], rtol=1e-4)
