"""Metrics of anomaly scores, in plain numpy and scipy.

A score is higher for more anomalous, everywhere in this package. Metrics are fractions; tables show them times
100. A set that lacks a class has no value: NaN, with a `MetricWarning`. docs/metrics.md has the definitions.
"""

from sanflow.evaluation.metrics.aupimo import aupimo, aupimo_per_image
from sanflow.evaluation.metrics.aupro import aupro, aupro_curve
from sanflow.evaluation.metrics.bootstrap import (
    Interval,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    bootstrap_saturated_metrics,
)
from sanflow.evaluation.metrics.classification import (
    RankedMeasures,
    auroc,
    average_precision,
    f1_max,
    f1_max_threshold,
    image_metrics,
    rank_scores,
)
from sanflow.evaluation.metrics.comparison import PairedComparison, compare_paired, mean_and_std
from sanflow.evaluation.metrics.curves import pr_curve, pro_curve, roc_curve, simplify
from sanflow.evaluation.metrics.inputs import MetricWarning
from sanflow.evaluation.metrics.pixels import PixelMeasures, pixel_curves, pixel_metrics
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels
from sanflow.evaluation.metrics.spro import SaturatedMeasures, ScoredImage, spro

__all__ = [
    "Interval",
    "MetricWarning",
    "PairedComparison",
    "PixelMeasures",
    "RankedMeasures",
    "Ranking",
    "SaturatedMeasures",
    "ScoredImage",
    "aupimo",
    "aupimo_per_image",
    "aupro",
    "aupro_curve",
    "auroc",
    "average_precision",
    "bootstrap_image_metrics",
    "bootstrap_pixel_metrics",
    "bootstrap_saturated_metrics",
    "compare_paired",
    "f1_max",
    "f1_max_threshold",
    "image_metrics",
    "mean_and_std",
    "pixel_curves",
    "pixel_metrics",
    "pr_curve",
    "pro_curve",
    "rank_pixels",
    "rank_scores",
    "roc_curve",
    "simplify",
    "spro",
]
