"""AUROC, average precision and the best F1: how well scores separate anomalous from normal, exact with ties.

A score is higher for more anomalous, everywhere in this package. No thresholds are sampled and no sigmoid is
applied, so each value depends on the order of the scores only. A set that lacks a class has no value: NaN, with
a `MetricWarning`.
"""

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from sanflow.evaluation.metric_table import Level, metrics_of
from sanflow.evaluation.metrics.inputs import check_labelled_scores, undefined
from sanflow.evaluation.metrics.ranking import Ranking, rank


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Compute the chance that a random anomaly outscores a random normal; ties count half.

    Arguments:
        scores: Real numbers, any shape.
        labels: True (or 1) where anomalous; same shape as scores.

    Returns:
        AUROC in [0, 1]; 0.5 is chance. Tables show it times 100.

    Raises:
        ValueError: If shapes differ, a score is not finite or a label is neither 0 nor 1.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
    """
    return ranked_auroc(rank_scores(scores, labels))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean precision over the anomalies, each at its own score: the step sum, not a trapezoid.

    Arguments:
        scores: Real numbers, any shape.
        labels: True (or 1) where anomalous; same shape as scores.

    Returns:
        Average precision in (0, 1]; chance is the share of anomalies.

    Raises:
        ValueError: If shapes differ, a score is not finite or a label is neither 0 nor 1.

    Example:
        >>> average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])  # (1 / 1 + 2 / 3) / 2
        0.8333333333333333
    """
    return ranked_average_precision(rank_scores(scores, labels))


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float:
    """Compute the best F1 over every threshold; an upper bound, since the threshold is chosen with the labels.

    Arguments:
        scores: Real numbers, any shape.
        labels: True (or 1) where anomalous; same shape as scores.

    Returns:
        F1 in (0, 1].

    Raises:
        ValueError: If shapes differ, a score is not finite or a label is neither 0 nor 1.

    Example:
        >>> f1_max([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])  # 2 of 3 called are anomalous, none is missed
        0.8
    """
    return ranked_f1_max(rank_scores(scores, labels))[0]


def f1_max_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Find the highest threshold that reaches `f1_max`; anomalous is `score >= threshold`.

    Example:
        >>> f1_max_threshold([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
        0.7
    """
    return ranked_f1_max(rank_scores(scores, labels))[1]


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute all metrics of image scores, under the names they have in metrics.json.

    Returns:
        image_auroc, image_ap, image_f1_max (fractions) and image_f1_threshold (in units of the score).

    Raises:
        ValueError: If shapes differ, a score is not finite or a label is neither 0 nor 1.

    Example:
        >>> image_metrics([0.9, 0.8, 0.1], [1, 1, 0])
        {'image_auroc': 1.0, 'image_ap': 1.0, 'image_f1_max': 1.0, 'image_f1_threshold': 0.8}
    """
    return RankedMeasures(rank_scores(scores, labels)).metrics("image")


class RankedMeasures:
    """Exact measures of a ranking, from which the formulas of `metric_table` make metrics.

    Arguments:
        ranking: Of image scores or of pixels.
    """

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking

    def metrics(self, level: Level) -> dict[str, float]:
        """Compute all metrics of a level and the threshold of the best F1, under their names in metrics.json.

        NaN with a `MetricWarning` where a class is missing.
        """
        missing = self.ranking.missing
        found = {
            name: undefined(metric.title, missing) if missing else float(metric.formula(self))
            for name, metric in metrics_of(level).items()
        }
        return found | {f"{level}_f1_threshold": float("nan") if missing else self._best_f1[1]}

    def auroc(self) -> float:
        """Compute the chance that a random positive outscores a random negative."""
        return ranked_auroc(self.ranking)

    def average_precision(self) -> float:
        """Compute the mean precision over the positives."""
        return ranked_average_precision(self.ranking)

    def f1_max(self) -> float:
        """Compute the best F1 over all thresholds."""
        return self._best_f1[0]

    @cached_property
    def _best_f1(self) -> tuple[float, float]:
        return ranked_f1_max(self.ranking)


def rank_scores(scores: ArrayLike, labels: ArrayLike) -> Ranking:
    """Rank labelled scores; the metrics above are read from it, as are the curves."""
    score_array, label_array = check_labelled_scores(scores, labels)
    return rank(score_array[label_array], score_array[~label_array])


def ranked_auroc(ranking: Ranking) -> float:
    """Compute the AUROC of a ranking, in integers up to the one division."""
    if ranking.missing:
        return undefined("AUROC", ranking.missing)
    beaten_twice = 0
    for part in ranking.blocks():
        beaten_twice += int(
            np.dot(part.positives, 2 * part.n_negatives - part.negatives_above - part.negatives_at_least)
        )
    return beaten_twice / (2 * ranking.n_positives * ranking.n_negatives)


def ranked_average_precision(ranking: Ranking) -> float:
    """Compute the average precision of a ranking."""
    if ranking.missing:
        return undefined("average precision", ranking.missing)
    hits = np.cumsum(ranking.positives)
    precision = hits / (hits + ranking.negatives_at_least)
    return min(float(np.dot(ranking.positives, precision)) / ranking.n_positives, 1.0)


def ranked_f1_max(ranking: Ranking) -> tuple[float, float]:
    """Find the best F1 of a ranking and the highest threshold that reaches it.

    Only scores of positives need to be tried: between two of them a lower threshold adds only false alarms.
    """
    if ranking.missing:
        return undefined("F1-max", ranking.missing), float("nan")
    hits = np.cumsum(ranking.positives)
    f1 = 2.0 * hits / (hits + ranking.negatives_at_least + ranking.n_positives)
    best = int(np.argmax(f1))
    return float(f1[best]), float(ranking.scores[best])
