"""Measure on the test set the rates of false alarms and detections at levels that held-out good parts define.

Shapes: N test images, M held-out good parts.
"""

import math
from typing import Any

from numpy import ndarray

from sanflow.evaluation.conformal import alarm_rank, expected_rate, proportion_interval, rate_interval, threshold

LEVELS = (0.05, 0.1)


def operating_points(scores_N: ndarray, labels_N: ndarray, held_out_M: ndarray | None) -> list[dict[str, Any]]:
    """Measure the rates at which good and anomalous test images are called anomalous.

    Arguments:
        scores_N: Image scores; higher is more anomalous.
        labels_N: True where the image is anomalous.
        held_out_M: Scores of good parts that the fit did not see; None if there are none.

    Returns:
        One mapping per level of `LEVELS` that M parts are enough for: `level`, `held_out` (M), `threshold`,
        `expected_rate` of false alarms on average over held-out sets, `expected_interval` for one set of M parts,
        `false_alarm_rate`, `detection_rate` and their exact 95 % intervals. Rates are fractions, None without such
        images. No mapping without held-out parts.

    Example:
        >>> import numpy as np
        >>> held_out_M = np.arange(1.0, 40.0)
        >>> point = operating_points(np.array([1.0, 50, 37, 60]), np.array([False, False, True, True]), held_out_M)[0]
        >>> point["threshold"], point["expected_rate"], point["false_alarm_rate"], point["detection_rate"]
        (38.0, 0.05, 0.5, 0.5)
    """
    if held_out_M is None:
        return []
    points = []
    for level in LEVELS:
        n = held_out_M.size
        if n + 1 < 1 / level - 1e-9:  # too few parts for an alarm at this level
            continue
        above = threshold(level, held_out_M)
        points.append(
            {
                "level": level,
                "held_out": n,
                "rank": alarm_rank(level, n),
                "threshold": above,
                "expected_rate": expected_rate(level, n),
                "expected_interval": list(rate_interval(level, n)),
                **_rate("false_alarm", scores_N[~labels_N] > above),
                **_rate("detection", scores_N[labels_N] > above),
            }
        )
    return points


def _rate(name: str, alarms_N: ndarray) -> dict[str, Any]:
    """Return the share of alarms with its exact interval; None where there are no images."""
    low, high = proportion_interval(int(alarms_N.sum()), alarms_N.size)
    return {
        f"{name}_rate": float(alarms_N.mean()) if alarms_N.size else None,
        f"{name}_interval": None if math.isnan(low) else [low, high],
    }
