r"""Find a threshold without labels: split conformal prediction on good parts that the fit did not see.

Let n held-out good parts have the scores h, and a new part the score s. Its p-value is

    p = (1 + number of h >= s) / (n + 1),

and it is called anomalous at level a if p <= a. If the new part is good and exchangeable with the held-out ones, the
chance of that, over held-out sets, is at most a; without ties it is k / (n + 1) with k = floor(a (n + 1)).

For one held-out set the rate of false alarms is fixed but unknown. A part is called anomalous where its score exceeds
the k-th largest held-out score. With F the distribution function of the scores of good parts, the rate is 1 - F of
that score. The values of F at the scores are n independent uniform numbers. The k-th largest of them has the
distribution Beta(n + 1 - k, k), so the rate has the distribution Beta(k, n + 1 - k).

With several photographs of a part, photographs are not exchangeable: those of one part are alike, and a new photograph
is of a new part. Parts are. Then n is the number of held-out parts, each part counts 1, and of the n_i photographs of
part i each counts 1 / n_i:

    p = (1 + sum over parts i of (number of its photographs with h >= s) / n_i) / (n + 1).

For one photograph of a new part the chance of p <= a is again at most a (Lee, Barber, Willett, 2023). It is equal to
the rate above where a part's photographs have the same score; otherwise that rate and its interval are approximations.
Where a new part has m photographs, call it anomalous if one of them has p <= a / m.

After a change of light, camera or position, good parts are not exchangeable with the held-out ones, and none of these
statements is valid.

Shapes: M new photographs, N held-out photographs.

Source:
    Algorithmic Learning in a Random World (Vovk, Gammerman, Shafer, 2005), section 4
    Conditional validity of inductive conformal predictors (Vovk, 2012), https://arxiv.org/abs/1209.2673
    Distribution-free inference with hierarchical data (Lee, Barber, Willett, 2023), https://arxiv.org/abs/2306.06342
"""

import math

import numpy as np
from numpy import ndarray

from sanflow.errors import ConfigError

CONFIDENCE = 0.95


def p_values(scores_M: ndarray, held_out_N: ndarray, parts_N: ndarray | None = None) -> ndarray:
    """Compute the p-value of each score.

    Arguments:
        scores_M: Scores of new parts; higher is more anomalous.
        held_out_N: Scores of good parts that the fit did not see.
        parts_N: Which part each of them shows; None: each another one.

    Returns:
        (M,) in [1 / (n + 1), 1], with n the number of held-out parts.

    Example:
        >>> p_values(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
        array([1.  , 0.5 , 0.25])
        >>> p_values(np.array([2.5, 3.5]), np.array([1.0, 2.0, 4.0, 3.0]), np.array(["a", "a", "b", "b"]))
        array([0.66666667, 0.5       ])
    """
    descending_N, counts_N = _descending(held_out_N, parts_N)
    n_higher_M = np.searchsorted(-descending_N, -np.asarray(scores_M), side="right")
    at_least_M = np.concatenate([[0.0], counts_N])[n_higher_M]
    return (1 + at_least_M) / (number_of_parts(held_out_N, parts_N) + 1)


def number_of_parts(held_out_N: ndarray, parts_N: ndarray | None) -> int:
    """Return how many parts the scores are of."""
    return held_out_N.size if parts_N is None else np.unique(parts_N).size


def _descending(held_out_N: ndarray, parts_N: ndarray | None) -> tuple[ndarray, ndarray]:
    """Return the scores, highest first, and for each how many parts it and those before it count, (N,) both."""
    order_N = np.argsort(-held_out_N, kind="stable")
    if parts_N is None:
        return held_out_N[order_N], np.arange(1.0, held_out_N.size + 1)
    _, part_N, sizes = np.unique(parts_N, return_inverse=True, return_counts=True)
    return held_out_N[order_N], np.cumsum(1 / sizes[part_N][order_N])


def alarm_rank(level: float, n: int) -> int:
    """Return k: a part is anomalous where its score exceeds the k-th largest of the scores of n held-out parts.

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


def threshold(level: float, held_out_N: ndarray, parts_N: ndarray | None = None) -> float:
    """Return the score above which a photograph is anomalous at a level.

    Arguments:
        level: In (0, 1).
        held_out_N: Scores of good parts that the fit did not see.
        parts_N: Which part each of them shows; None: each another one.

    Raises:
        ConfigError: As `alarm_rank`.

    Example:
        >>> threshold(0.25, np.array([1.0, 2.0, 3.0]))
        3.0
        >>> threshold(0.5, np.array([1.0, 2.0, 4.0, 3.0]), np.array(["a", "a", "b", "b"]))
        3.0
    """
    n = number_of_parts(held_out_N, parts_N)
    alarm_rank(level, n)
    descending_N, counts_N = _descending(held_out_N, parts_N)
    # So many parts may be at or above a score whose p-value is at most the level; rounding as in alarm_rank.
    return float(descending_N[np.searchsorted(counts_N, level * (n + 1) - 1 + 1e-9, side="right")])


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


def proportion_interval(hits: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934); NaN where n is 0.

    Arguments:
        hits: In [0, n]; need not be whole, where n is smaller than the number of trials because they are not
            independent.
        n: Number of independent trials.
        confidence: Of the interval.

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


def one_per_part(scores_N: ndarray, parts_N: ndarray | None) -> ndarray:
    """Return the score of the first photograph of each part, in their order: these are independent."""
    return scores_N if parts_N is None else scores_N[np.sort(np.unique(parts_N, return_index=True)[1])]


def differs(old_N: ndarray, new_M: ndarray) -> float:
    """Return the p-value of the two-sample test of Kolmogorov and Smirnov: small where two sets of scores differ.

    Arguments:
        old_N: Independent scores, one of each part.
        new_M: The same.
    """
    from scipy import stats

    return float(stats.ks_2samp(old_N, new_M).pvalue)
