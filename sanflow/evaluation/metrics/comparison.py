"""Compare two experiments: means over seeds, and paired comparison over categories.

Categories differ in difficulty far more than experiments do, so two experiments are compared by their difference
within each category; n is the number of pairs and is always returned. The caller chooses what is paired:
categories, or the seeds of one category.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Compute the mean and the sample standard deviation of values over seeds or categories.

    Returns:
        The mean, NaN if there are no values or one is NaN; and the standard deviation with n - 1 in the denominator,
        NaN for fewer than two values.

    Example:
        >>> mean_and_std([0.75, 0.5, 1.0])
        (0.75, 0.25)
    """
    array = np.array(list(values), dtype=np.float64)
    if array.size == 0:
        return math.nan, math.nan
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


@dataclass(frozen=True)
class PairedComparison:
    """Second minus first experiment, over the categories (or seeds of one category) that both have.

    Arguments:
        n: Number of pairs compared: categories, or seeds.
        mean_difference: Mean of second minus first; positive if the second is better.
        low: Lower end of its t interval; NaN if n is below 2.
        high: Its upper end.
        confidence: Of the interval, in (0, 1).
        t_p: Two-sided p-value of the paired t test; NaN if n is below 2.
        wilcoxon_p: Of the signed-rank test, zero differences left out; 1 if all are zero.
        sign_p: Of the sign test, zero differences left out; 1 if all are zero.
        wins: Pairs in which the second is better.
        losses: In which it is worse.
        ties: In which they are equal.
        left_out: Those that only one of them has, or where one has no value; sorted.
    """

    n: int
    mean_difference: float
    low: float
    high: float
    confidence: float
    t_p: float
    wilcoxon_p: float
    sign_p: float
    wins: int
    losses: int
    ties: int
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, float | tuple[str, ...]]:
        """Return the values as a file holds them."""
        return asdict(self)


def compare_paired(
    first: Mapping[str, float], second: Mapping[str, float], confidence: float = 0.95
) -> PairedComparison:
    """Compare two experiments by one metric over the categories (or seeds) they share.

    The t interval is for the mean difference. The two tests that assume no normal distribution show whether the
    difference comes from a few pairs only. With n pairs the p-value of the sign test is at least 2 ** (1 - n).

    Arguments:
        first: Metric of the reference experiment, by category (take the mean over seeds first), or by seed.
        second: Metric of the other experiment, by the same.
        confidence: Of the t interval, in (0, 1).

    Raises:
        ValueError: If they share no name with values in both, or the confidence is not in (0, 1).

    Example:
        >>> ours = {"nut": 1.0, "pin": 1.0, "cap": 0.5, "lid": 1.0}
        >>> found = compare_paired({"nut": 0.75, "pin": 0.5, "cap": 0.5}, ours)
        >>> found.n, found.mean_difference, found.wins, found.losses, found.ties, found.left_out
        (3, 0.25, 2, 0, 1, ('lid',))
    """
    from scipy import stats  # loads slowly, and few callers of this package compare

    if not 0.0 < confidence < 1.0:
        raise ValueError(f"Expected a confidence in (0, 1), but got {confidence}.")
    every = sorted(set(first) | set(second))
    pairs = {name: second.get(name, math.nan) - first.get(name, math.nan) for name in every}
    shared = [name for name in every if not math.isnan(pairs[name])]
    if not shared:
        raise ValueError(
            "Expected two experiments with at least one pair in common, "
            f"but got {sorted(first)} and {sorted(second)} (values that are NaN do not count)."
        )
    difference = np.array([pairs[name] for name in shared])
    n = difference.size
    mean, std = mean_and_std(difference)
    low = high = t_p = math.nan
    if n > 1:
        error = std / math.sqrt(n)
        reach = float(stats.t.ppf(0.5 + confidence / 2.0, n - 1)) * error
        low, high = mean - reach, mean + reach
        t_p = float(2.0 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0.0)
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    moved = wins + losses
    return PairedComparison(
        n=n,
        mean_difference=mean,
        low=low,
        high=high,
        confidence=confidence,
        t_p=t_p,
        wilcoxon_p=float(stats.wilcoxon(difference[difference != 0]).pvalue) if moved else 1.0,
        sign_p=float(stats.binomtest(wins, moved).pvalue) if moved else 1.0,
        wins=wins,
        losses=losses,
        ties=n - moved,
        left_out=tuple(name for name in every if name not in shared),
    )
