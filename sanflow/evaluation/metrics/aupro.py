"""Area under the per-region-overlap curve (AUPRO): how well defects of every size are found at few false alarms.

The curve has one point per distinct score. The horizontal axis is the false-positive rate over all pixels that are not
anomalous, in normal and anomalous images alike. The vertical axis is the mean over all connected regions of the share
of each that is found, so that a small defect has the same weight as a large one. The area is taken up to a limit of the
false-positive rate, with linear interpolation there, and divided by it.

It is computed without sampled thresholds: each anomalous pixel raises the curve by its share of its region, at the rate
of normal pixels that score higher. So the area is one sum over anomalous pixels.

Source:
    The MVTec Anomaly Detection Dataset (Bergmann et al., 2021), section 5.2
    https://doi.org/10.1007/s11263-020-01400-4
"""

import numpy as np
from numpy.typing import NDArray

from sanflow.evaluation.metric_table import AUPRO_LIMIT
from sanflow.evaluation.metrics.areas import area_up_to
from sanflow.evaluation.metrics.inputs import Maps, Masks, undefined
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels


def aupro(maps: Maps, masks: Masks, limit: float = AUPRO_LIMIT) -> float:
    """Compute the area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    Float64, exact with ties, and a function of the scores' order only. Regions are 8-connected.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        limit: Upper end of the false-positive rate, in (0, 1]; the default is that of MVTec AD.

    Returns:
        AUPRO in [0, 1]; limit / 2 is chance. NaN with a `MetricWarning` where no pixel or every pixel is anomalous.

    Raises:
        ValueError: If shapes differ, a score is not finite or the limit is not in (0, 1].

    Example:
        A row of 10 pixels whose last two are one region, found after 1 and after 4 of the 8 false alarms:

        >>> scores = np.array([[9, 7, 6, 5, 3, 2, 1, 0, 8, 4]])
        >>> aupro(scores[None], np.arange(10)[None, None] >= 8, limit=1.0)  # (7 / 8 + 4 / 8) / 2
        0.6875
    """
    return ranked_aupro(rank_pixels(maps, masks, limit=check_limit(limit)), limit)


def aupro_curve(maps: Maps, masks: Masks, limit: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute every corner of the per-region-overlap curve, up to a false-positive rate.

    Corners at which only the false-positive rate changes are left out: straight lines between the returned
    points are the whole curve, so the trapezoid rule over them divided by the limit is `aupro`.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        limit: False-positive rate at which the curve is cut, by interpolation, in (0, 1].

    Returns:
        False-positive rates, ascending from 0 to the limit, and mean region overlaps, ascending from 0; both (K,).
        Both empty, with a `MetricWarning`, where the curve is undefined.

    Raises:
        ValueError: If shapes differ, a score is not finite or the limit is not in (0, 1].

    Example:
        >>> scores = np.array([[9, 7, 6, 5, 3, 2, 1, 0, 8, 4]])
        >>> rate, overlap = aupro_curve(scores[None], np.arange(10)[None, None] >= 8)
        >>> print(rate, overlap)
        [0.    0.125 0.125 0.5   0.5   1.   ] [0.  0.  0.5 0.5 1.  1. ]
    """
    return ranked_pro_curve(rank_pixels(maps, masks, limit=check_limit(limit)), limit)


def check_limit(limit: float) -> float:
    """Check a limit and return it.

    Raises:
        ValueError: If it is not in (0, 1].
    """
    if not 0.0 < limit <= 1.0:
        raise ValueError(f"Expected a limit of the false-positive rate in (0, 1], but got {limit}.")
    return limit


def ranked_aupro(ranking: Ranking, limit: float = AUPRO_LIMIT) -> float:
    """Compute the AUPRO of a ranking of pixels (made with no limit, or with one not below this)."""
    if ranking.missing:
        return undefined("AUPRO", ranking.missing)
    check_limit(limit)
    area = sum(float(area_up_to(part.region_weight, part.start, part.end, limit)) for part in ranking.blocks())
    return min(area / limit, 1.0)  # the weights sum to 1 but for rounding


def ranked_pro_curve(ranking: Ranking, limit: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the corners of the per-region-overlap curve of a ranking of pixels, cut at a limit."""
    if ranking.missing:
        undefined("the per-region-overlap curve", ranking.missing)
        return np.empty(0), np.empty(0)
    risen = np.minimum(np.cumsum(ranking.region_weight), 1.0)
    rate = np.stack([ranking.start, ranking.end], axis=1).ravel()
    overlap = np.stack([np.concatenate([[0.0], risen[:-1]]), risen], axis=1).ravel()
    return cut_at(rate, overlap, limit)


def cut_at(
    rate: NDArray[np.float64], height: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start a curve at the origin and end it at `limit`, without repeated points.

    Example:
        >>> cut_at(np.array([0.0, 0.4]), np.array([0.0, 1.0]), 0.3)
        (array([0. , 0.3]), array([0.  , 0.75]))
    """
    within = int(np.searchsorted(rate, limit, side="right"))
    at_limit = height[within - 1] if within else 0.0
    if within < rate.size:
        before = rate[within - 1] if within else 0.0
        at_limit += (height[within] - at_limit) * (limit - before) / (rate[within] - before)
    x = np.concatenate([[0.0], rate[:within], [limit]])
    y = np.concatenate([[0.0], height[:within], [at_limit]])
    new = np.concatenate([[True], (np.diff(x) > 0) | (np.diff(y) > 0)])
    return x[new], y[new]
