"""ROC, precision-recall and per-region-overlap curves with few enough points to draw and to keep in a file.

Each curve is a polyline whose trapezoid area is the metric it belongs to, before it is thinned and, within 1e-4,
after.
"""

import heapq
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sanflow.evaluation.metrics.aupro import cut_at, ranked_pro_curve
from sanflow.evaluation.metrics.classification import rank_scores
from sanflow.evaluation.metrics.inputs import Maps, Masks, undefined
from sanflow.evaluation.metrics.ranking import Ranking, rank_pixels

Values = NDArray[np.float64]
Indices = int | NDArray[np.int64]
Curve = tuple[Values, Values]
INVISIBLE = 2e-4  # distance between curve and chord that no figure shows
PRETHIN = 200_000  # points that the search for the best ones looks at


def roc_curve(scores: ArrayLike, labels: ArrayLike, max_points: int = 1000) -> Curve:
    """Receiver operating characteristic of labelled scores, from (0, 0) to (1, 1).

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
    """Precision over recall of labelled scores, as the steps whose area is the average precision.

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
    """Per-region-overlap curve over the whole range of the false-positive rate; `aupro_curve` has every corner.

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
    """Thinned ROC curve of a ranking."""
    if ranking.missing:
        undefined("the ROC curve", ranking.missing)
        return np.empty(0), np.empty(0)
    found = np.cumsum(ranking.positives) / ranking.n_positives
    rate = np.stack([ranking.start, ranking.end], axis=1).ravel()
    height = np.stack([np.concatenate([[0.0], found[:-1]]), found], axis=1).ravel()
    return simplify(*cut_at(rate, height, 1.0), max_points)


def ranked_pr_polyline(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Thinned precision-recall curve of a ranking."""
    if ranking.missing:
        undefined("the precision-recall curve", ranking.missing)
        return np.empty(0), np.empty(0)
    hits = np.cumsum(ranking.positives)
    recall = hits / ranking.n_positives
    precision = hits / (hits + ranking.negatives_at_least)
    x = np.stack([np.concatenate([[0.0], recall[:-1]]), recall], axis=1).ravel()
    return simplify(x, np.repeat(precision, 2), max_points)


def ranked_pro_polyline(ranking: Ranking, max_points: int = 1000) -> Curve:
    """Thinned per-region-overlap curve of a ranking of pixels."""
    return simplify(*ranked_pro_curve(ranking), max_points)


def simplify(x: Values, y: Values, max_points: int = 1000) -> Curve:
    """A polyline through at most `max_points` of a polyline's own points, of the same look and area.

    Half of the points go where the line is farthest from its chord, which keeps the look. The others go where the
    chord's area is most wrong, each to the point that leaves least error on its sides and in the whole, which keeps
    the area: it moves by less than 1e-4 from 500 points upwards, also for staircases with thousands of steps. Only a
    line with more large teeth than points, which no metric here draws, can lose more.

    Arguments:
        x: Abscissae within [0, 1], not descending, (M,).
        y: Ordinates within [0, 1], (M,).
        max_points: Most points to return, at least 4.

    Returns:
        Abscissae and ordinates of the points kept, (K,) each; the first and last point always among them.

    Raises:
        ValueError: If `max_points` is below 4.
    """
    if max_points < 4:
        raise ValueError(f"Expected max_points of at least 4, but got {max_points}.")
    if x.size <= max_points:
        return x, y
    x, y = _without_the_dense(x, y)
    kept = _refine_look(x, y, [0, x.size - 1], (max_points + 2) // 2)
    kept = _refine_area(x, y, kept, max_points)
    return x[kept], y[kept]


def _without_the_dense(x: Values, y: Values) -> Curve:
    """One point per equal stretch of the polyline, where it has more than `PRETHIN` points."""
    if x.size <= PRETHIN:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    stretch = np.floor(length * (PRETHIN / length[-1])).astype(np.int64)
    first = np.concatenate([[True], stretch[1:] != stretch[:-1]])
    first[-1] = True
    return x[first], y[first]


def _refine_look(x: Values, y: Values, kept: list[int], max_points: int) -> list[int]:
    """Split the chord that is farthest from the line, at its farthest point, until none is visibly far."""

    def farthest_within(first: int, last: int) -> tuple[float, int, int, int]:
        """Negative distance (for the heap), the chord's first point, the point farthest from it, its last point."""
        if last - first < 2:
            return 0.0, first, first, last
        across, up = x[last] - x[first], y[last] - y[first]
        inner = slice(first + 1, last)
        distance = np.abs(across * (y[inner] - y[first]) - up * (x[inner] - x[first]))
        farthest = int(np.argmax(distance))
        return -float(distance[farthest]) / (np.hypot(across, up) or 1.0), first, first + 1 + farthest, last

    heap = [farthest_within(first, last) for first, last in pairwise(kept)]
    heapq.heapify(heap)
    kept = list(kept)
    while len(kept) < max_points and -heap[0][0] > INVISIBLE:
        _, first, split, last = heapq.heappop(heap)
        kept.append(split)
        heapq.heappush(heap, farthest_within(first, split))
        heapq.heappush(heap, farthest_within(split, last))
    return sorted(kept)


def _refine_area(x: Values, y: Values, kept: list[int], max_points: int) -> list[int]:
    """Split the chord whose area is most wrong where that leaves least error, on both sides and in the whole."""
    area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2.0)])

    def error(first: Indices, last: Indices) -> Values:
        """Area under the line minus that under the chord."""
        return area[last] - area[first] - (x[last] - x[first]) * (y[last] + y[first]) / 2.0

    heap = [(-abs(float(error(first, last))), first, last) for first, last in pairwise(kept)]
    heapq.heapify(heap)
    whole = float(sum(error(first, last) for first, last in pairwise(kept)))
    kept = list(kept)
    while len(kept) < max_points and -heap[0][0] > 1e-9:
        _, first, last = heapq.heappop(heap)
        inner = np.arange(first + 1, last)
        left, right = error(first, inner), error(inner, last)
        rest = whole - error(first, last) + left + right
        best = int(np.argmin(np.abs(left) + np.abs(right) + np.abs(rest)))
        split, whole = int(inner[best]), float(rest[best])
        kept.append(split)
        heapq.heappush(heap, (-abs(float(left[best])), first, split))
        heapq.heappush(heap, (-abs(float(right[best])), split, last))
    return sorted(kept)
