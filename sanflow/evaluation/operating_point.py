"""Measure on the test set the rates of false alarms and detections at levels that held-out good parts define.

Shapes: N test images, M held-out good parts.
"""

import math
from typing import Any

import numpy as np
from numpy import ndarray

from sanflow.evaluation.conformal import (
    alarm_rank,
    expected_rate,
    number_of_parts,
    proportion_interval,
    rate_interval,
    threshold,
)

LEVELS = (0.05, 0.1)


def operating_points(
    scores_N: ndarray,
    labels_N: ndarray,
    held_out_M: ndarray | None,
    *,
    parts_N: ndarray | None = None,
    held_out_parts_M: ndarray | None = None,
) -> list[dict[str, Any]]:
    """Measure the rates at which good and anomalous test images are called anomalous.

    Arguments:
        scores_N: Image scores; higher is more anomalous.
        labels_N: True where the image is anomalous.
        held_out_M: Scores of good parts that the fit did not see; None if there are none.
        parts_N: Which part each test image shows; None: each another one.
        held_out_parts_M: The same of the held-out images.

    Returns:
        One mapping per level of `LEVELS` that the held-out parts are enough for: `level`, `held_out` (number of parts),
        `threshold`, `expected_rate` of false alarms on average over held-out sets, `expected_interval` for one set of
        so many parts, `false_alarm_rate`, `detection_rate` and their exact 95 % intervals, in which the photographs of
        a part count as one trial. Rates are fractions, None without such images. No mapping without held-out parts.

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
        n = number_of_parts(held_out_M, held_out_parts_M)
        if n + 1 < 1 / level - 1e-9:  # too few parts for an alarm at this level
            continue
        above = threshold(level, held_out_M, held_out_parts_M)
        points.append(
            {
                "level": level,
                "held_out": n,
                "rank": alarm_rank(level, n),
                "threshold": above,
                "expected_rate": expected_rate(level, n),
                "expected_interval": list(rate_interval(level, n)),
                **_rate("false_alarm", scores_N > above, ~labels_N, parts_N),
                **_rate("detection", scores_N > above, labels_N, parts_N),
            }
        )
    return points


def _rate(name: str, alarms_N: ndarray, counted_N: ndarray, parts_N: ndarray | None) -> dict[str, Any]:
    """Return the share of alarms among the counted images, with its interval; None where there are no images."""
    alarms_K = alarms_N[counted_N]
    hits, trials = float(alarms_K.sum()), alarms_K.size
    if parts_N is not None and trials:
        # As many trials as there are parts: right where a part's photographs agree, else wider than need be.
        parts = np.unique(parts_N[counted_N]).size
        hits, trials = hits * parts / trials, parts
    low, high = proportion_interval(hits, trials)
    return {
        f"{name}_rate": float(alarms_K.mean()) if alarms_K.size else None,
        f"{name}_interval": None if math.isnan(low) else [low, high],
    }
