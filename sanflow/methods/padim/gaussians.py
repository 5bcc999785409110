r"""A Gaussian for every position of a grid, fitted to the features of normal images.

An image's distance at position p is Mahalanobis', \sqrt{(x - \mu_p)^T \Sigma_p^{-1} (x - \mu_p)}, with the covariance
\Sigma_p of the training features plus 0.01 I. With the Cholesky factor \Sigma = L L^T it is the length of
L^{-1} (x - \mu); only L^{-1} is kept, its lower triangle packed row by row.

Shapes: P positions, B images of a batch, D dimensions, K = D (D + 1) / 2 entries of a lower triangle, Q positions that
are worked on at once.

Source: PaDiM: a patch distribution modeling framework for anomaly detection and localization (Defard, Setkov, Loesch
and Audigier, ICPR 2020), https://arxiv.org/abs/2011.08785.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sanflow.errors import DataError

REGULARIZER = 0.01
# Memory of one block of float64 matrices.
BLOCK_BYTES = 64 << 20


class GaussianStatistics:
    """Means and covariances of a stream of features, position by position.

    It holds P x D x D numbers in float32 and no features of earlier batches. Batches are merged by Chan's formula: sums
    of squares would lose digits where a mean is large.

    Arguments:
        positions: P.
        dimensions: D.
        device: Where the statistics are.

    Attributes:
        count: Images so far.
        mean_PD: Mean of the features, float64.
        products_PDD: Sum of the products of the deviations from the mean.

    Source: Updating formulae and a pairwise algorithm for computing sample variances (Chan, Golub and LeVeque, 1979).
    """

    def __init__(self, positions: int, dimensions: int, device: torch.device | None = None) -> None:
        self.count = 0
        self.mean_PD = torch.zeros(positions, dimensions, dtype=torch.float64, device=device)
        self.products_PDD = torch.zeros(positions, dimensions, dimensions, device=device)

    def update(self, features_PBD: Tensor) -> None:
        """Take in the features of a batch of images."""
        batch = features_PBD.shape[1]
        mean_PD = features_PBD.mean(1, dtype=torch.float64)
        step_PD = mean_PD - self.mean_PD
        weight = self.count * batch / (self.count + batch)
        # The distance between the two means counts like one more deviation.
        deviations_PND = torch.cat(
            [features_PBD - mean_PD[:, None].float(), (weight**0.5 * step_PD)[:, None].float()], dim=1
        )
        self.products_PDD.baddbmm_(deviations_PND.transpose(1, 2), deviations_PND)
        self.count += batch
        self.mean_PD += step_PD * (batch / self.count)

    def whitening(self, regularizer: float = REGULARIZER) -> Tensor:
        """Compute the inverse Cholesky factors of the regularised covariances.

        Arguments:
            regularizer: What is added to each variance.

        Returns:
            packed_PK float32, on the CPU.

        Raises:
            DataError: If there are fewer than two images, or the features are not finite.
        """
        if self.count < 2:
            raise DataError(
                f"Expected at least 2 training images, because a covariance needs them, but got {self.count}. "
                "Add normal images to the training folder."
            )
        positions, dimensions = self.mean_PD.shape
        packed_PK = torch.empty(positions, dimensions * (dimensions + 1) // 2)
        if not torch.isfinite(self.mean_PD).all():
            raise DataError(
                "Expected finite features, but got NaN or infinity. "
                "Check the encoder's weights and the training images."
            )
        device = self.products_PDD.device
        rows_K, columns_K = torch.tril_indices(dimensions, dimensions, device=device)
        identity_DD = torch.eye(dimensions, dtype=torch.float64, device=device)
        for part in _blocks(positions, dimensions):
            covariance_QDD = self.products_PDD[part].double() / (self.count - 1) + regularizer * identity_DD
            factor_QDD = torch.linalg.cholesky(covariance_QDD)
            inverse_QDD = torch.linalg.solve_triangular(factor_QDD, identity_DD, upper=False)
            packed_PK[part] = inverse_QDD[:, rows_K, columns_K].float().cpu()
        return packed_PK


def unpack(packed_PK: Tensor, dimensions: int) -> Tensor:
    """Unpack lower-triangular matrices from their packed rows.

    Arguments:
        packed_PK: As `GaussianStatistics.whitening` gives them.
        dimensions: D.

    Returns:
        (P, D, D), zero above the diagonal.
    """
    factors_PDD = packed_PK.new_zeros(len(packed_PK), dimensions, dimensions)
    for row in range(dimensions):
        first = row * (row + 1) // 2
        factors_PDD[:, row, : row + 1] = packed_PK[:, first : first + row + 1]
    return factors_PDD


def mahalanobis(features_PBD: Tensor, mean_PD: Tensor, factors_PDD: Tensor) -> Tensor:
    """Compute the distances of features to their position's Gaussian.

    Arguments:
        features_PBD: Features of a batch of images.
        mean_PD: Means.
        factors_PDD: Inverse Cholesky factors, `unpack`ed.

    Returns:
        (P, B), at least 0.
    """
    deviations_PDB = (features_PBD - mean_PD[:, None]).transpose(1, 2)
    return torch.linalg.vector_norm(torch.bmm(factors_PDD, deviations_PDB), dim=1)


def _blocks(positions: int, dimensions: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // (8 * dimensions**2))
    for first in range(0, positions, size):
        yield slice(first, first + size)
