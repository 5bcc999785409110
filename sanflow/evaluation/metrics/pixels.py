"""All pixel metrics and curves of a set of anomaly maps, from one sort of its scores."""

import numpy as np
from numpy.typing import NDArray

from sanflow.evaluation.metrics.aupimo import aupimo
from sanflow.evaluation.metrics.aupro import ranked_aupro
from sanflow.evaluation.metrics.classification import ranked_auroc, ranked_average_precision, ranked_f1_max
from sanflow.evaluation.metrics.curves import ranked_pr_polyline, ranked_pro_polyline, ranked_roc_polyline
from sanflow.evaluation.metrics.inputs import Maps, Masks
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels


def pixel_metrics(maps: Maps, masks: Masks, ranking: Ranking | None = None) -> dict[str, float]:
    """Every metric of anomaly maps, under the names they have in metrics.json.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        ranking: `rank_pixels(maps, masks)`, if it was made already.

    Returns:
        pixel_auroc, pixel_ap, pixel_f1_max, aupro (limit 0.3), aupro_05 (limit 0.05) and aupimo as fractions, and
        pixel_f1_threshold in units of the score. NaN with a `MetricWarning` where the set lacks a class.

    Raises:
        ValueError: If shapes differ or a score is not finite.

    Example:
        >>> maps, masks = np.zeros((2, 512, 512)), np.zeros((2, 512, 512), dtype=bool)
        >>> maps[0, 9, 9], masks[0, 9, 9] = 3.0, True
        >>> found = pixel_metrics(maps, masks)
        >>> found["pixel_auroc"], found["aupro"], found["pixel_f1_threshold"]
        (1.0, 1.0, 3.0)
    """
    ranking = rank_pixels(maps, masks) if ranking is None else ranking
    best, threshold = ranked_f1_max(ranking, "pixel F1-max")
    return {
        "pixel_auroc": ranked_auroc(ranking, "pixel AUROC"),
        "pixel_ap": ranked_average_precision(ranking, "pixel average precision"),
        "pixel_f1_max": best,
        "pixel_f1_threshold": threshold,
        "aupro": ranked_aupro(ranking, 0.3),
        "aupro_05": ranked_aupro(ranking, 0.05, "AUPRO at 0.05"),
        "aupimo": aupimo(maps, masks),
    }


def pixel_curves(
    maps: Maps, masks: Masks, max_points: int = 1000, ranking: Ranking | None = None
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Curves of anomaly maps for figures, each of at most `max_points` points.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        max_points: Most points of one curve; see `simplify`.
        ranking: `rank_pixels(maps, masks)`, if it was made already.

    Returns:
        "roc": false-positive rate, true-positive rate; "pr": recall, precision; "pro": false-positive rate, mean
        region overlap. All over the whole range, empty where undefined.

    Raises:
        ValueError: If shapes differ or a score is not finite.
    """
    ranking = rank_pixels(maps, masks) if ranking is None else ranking
    return {
        "roc": ranked_roc_polyline(ranking, max_points),
        "pr": ranked_pr_polyline(ranking, max_points),
        "pro": ranked_pro_polyline(ranking, max_points),
    }
