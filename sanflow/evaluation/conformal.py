r"""Find a threshold without labels: split conformal prediction on good parts that the fit did not see.

Let n held-out good parts have the scores h, and a new part the score s. Its p-value is

    p = (1 + number of h >= s) / (n + 1),

and it is called anomalous at level a if p <= a. If the new part is good and exchangeable with the held-out ones, the
chance of that, over held-out sets, is at most a; without ties it is k / (n + 1) with k = floor(a (n + 1)).

For one held-out set the rate of false alarms is fixed but unknown. A part is called anomalous where its score exceeds
the k-th largest held-out score. With F the distribution function of the scores of good parts, the rate is 1 - F of
that score. The values of F at the scores are n independent uniform numbers. The k-th largest of them has the
distribution Beta(n + 1 - k, k), so the rate has the distribution Beta(k, n + 1 - k).

After a change of light, camera or position, good parts are not exchangeable with the held-out ones, and neither
statement is valid.

Source:
    Algorithmic Learning in a Random World (Vovk, Gammerman, Shafer, 2005), section 4
    Conditional validity of inductive conformal predictors (Vovk, 2012), https://arxiv.org/abs/1209.2673
"""

import math

import numpy as np
from numpy import ndarray

from sanflow.errors import ConfigError

CONFIDENCE = 0.95


def p_values(scores_M: ndarray, held_out_N: ndarray) -> ndarray:
    """Compute the p-value of each score.

    Arguments:
        scores_M: Scores of new parts; higher is more anomalous.
        held_out_N: Scores of good parts that the fit did not see.

    Returns:
        (M,) in [1 / (N + 1), 1].

    Example:
        >>> p_values(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
        array([1.  , 0.5 , 0.25])
    """
    ascending_N = np.sort(held_out_N)
    n_at_least_M = ascending_N.size - np.searchsorted(ascending_N, scores_M, side="left")
    return (1 + n_at_least_M) / (ascending_N.size + 1)


def alarm_rank(level: float, n: int) -> int:
    """Return k: a part is anomalous where its score exceeds the k-th largest of n held-out scores.

    Raises:
        ConfigError: If the level is not in (0, 1), or n parts are too few for it.

    Example:
        >>> alarm_rank(0.05, 59)
        3
    """
    if not 0 < level < 1:
        raise ConfigError(f"Expected a false-alarm rate in (0, 1), but got {level}.")
    # The product may miss a whole number by rounding: 0.1 x 10 parts.
    rank = math.floor(level * (n + 1) + 1e-9)
    if rank < 1:
        needed = math.ceil(1 / level - 1e-9) - 1
        raise ConfigError(
            f"Expected at least {needed} held-out good parts for a false-alarm rate of {level:g}, but the detector has "
            f"{n}: its smallest p-value is 1 / {n + 1}. Calibrate it with more (`sanflow calibrate`), or choose a "
            "higher rate."
        )
    return rank


def threshold(level: float, held_out_N: ndarray) -> float:
    """Return the score above which a part is anomalous at a level.

    Example:
        >>> threshold(0.25, np.array([1.0, 2.0, 3.0]))
        3.0
    """
    rank = alarm_rank(level, held_out_N.size)
    return float(np.sort(held_out_N)[held_out_N.size - rank])


def expected_rate(level: float, n: int) -> float:
    """Return the rate of false alarms, on average over held-out sets of n parts without ties."""
    return alarm_rank(level, n) / (n + 1)


def rate_interval(level: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval in which the rate of false alarms is, for one held-out set of n parts.

    Arguments:
        level: The level of the alarms.
        n: Number of held-out parts.
        confidence: Share of held-out sets whose rate is within, equal tails outside.
    """
    from scipy import stats  # loads slowly

    rank = alarm_rank(level, n)
    tail = (1 - confidence) / 2
    low, high = stats.beta.ppf([tail, 1 - tail], rank, n + 1 - rank)
    return float(low), float(high)


def proportion_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934); NaN where n is 0.

    Example:
        >>> low, high = proportion_interval(0, 20)
        >>> low, round(high, 4)
        (0.0, 0.1684)
    """
    from scipy import stats

    if n == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def differs(old_N: ndarray, new_M: ndarray) -> float:
    """Return the p-value of the two-sample test of Kolmogorov and Smirnov: small where two sets of scores differ."""
    from scipy import stats

    return float(stats.ks_2samp(old_N, new_M).pvalue)
