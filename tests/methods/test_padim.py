"""PaDiM: hand-sized Gaussians, streaming, invariance, and anomalib's distances on the same features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis

from sanflow.errors import ConfigError, DataError
from sanflow.methods.padim.features import choose_dimensions, chosen_by_tap, features_at_positions
from sanflow.methods.padim.gaussians import GaussianStatistics, mahalanobis, unpack

N_TRAIN = 30


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(features_PBD: torch.Tensor, batch: int | None = None) -> GaussianStatistics:
    statistics = GaussianStatistics(features_PBD.shape[0], features_PBD.shape[2])
    for part in features_PBD.split(batch or features_PBD.shape[1], dim=1):
        statistics.update(part)
    return statistics


def distances(statistics: GaussianStatistics, features_PBD: torch.Tensor, regularizer: float = 0.01) -> torch.Tensor:
    factors_PDD = unpack(statistics.whitening(regularizer), features_PBD.shape[2])
    return mahalanobis(features_PBD, statistics.mean_PD.float(), factors_PDD)


def test_distance_by_hand():
    # One position, two images at 1 and 3: mean 2, variance 2 (one degree of freedom), with the regulariser 2.01.
    statistics = fitted(torch.tensor([[[1.0], [3.0]]]))
    assert statistics.mean_PD.item() == 2
    assert distances(statistics, torch.tensor([[[2.0], [5.0]]])).tolist() == [[0, pytest.approx(3 / 2.01**0.5)]]


def test_distances_equal_scipy_s():
    train, test = random_features(4, 12, 5) @ random_features(5, 5, seed=1) + 3, random_features(4, 3, 5, seed=2)
    found = distances(fitted(train, batch=5), test)
    for position in range(4):
        covariance = np.cov(train[position].double().numpy(), rowvar=False) + 0.01 * np.eye(5)
        mean, inverse = train[position].double().mean(0).numpy(), np.linalg.inv(covariance)
        expected = [scipy_mahalanobis(image.double().numpy(), mean, inverse) for image in test[position]]
        np.testing.assert_allclose(found[position], expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 7, 40])
def test_streaming_equals_the_whole(batch):
    features_PBD = random_features(3, 40, 6) + 100  # a large mean, where sums of squares would lose digits
    whole, streamed = fitted(features_PBD), fitted(features_PBD, batch)
    assert streamed.count == 40
    torch.testing.assert_close(streamed.mean_PD, whole.mean_PD, rtol=1e-12, atol=0)
    expected = torch.stack([torch.cov(position.double().T) * 39 for position in features_PBD])
    torch.testing.assert_close(streamed.products_PDD.double(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(distances(streamed, features_PBD), distances(whole, features_PBD), rtol=1e-4, atol=0)


def test_distances_do_not_change_when_features_are_shifted_or_rotated():
    train, test = random_features(2, 20, 4), random_features(2, 3, 4, seed=1)
    expected = distances(fitted(train), test)
    torch.testing.assert_close(distances(fitted(train + 5), test + 5), expected, rtol=1e-4, atol=0)
    rotation, _ = torch.linalg.qr(random_features(4, 4, seed=2))
    torch.testing.assert_close(distances(fitted(train @ rotation), test @ rotation), expected, rtol=1e-4, atol=0)


def test_fewer_images_than_dimensions_are_enough():
    train = random_features(1, 3, 10)
    far = distances(fitted(train), train.mean(1, keepdim=True) + 1)
    assert torch.isfinite(far).all()
    assert far.item() > 1


def test_packed_factors_are_lower_triangles():
    statistics = fitted(random_features(2, 9, 4))
    packed_PK = statistics.whitening()
    assert packed_PK.shape == (2, 10)
    factors_PDD = unpack(packed_PK, 4)
    assert (factors_PDD.triu(1) == 0).all()
    covariance_PDD = statistics.products_PDD / 8 + 0.01 * torch.eye(4)
    identity_PDD = factors_PDD @ covariance_PDD @ factors_PDD.mT
    torch.testing.assert_close(identity_PDD, torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-5)


def test_features_stand_where_their_cells_are():
    fine_BChw = torch.arange(16.0).reshape(1, 1, 4, 4)
    coarse_BChw = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    features_PBD = features_at_positions([fine_BChw, coarse_BChw], [torch.tensor([0]), torch.tensor([0])])
    assert features_PBD[:, 0, 0].tolist() == list(range(16))
    assert features_PBD[:, 0, 1].reshape(4, 4).tolist() == [
        [10, 10, 20, 20],
        [10, 10, 20, 20],
        [30, 30, 40, 40],
        [30, 30, 40, 40],
    ]
    reordered_PBD = features_at_positions([coarse_BChw, fine_BChw], chosen_by_tap(torch.tensor([0, 2]), [2, 1]))
    assert torch.equal(reordered_PBD.flip(2), features_PBD)


def test_dimensions_are_those_of_the_paper_and_depend_on_the_seed():
    assert len(choose_dimensions([64, 128, 256], None, seed=0)) == 100
    assert len(choose_dimensions([256, 512, 1024], None, seed=0)) == 550
    assert len(choose_dimensions([24, 40, 112], None, seed=0)) == 100
    assert choose_dimensions([4, 5], None, seed=0).tolist() == list(range(9))
    first, again, other = (choose_dimensions([100], 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(set(first.tolist())) == 10
    assert first.max() < 100


def test_more_dimensions_than_channels_are_refused():
    message = r"Expected `dimensions` of at most 9, the channels of all taps together \(4 \+ 5\), but got 10"
    with pytest.raises(ConfigError, match=message):
        choose_dimensions([4, 5], 10, seed=0)


def test_one_training_image_is_refused():
    with pytest.raises(DataError, match="Expected at least 2 training images, because a covariance needs them, but go"):
        fitted(random_features(2, 1, 3)).whitening()


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="Expected finite features, but got NaN or infinity"):
        fitted(torch.full((2, 3, 3), torch.nan)).whitening()


def test_distances_equal_anomalib_s():
    golden = np.load(Path(__file__).parents[1] / "reference" / "neighbours.npz")
    taps = [torch.from_numpy(golden[f"tap{i}"]) for i in range(3)]
    chosen = chosen_by_tap(torch.from_numpy(golden["chosen"]), [tap.shape[1] for tap in taps])
    features_PBD = features_at_positions(taps, chosen)
    # anomalib adds 1e-5 to the variances a second time.
    found = distances(fitted(features_PBD[:, :N_TRAIN], batch=8), features_PBD[:, N_TRAIN:], regularizer=0.01 + 1e-5)
    np.testing.assert_allclose(found.T.reshape(3, 8, 8), golden["padim_distances"], rtol=1e-4)
