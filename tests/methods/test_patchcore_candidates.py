"""The search by bf16 products: the nearest patch is never lost, and its distance is that of float64 to rounding."""

import pytest
import torch

from sanflow.methods.patchcore import candidates, memory_bank
from sanflow.methods.patchcore.candidates import CandidateSearch
from sanflow.methods.patchcore.memory_bank import MemoryBank


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(patches_ND, bank_MD):
    return torch.cdist(patches_ND.double(), bank_MD.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def cases():
    noise, near = random_numbers(1000, 48), 0.02 * random_numbers(1000, 48, seed=1)
    clusters = random_numbers(20, 48, seed=2).repeat(50, 1)
    return {
        "noise": (random_numbers(70, 48, seed=3), noise),
        "clusters": (clusters[:70] + near[:70], clusters + near.flip(0)),
        "patches of the bank": (noise[5:75], noise),
        "far away": (10 + random_numbers(70, 48, seed=3), noise),
        "norms of many sizes": (
            random_numbers(70, 48, seed=3) * torch.logspace(-3, 3, 70)[:, None],
            noise * torch.logspace(-3, 3, 1000)[:, None],
        ),
        "one patch": (random_numbers(5, 3), random_numbers(1, 3, seed=1)),
        "zeros": (torch.zeros(2, 4), torch.eye(4)),
    }


@pytest.mark.parametrize("name", cases())
def test_distances_are_those_of_brute_force(name):
    patches_ND, bank_MD = cases()[name]
    found_N = CandidateSearch(bank_MD).nearest(patches_ND)
    torch.testing.assert_close(found_N.double().sqrt(), brute_force(patches_ND, bank_MD), rtol=1e-6, atol=1e-12)


def test_bf16_alone_would_find_another_patch():
    """Distances that differ by less than bf16 resolves: the check in float32 is needed, and it is enough."""
    patches_ND = random_numbers(64, 32)
    bank_MD = (patches_ND[:, None] + 0.3 + 0.005 * random_numbers(64, 40, 32, seed=1)).flatten(0, 1)
    rounded = torch.cdist(patches_ND.bfloat16().double(), bank_MD.bfloat16().double()).argmin(1)
    expected = torch.cdist(patches_ND.double(), bank_MD.double())
    assert (rounded != expected.argmin(1)).float().mean() > 0.1
    found_N = CandidateSearch(bank_MD).nearest(patches_ND)
    torch.testing.assert_close(found_N.double().sqrt(), expected.amin(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["equal", "far away"])
def test_patches_with_too_many_candidates_are_left_to_float32(monkeypatch, name):
    bank_MD, patches_ND = torch.ones(2000, 8), random_numbers(10, 8)
    if name == "far away":
        bank_MD = random_numbers(2000, 8)
        patches_ND[::3] *= 10_000
    undecided_N = torch.isinf(CandidateSearch(bank_MD - bank_MD.mean(0)).nearest(patches_ND - bank_MD.mean(0)))
    assert undecided_N.tolist() == [name == "equal" or place % 3 == 0 for place in range(10)]
    monkeypatch.setattr(memory_bank, "multiplies_bf16", lambda device: True)
    expected_N = brute_force(patches_ND, bank_MD)
    torch.testing.assert_close(MemoryBank(bank_MD).distances(patches_ND).double(), expected_N, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(candidates, "MOST_GROUPS", 10_000)
    monkeypatch.setattr(candidates, "BLOCK_NUMBERS", 100)
    found_N = CandidateSearch(bank_MD - bank_MD.mean(0)).nearest(patches_ND - bank_MD.mean(0))
    torch.testing.assert_close(found_N.double().sqrt(), expected_N, rtol=1e-5, atol=0)


def test_processors_with_and_without_bf16_agree(monkeypatch):
    patches_ND, bank_MD = random_numbers(600, 24) + 5, random_numbers(500, 24, seed=1) + 5
    found = []
    for has_bf16 in (False, True):
        monkeypatch.setattr(memory_bank, "multiplies_bf16", lambda device, has_bf16=has_bf16: has_bf16)
        bank = MemoryBank(bank_MD)
        assert (bank.search is not None) == has_bf16
        found.append(bank.distances(patches_ND))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)
    assert MemoryBank(bank_MD.double()).search is None
