"""Measure the standard deviation of each scale's features, so that it can be divided out before a flow.

Suffixes: B images, C channels of a scale, h and w map height and width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from sanflow.encoders.encoder import Encoder
from sanflow.errors import DataError


def measure_feature_scales(encoder: Encoder, batches: Iterable[Tensor]) -> list[float]:
    """Measure the standard deviation of each scale over images, channels and locations, before any division.

    Arguments:
        encoder: Its current `feature_scales` do not matter.
        batches: Normalised training images_B3HW, on the encoder's device.

    Returns:
        One number a scale, in the order of the flows; for `build_encoder(feature_scales=...)`.

    Raises:
        DataError: If there is no image, or the features of a scale do not vary or are not finite.
    """
    before = encoder.feature_scales
    encoder.set_feature_scales(None)
    counts = [0] * len(encoder.channels)
    means = [0.0] * len(encoder.channels)
    squares = [0.0] * len(encoder.channels)
    try:
        for images_B3HW in batches:
            for scale, features_BChw in enumerate(encoder(images_B3HW)):
                # Batches are merged by Chan's formula: sums of squares would lose digits where the mean is large.
                count = features_BChw.numel()
                variance, mean = torch.var_mean(features_BChw.double(), correction=0)
                total = counts[scale] + count
                step = mean.item() - means[scale]
                squares[scale] += variance.item() * count + step**2 * counts[scale] * count / total
                means[scale] += step * count / total
                counts[scale] = total
    finally:
        encoder.set_feature_scales(before)
    if counts[0] == 0:
        raise DataError("Expected at least one training image to measure the feature scales on, but got none.")
    spreads = [(square / count) ** 0.5 for square, count in zip(squares, counts, strict=True)]
    if not all(0 < spread < float("inf") for spread in spreads):
        raise DataError(
            f"Expected features that vary and are finite, but their standard deviations are {spreads}. "
            "Check the encoder's weights and the training images."
        )
    return spreads
