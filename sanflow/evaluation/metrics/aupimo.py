"""Area under the per-image-overlap curve (AUPIMO): the share of a defect that is found at few false alarms.

The horizontal axis is the mean over *normal images* of the false-positive rate within each, on a logarithmic scale from
1e-5 to 1e-4: at its right end one pixel in ten thousand of a good product is a false alarm. The vertical axis is the
share of the anomalous pixels of one image that is found. Every anomalous image has its own curve, and so its own score.

Between two distinct scores the curve is linear in the rate, as for AUPRO; the authors sample thresholds and join
them linearly in the logarithm. The two agree where scores do not tie with those of normal images.

Source:
    AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance (Bertoldo et al., 2024)
    https://arxiv.org/abs/2401.01984
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sanflow.evaluation.metric_table import AUPIMO_RANGE
from sanflow.evaluation.metrics.areas import log_area_between
from sanflow.evaluation.metrics.inputs import Maps, Masks, MetricWarning, check_maps, undefined

FEWEST_STEPS = 10  # distinct rates in the range; with fewer the score is too coarse


def aupimo(maps: Maps, masks: Masks, lower: float = AUPIMO_RANGE[0], upper: float = AUPIMO_RANGE[1]) -> float:
    """Compute the mean over anomalous images of the area under the per-image-overlap curve.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes. An image without anomalous pixels is normal.
        lower: Lower end of the false-positive rate on normal images, above 0.
        upper: Its upper end, at most 1.

    Returns:
        AUPIMO in [0, 1]. NaN with a `MetricWarning` where no image is anomalous or none is normal.

    Raises:
        ValueError: If shapes differ, a score is not finite or the range is not 0 < lower < upper <= 1.

    Example:
        A normal image of 16 pixels. Half of the defect outscores all of it; the other half is below a
        quarter of it, and 1 / 4 is the middle of the range in the logarithm:

        >>> maps = np.array([[range(16)], [[99] * 8 + [11.5] * 8]])
        >>> masks = np.array([[[0] * 16], [[1] * 16]])
        >>> aupimo(maps, masks, lower=1 / 16, upper=1.0)  # (1 + 1 / 2) / 2
        0.75
    """
    return mean_overlap(aupimo_per_image(maps, masks, lower, upper))


def mean_overlap(each_N: NDArray[np.float64]) -> float:
    """Average what `aupimo_per_image` returns over the anomalous images; NaN if there is none."""
    return float("nan") if np.isnan(each_N).all() else float(np.nanmean(each_N))


def aupimo_per_image(
    maps: Maps, masks: Masks, lower: float = AUPIMO_RANGE[0], upper: float = AUPIMO_RANGE[1]
) -> NDArray[np.float64]:
    """Compute the area under the per-image-overlap curve of each anomalous image.

    Warns where the normal images have too few pixels for their false-positive rate to take ten values in the range.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        lower: Lower end of the false-positive rate on normal images, above 0.
        upper: Its upper end, at most 1.

    Returns:
        Scores in [0, 1], (n,), in the order of the maps; NaN for normal images.

    Raises:
        ValueError: If shapes differ, a score is not finite or the range is not 0 < lower < upper <= 1.
    """
    if not 0.0 < lower < upper <= 1.0:
        raise ValueError(f"Expected a range 0 < lower < upper <= 1, but got lower {lower} and upper {upper}.")
    map_list, mask_list = check_maps(maps, masks)
    is_normal = np.array([not mask.any() for mask in mask_list], dtype=bool)
    normals = [score.ravel() for score, normal in zip(map_list, is_normal, strict=True) if normal]
    each = np.full(len(map_list), np.nan)
    if not normals or is_normal.all():
        undefined("AUPIMO", "normal images" if len(map_list) and not normals else "anomalies")
        return each
    steps = sum(score.size for score in normals) * (upper - lower)
    if steps < FEWEST_STEPS:
        warnings.warn(
            f"AUPIMO's range {lower:g} to {upper:g} spans only {steps:.2g} pixels of the {len(normals)} normal "
            f"images (expected at least {FEWEST_STEPS}); use more or larger normal maps, or a wider range.",
            MetricWarning,
            stacklevel=2,
        )
    scores, rate = _highest_normals(normals, upper)
    for i in np.flatnonzero(~is_normal):
        inside = map_list[i][mask_list[i]]
        start = rate[scores.size - np.searchsorted(scores, inside, side="right")]
        end = rate[scores.size - np.searchsorted(scores, inside, side="left")]
        weight = np.full(inside.size, 1.0 / inside.size)
        each[i] = log_area_between(weight, start, end, lower, upper) / np.log(upper / lower)
    return np.clip(each, 0.0, 1.0)


def _highest_normals(
    normals: Sequence[NDArray[np.floating]], upper: float
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return the highest scores of normal images and the mean rate at which they are called anomalous.

    A threshold whose mean rate is at most `upper` is exceeded by at most `upper * size * n` pixels of one image,
    so no more of each image's scores are needed.

    Returns:
        Scores, ascending, (K,), and the mean rate when the highest 0, 1, ..., K of them are called, (K + 1,).
        Lower scores get a rate not below `upper`, which is enough here.
    """
    kept, shares = [], []
    for score in normals:
        n_kept = min(int(np.ceil(upper * score.size * len(normals))) + 1, score.size)
        lowest = np.partition(score, score.size - n_kept)[score.size - n_kept]
        kept.append(score[score >= lowest])
        shares.append(np.full(kept[-1].size, 1.0 / (score.size * len(normals))))
    scores, share = np.concatenate(kept), np.concatenate(shares)
    order = np.argsort(scores)
    return scores[order], np.concatenate([[0.0], np.cumsum(share[order[::-1]])])
