"""Areas under monotone curves given as ramps: each increment rises linearly from one false-positive rate to another.

A curve that is exact with ties is a sum of ramps. A positive that ties with no negative is a step (the ramp's
start equals its end). One that ties with negatives rises linearly over them, as if the tie were broken at random.

Shapes: `...` any leading axes (bootstrap resamples), K ramps; sums run over the last axis.
"""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def area_up_to(weight: Float, start: Float, end: Float, limit: float) -> Float:
    """Compute the area under a curve between false-positive rates 0 and `limit`; interpolate linearly at the limit.

    Arguments:
        weight: Height that each ramp adds, (..., K).
        start: Rate at which it begins to rise, in [0, 1], (..., K).
        end: Rate at which it has risen, not below `start`, (..., K).
        limit: Upper end of the integral, in (0, 1].

    Returns:
        Areas, (...); a perfect curve of total weight 1 has the area `limit`.

    Example:
        >>> one = np.ones(1)
        >>> float(area_up_to(one, 0.0 * one, 0.25 * one, 0.5))  # 0.5 - 0.25 / 2
        0.375
    """
    inside = end <= limit
    width = np.where(inside, 1.0, end - start)  # where inside, the quotient below is not used
    cut = np.clip(limit - start, 0.0, None) ** 2 / (2.0 * np.where(width > 0.0, width, 1.0))
    return np.sum(weight * np.where(inside, limit - 0.5 * (start + end), cut), axis=-1)


def log_area_between(weight: Float, start: Float, end: Float, lower: float, upper: float) -> Float:
    """Compute the area under a curve over the natural logarithm of the rate, between rates `lower` and `upper`.

    The curve is linear in the rate itself between its points, as in `area_up_to`; only the integral is taken
    in its logarithm. A perfect curve of total weight 1 has the area log(upper / lower).

    Example:
        >>> one = np.ones(1)
        >>> float(log_area_between(one, 1e-5 * one, 1e-5 * one, 1e-6, 1e-4) / np.log(100))  # half the decades
        0.5
    """
    first, last = np.maximum(start, lower), np.minimum(end, upper)
    rising = last > first
    first, last = np.where(rising, first, 1.0), np.where(rising, last, 1.0)
    width = np.where(rising, end - start, 1.0)
    ramp = ((last - first) - start * np.log(last / first)) / width
    risen = np.log(upper / np.clip(end, lower, upper))
    return np.sum(weight * (ramp + risen), axis=-1)
