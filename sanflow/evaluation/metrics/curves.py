"""ROC, precision-recall and per-region-overlap curves with few enough points to draw and to keep in a file.

Each curve is a polyline whose trapezoid area is the metric it belongs to, before it is thinned and, within 1e-4,
after.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sanflow.evaluation.metrics.aupro import cut_at, ranked_pro_curve
from sanflow.evaluation.metrics.classification import rank_scores
from sanflow.evaluation.metrics.inputs import Maps, Masks, undefined
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels

Values = NDArray[np.float64]
Curve = tuple[Values, Values]


def roc_curve(scores: ArrayLike, labels: ArrayLike, max_points: int = 1000) -> Curve:
    """Compute the receiver operating characteristic of labelled scores, from (0, 0) to (1, 1).

    Arguments:
        scores: Real numbers, any shape.
        labels: True (or 1) where anomalous; same shape as scores.
        max_points: Most points to return, at least 4.

    Returns:
        False-positive and true-positive rates, ascending, (K,) each; empty, with a warning, where a class is missing.

    Raises:
        ValueError: If scores or labels are not what they must be, or `max_points` is below 4.

    Example:
        >>> rate, found = roc_curve([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1])
        >>> print(rate, found)
        [0.  0.  0.5 1. ] [0.  0.5 1.  1. ]
    """
    return ranked_roc_polyline(rank_scores(scores, labels), max_points)


def pr_curve(scores: ArrayLike, labels: ArrayLike, max_points: int = 1000) -> Curve:
    """Compute precision over recall of labelled scores, as the steps whose area is the average precision.

    Arguments:
        scores: Real numbers, any shape.
        labels: True (or 1) where anomalous; same shape as scores.
        max_points: Most points to return, at least 4.

    Returns:
        Recall, ascending from 0 to 1, and precision, (K,) each; empty, with a warning, where a class is missing.

    Raises:
        ValueError: If scores or labels are not what they must be, or `max_points` is below 4.

    Example:
        >>> recall, precision = pr_curve([4, 3, 2, 1], [1, 0, 0, 1])
        >>> print(recall, precision)
        [0.  0.5 0.5 1. ] [1.  1.  0.5 0.5]
    """
    return ranked_pr_polyline(rank_scores(scores, labels), max_points)


def pro_curve(maps: Maps, masks: Masks, max_points: int = 1000) -> Curve:
    """Compute the per-region-overlap curve over all false-positive rates, thinned; `aupro_curve` has every corner.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        max_points: Most points to return, at least 4.

    Returns:
        False-positive rates and mean region overlaps, ascending, (K,) each; empty, with a warning, where undefined.

    Raises:
        ValueError: If maps or masks are not what they must be, or `max_points` is below 4.
    """
    return ranked_pro_polyline(rank_pixels(maps, masks), max_points)


def ranked_roc_polyline(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Compute the thinned ROC curve of a ranking."""
    if ranking.missing:
        undefined("the ROC curve", ranking.missing)
        return np.empty(0), np.empty(0)
    found = np.cumsum(ranking.positives) / ranking.n_positives
    rate = np.stack([ranking.start, ranking.end], axis=1).ravel()
    height = np.stack([np.concatenate([[0.0], found[:-1]]), found], axis=1).ravel()
    return simplify(*cut_at(rate, height, 1.0), max_points)


def ranked_pr_polyline(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Compute the thinned precision-recall curve of a ranking."""
    if ranking.missing:
        undefined("the precision-recall curve", ranking.missing)
        return np.empty(0), np.empty(0)
    hits = np.cumsum(ranking.positives)
    recall = hits / ranking.n_positives
    precision = hits / (hits + ranking.negatives_at_least)
    x = np.stack([np.concatenate([[0.0], recall[:-1]]), recall], axis=1).ravel()
    return simplify(x, np.repeat(precision, 2), max_points)


def ranked_pro_polyline(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Compute the thinned per-region-overlap curve of a ranking of pixels."""
    return simplify(*ranked_pro_curve(ranking), max_points)


def simplify(x: Values, y: Values, max_points: int = 1000) -> Curve:
    """Thin a polyline to at most `max_points` points, of the same look and area.

    Points are spread evenly along the line by interpolation. A chord between two of them cuts corners, which would
    change the area; each inner point is therefore raised by half of the area that the chords on both sides miss. This
    moves a point by less than the distance between line and chords, and keeps the whole area up to rounding, except
    where an ordinate would leave [0, 1].

    Arguments:
        x: Abscissae within [0, 1], not descending, (M,).
        y: Ordinates within [0, 1], (M,).
        max_points: Most points to return, at least 4.

    Returns:
        Abscissae and ordinates, (K,) each; those of a line with few enough points are its own, the first and the last
        point always are.

    Raises:
        ValueError: If `max_points` is below 4.
    """
    if max_points < 4:
        raise ValueError(f"Expected max_points of at least 4, but got {max_points}.")
    if x.size <= max_points:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    at = np.linspace(0.0, length[-1], max_points)
    thin_x, thin_y = np.interp(at, length, x), np.interp(at, length, y)
    thin_x[-1], thin_y[-1] = x[-1], y[-1]
    before = np.searchsorted(length, at, side="right").clip(max=x.size) - 1
    area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2.0)])
    area = area[before] + (thin_x - x[before]) * (thin_y + y[before]) / 2.0
    missing = np.diff(area) - np.diff(thin_x) * (thin_y[1:] + thin_y[:-1]) / 2.0
    missing[[0, -1]] *= 2.0  # the ends do not move, so their neighbours correct all of the area
    width = thin_x[2:] - thin_x[:-2]
    raised = np.divide(missing[1:] + missing[:-1], width, out=np.zeros_like(width), where=width > 0.0)
    thin_y[1:-1] = np.clip(thin_y[1:-1] + raised, 0.0, 1.0)
    if np.all(np.diff(y) >= 0.0):
        thin_y[1:-1].sort()  # the correction may make a rising curve fall
    return thin_x, thin_y
