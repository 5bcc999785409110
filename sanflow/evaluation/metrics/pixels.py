"""All pixel metrics and curves of a set of anomaly maps, from one sort of its scores."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sanflow.evaluation.metric_table import AUPIMO_RANGE
from sanflow.evaluation.metrics.aupimo import aupimo_per_image, mean_overlap
from sanflow.evaluation.metrics.aupro import ranked_aupro
from sanflow.evaluation.metrics.classification import RankedMeasures
from sanflow.evaluation.metrics.curves import ranked_pr_polyline, ranked_pro_polyline, ranked_roc_polyline
from sanflow.evaluation.metrics.inputs import Maps, Masks
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels


class PixelMeasures(RankedMeasures):
    """Exact measures of a set of anomaly maps, from which the formulas of `metric_table` make metrics.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.

    Raises:
        ValueError: If shapes differ or a score is not finite.
    """

    def __init__(self, maps: Maps, masks: Masks) -> None:
        super().__init__(rank_pixels(maps, masks))
        self._maps, self._masks = maps, masks

    def region_overlap(self, limit: float) -> float:
        """Compute the mean overlap of regions up to a false-positive rate: AUPRO."""
        return ranked_aupro(self.ranking, limit)

    def image_overlap(self, lower: float, upper: float) -> float:
        """Compute the mean overlap per anomalous image between two false-positive rates: AUPIMO."""
        if (lower, upper) == AUPIMO_RANGE:
            return mean_overlap(self.aupimo_N)
        return mean_overlap(aupimo_per_image(self._maps, self._masks, lower, upper))

    @cached_property
    def aupimo_N(self) -> NDArray[np.float64]:
        """AUPIMO of each image, (n,); NaN for normal ones."""
        return aupimo_per_image(self._maps, self._masks)


def pixel_metrics(maps: Maps, masks: Masks) -> dict[str, float]:
    """Compute every metric of anomaly maps, under the names they have in metrics.json.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.

    Returns:
        Those of level "pixel" in `metric_table` as fractions, and pixel_f1_threshold in units of the score. NaN with a
        `MetricWarning` where the set lacks a class.

    Raises:
        ValueError: If shapes differ or a score is not finite.

    Example:
        >>> maps, masks = np.zeros((2, 512, 512)), np.zeros((2, 512, 512), dtype=bool)
        >>> maps[0, 9, 9], masks[0, 9, 9] = 3.0, True
        >>> found = pixel_metrics(maps, masks)
        >>> found["pixel_auroc"], found["aupro"], found["pixel_f1_threshold"]
        (1.0, 1.0, 3.0)
    """
    return PixelMeasures(maps, masks).metrics("pixel")


def pixel_curves(
    maps: Maps, masks: Masks, max_points: int = 1000, ranking: Ranking | None = None
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Compute curves of anomaly maps for figures, each of at most `max_points` points.

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
