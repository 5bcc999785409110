"""Bootstrap intervals over images: how much a metric may differ on another test set of this size.

Images are drawn, not pixels, because the pixels of one image are not independent. Normal and anomalous images
are drawn separately, so each resample has as many of either as the test set. Where there are several photographs of a
part, parts are drawn with all their photographs, for the same reason (cluster bootstrap): separately those whose images
are all normal, those whose images are all anomalous, and those with both, so that no resample lacks a class.

Nothing is sorted for a resample. For each image, the pixels at or above each of K fixed levels are counted once; the
curve of a resample is then the sum of its images' counts, a product of matrices. For image scores the levels are
all distinct scores and the result is exact. For pixels they are a few thousand quantiles of the scores, dense
in the range of each metric (`_levels`), with straight lines between them. The error that this causes in the metric of
the whole set is returned as `resolution`, and the interval is shifted by it.

Shapes: N images, P parts, K levels (descending), B resamples.

Source:
    Bootstrap estimation of diagnostic accuracy with patient-clustered data (Rutter, 2000)
    Bootstrapping clustered data (Field and Welsh, 2007)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sanflow.evaluation.metric_table import AUPRO_LIMIT, AUPRO_STRICT_LIMIT, Level, metrics_of
from sanflow.evaluation.metrics.areas import area_up_to, log_area_between
from sanflow.evaluation.metrics.classification import image_metrics
from sanflow.evaluation.metrics.inputs import Maps, Masks, check_labelled_scores, check_maps
from sanflow.evaluation.metrics.pixels import pixel_metrics
from sanflow.evaluation.metrics.ranking import label_regions
from sanflow.evaluation.metrics.spro import SaturatedMeasures

Float = NDArray[np.float64]
CHUNK = 50  # resamples at once: bounds memory to some 50 MB


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval.

    Arguments:
        value: The metric of the whole set, exact.
        low: Lower end of the percentile interval; NaN where the metric is undefined.
        high: Its upper end.
        confidence: Share of resamples within, in (0, 1).
        resamples: Number of resamples.
        resolution: Error of the level counts on the whole set, already corrected for; 0 where they are exact.
        values_B: The metric in each resample. Sets with the same images are drawn alike, so that the difference of two
            such arrays is that of the two metrics in each resample. Empty where the metric is undefined.
    """

    value: float
    low: float
    high: float
    confidence: float
    resamples: int
    resolution: float
    values_B: Float = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        """Return the values as metrics.json holds them."""
        return {name: value for name, value in vars(self).items() if name != "values_B"}


@dataclass(frozen=True)
class Counts:
    """Counts of each image's pixels at or above each level, to be summed over images with the resamples' weights."""

    positives_NK: Float
    negatives_NK: Float
    regions_NK: Float  # sum over an image's regions of the share of each that is found

    @property
    def is_anomalous(self) -> NDArray[np.bool_]:
        """True for images with at least one positive, (N,)."""
        return self.positives_NK[:, -1] > 0


def bootstrap_image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    parts: ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute bootstrap intervals of the image metrics.

    Arguments:
        scores: One per image, (N,).
        labels: True (or 1) where anomalous, (N,).
        parts: Which part each image shows, (N,) names or numbers; None: every image shows another part.
        resamples: Number of resamples, at least 1.
        confidence: Share of resamples within the interval, in (0, 1).
        seed: Of the resamples; sets with the same labels share them.

    Raises:
        ValueError: If an argument is not what it must be.

    Example:
        >>> found = bootstrap_image_metrics([1, 2, 3, 4], [0, 0, 1, 1])
        >>> found["image_auroc"].low, found["image_auroc"].high  # perfect in every resample
        (1.0, 1.0)
    """
    score_array, label_array = check_labelled_scores(scores, labels)
    levels = np.unique(score_array)[::-1]
    called_NK = score_array[:, None] >= levels[None, :]
    counts = Counts(
        positives_NK=(called_NK & label_array[:, None]).astype(np.float64),
        negatives_NK=(called_NK & ~label_array[:, None]).astype(np.float64),
        regions_NK=np.empty((score_array.size, 0)),
    )
    exact = image_metrics(score_array, label_array)
    return _intervals(
        partial(Resampled, counts),
        "image",
        label_array,
        exact,
        parts=parts,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def bootstrap_pixel_metrics(
    maps: Maps,
    masks: Masks,
    *,
    parts: ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    exact: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """Compute bootstrap intervals of the pixel metrics.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        parts: Which part each image shows, (n,) names or numbers; None: every image shows another part.
        resamples: Number of resamples, at least 1.
        confidence: Share of resamples within the interval, in (0, 1).
        seed: Of the resamples; sets with the same images share them.
        exact: `pixel_metrics(maps, masks)`, if it was computed already.

    Raises:
        ValueError: If an argument is not what it must be.
    """
    map_list, mask_list = check_maps(maps, masks)
    exact = pixel_metrics(map_list, mask_list) if exact is None else exact
    counts = _count_pixels(map_list, mask_list)
    return _intervals(
        partial(Resampled, counts),
        "pixel",
        counts.is_anomalous,
        exact,
        parts=parts,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def bootstrap_saturated_metrics(
    measures: SaturatedMeasures,
    *,
    parts: ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute bootstrap intervals of the metrics of saturated regions; the images of each kind are drawn separately.

    Arguments:
        measures: Of the whole set.
        parts: As in `bootstrap_image_metrics`.
        resamples: Number of resamples, at least 1.
        confidence: Share of resamples within the interval, in (0, 1).
        seed: Of the resamples; sets with the same images share them.

    Raises:
        ValueError: If an argument is not what it must be.
    """
    return _intervals(
        partial(ResampledKinds, measures),
        "region",
        measures.strata_N,
        measures.metrics(),
        parts=parts,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def _intervals(
    resampled: Callable[[Float], Any],
    level: Level,
    strata_N: NDArray[Any],
    exact: Mapping[str, float],
    *,
    parts: ArrayLike | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Measure all resamples and take the percentiles.

    Arguments:
        resampled: Makes the measures of resamples from how often each image is in each, (B, N).
        level: Whose metrics to measure.
        strata_N: Class of each image; each resample has as many of each class as the set.
        exact: The metrics of the whole set.
        resamples: Number of resamples.
        confidence: Share of resamples within the interval.
        seed: Of the resamples.
    """
    if resamples < 1:
        raise ValueError(f"Expected at least 1 resample, but got {resamples}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"Expected a confidence in (0, 1), but got {confidence}.")
    if parts is not None and np.shape(parts) != strata_N.shape:
        raise ValueError(f"Expected a part for each of {strata_N.size} images, but got shape {np.shape(parts)}.")
    nan = float("nan")
    formulas = {name: metric.formula for name, metric in metrics_of(level).items() if metric.interval}
    intervals = {name: Interval(nan, nan, nan, confidence, resamples, nan) for name in formulas}
    defined = [name for name in intervals if not np.isnan(exact[name])]
    if not defined:
        return intervals
    weights_BN = _draw(strata_N, resamples, np.random.default_rng(seed), parts)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class that the metric needs is missing
        whole = _measured(formulas, resampled(np.ones((1, strata_N.size))))
        chunks = [_measured(formulas, resampled(weights_BN[i : i + CHUNK])) for i in range(0, resamples, CHUNK)]
    tail = 50.0 * (1.0 - confidence)
    for name in defined:
        error = float(whole[name][0]) - exact[name]
        values = np.concatenate([chunk[name] for chunk in chunks]) - error
        low, high = np.clip(np.percentile(values, [tail, 100.0 - tail]), 0.0, 1.0)
        intervals[name] = Interval(exact[name], float(low), float(high), confidence, resamples, abs(error), values)
    return intervals


def _draw(
    strata_N: NDArray[Any], resamples: int, generator: np.random.Generator, parts: ArrayLike | None = None
) -> Float:
    """Draw how often each image is in each resample, (B, N): parts with replacement within each kind of part.

    Parts are of one kind if their images are of the same strata, such as normal, anomalous or both.
    """
    part_N = np.arange(strata_N.size) if parts is None else _numbered(np.asarray(parts))
    strata, stratum_N = np.unique(strata_N, return_inverse=True)
    has_PS = np.zeros((part_N.max() + 1, strata.size), bool)
    has_PS[part_N, stratum_N] = True
    kind_P = has_PS @ (1 << np.arange(strata.size))
    drawn_BP = np.zeros((resamples, kind_P.size))
    for kind in np.unique(kind_P):
        members = np.flatnonzero(kind_P == kind)
        share = np.full(members.size, 1.0 / members.size)
        drawn_BP[:, members] = generator.multinomial(members.size, share, size=resamples)
    return np.take(drawn_BP, part_N, axis=1)


def _numbered(parts_N: NDArray[Any]) -> NDArray[np.int64]:
    """Number the parts from 0 in the order of their first images, so that further images do not change the draw."""
    _, first_P, part_N = np.unique(parts_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_P))[part_N]


class Resampled:
    """Measures of some resamples, (B,) each, from which the formulas of `metric_table` make metrics.

    What several measures share is computed once. Where a resample lacks a class, 0 / 0 gives NaN.

    Arguments:
        counts: Of each image at each level.
        weights_BN: How often each image is in each resample.
    """

    def __init__(self, counts: Counts, weights_BN: Float) -> None:
        self._counts, self._weights_BN = counts, weights_BN
        self._hits_BK = weights_BN @ counts.positives_NK
        self._alarms_BK = weights_BN @ counts.negatives_NK
        n_negatives = self._alarms_BK[:, -1:]
        self._end_BK = self._alarms_BK / n_negatives
        self._start_BK = np.concatenate([np.zeros_like(n_negatives), self._end_BK[:, :-1]], axis=1)
        # 0 only where nothing is called, and then hits are 0 too.
        self._called_BK = np.maximum(self._hits_BK + self._alarms_BK, 1.0)

    def auroc(self) -> Float:
        """Compute the area under the receiver operating characteristic."""
        return area_up_to(self._rise_BK, self._start_BK, self._end_BK, 1.0)

    def average_precision(self) -> Float:
        """Compute the mean precision over the positives."""
        return np.asarray(np.sum(self._rise_BK * self._hits_BK / self._called_BK, axis=1))

    def f1_max(self) -> Float:
        """Compute the best F1 over all levels."""
        return np.asarray(np.max(2.0 * self._hits_BK / (self._called_BK + self._hits_BK[:, -1:]), axis=1))

    def region_overlap(self, limit: float) -> Float:
        """Compute the mean overlap of regions up to a false-positive rate."""
        return area_up_to(self._overlap_BK, self._start_BK, self._end_BK, limit) / limit

    def image_overlap(self, lower: float, upper: float) -> Float:
        """Compute the mean overlap per anomalous image between two false-positive rates on normal images."""
        rise_BK, start_BK, end_BK = self._image_curves
        return log_area_between(rise_BK, start_BK, end_BK, lower, upper) / np.log(upper / lower)

    @cached_property
    def _rise_BK(self) -> Float:
        return _increments(self._hits_BK) / self._hits_BK[:, -1:]

    @cached_property
    def _overlap_BK(self) -> Float:
        regions_BK = self._weights_BN @ self._counts.regions_NK
        return _increments(regions_BK) / regions_BK[:, -1:]

    @cached_property
    def _image_curves(self) -> tuple[Float, Float, Float]:
        """Rise of the mean overlap per image, and the mean rate on normal images before and after it, (B, K) each."""
        anomalous = self._counts.is_anomalous
        found_BK = self._weights_BN[:, anomalous] @ _shares(self._counts.positives_NK[anomalous])
        alarms_BK = self._weights_BN[:, ~anomalous] @ _shares(self._counts.negatives_NK[~anomalous])
        end_BK = alarms_BK / alarms_BK[:, -1:]
        return _increments(found_BK) / found_BK[:, -1:], end_BK - _increments(end_BK), end_BK


class ResampledKinds:
    """Measures of some resamples of saturated regions, (B,) each.

    Arguments:
        measures: Of the whole set.
        weights_BN: How often each image is in each resample.
    """

    def __init__(self, measures: SaturatedMeasures, weights_BN: Float) -> None:
        self._kinds = [
            Resampled(
                Counts(curve.overlaps_NK, curve.outside_NK, curve.overlaps_NK),
                weights_BN[:, np.isin(measures.strata_N, (0, number))],
            )
            for number, curve in enumerate(measures.kinds.values(), 1)
        ]

    def saturated_overlap(self, limit: float) -> Float:
        """Compute the mean saturated overlap of regions up to a false-positive rate, mean over the kinds."""
        return np.asarray(np.mean([kind.region_overlap(limit) for kind in self._kinds], axis=0))


def _measured(formulas: Mapping[str, Callable[[Any], Any]], resampled: Resampled) -> dict[str, Float]:
    return {name: formula(resampled) for name, formula in formulas.items()}


def _increments(cumulative_BK: Float) -> Float:
    """Return the increase of each level over the one before it."""
    return np.diff(cumulative_BK, axis=1, prepend=0.0)


def _shares(cumulative_NK: Float) -> Float:
    """Return counts as shares of the image's total."""
    return cumulative_NK / cumulative_NK[:, -1:]


def _count_pixels(maps: list[NDArray[np.floating]], masks: list[NDArray[np.bool_]]) -> Counts:
    """Count each image's pixels at or above each level; one sort per image."""
    levels = _levels(maps, masks)
    shape = (len(maps), levels.size)
    positives, negatives, regions = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, (score, mask) in enumerate(zip(maps, masks, strict=True)):
        outside = np.sort(score[~mask])
        negatives[i] = outside.size - np.searchsorted(outside, levels)
        region, n_regions = label_regions(mask)
        if n_regions:
            inside = score[mask]
            order = np.argsort(inside)
            below = np.searchsorted(inside[order], levels)
            positives[i] = inside.size - below
            share = (1.0 / np.bincount(region))[region][order]
            from_top = np.concatenate([np.cumsum(share[::-1])[::-1], [0.0]])
            regions[i] = from_top[below]
    return Counts(positives, negatives, regions)


def _levels(maps: list[NDArray[np.floating]], masks: list[NDArray[np.bool_]]) -> NDArray[np.floating]:
    """Choose scores at which to count, descending: about 5,000 quantiles, ending with the lowest score of all.

    Of the negatives: 1,000 even ones for AUROC, 1,000 up to each limit of AUPRO, and 1,000 even in the logarithm of the
    rate for AUPIMO and precision. Of the positives: 1,000 even ones for recall.
    """
    negatives = np.sort(np.concatenate([score[~mask] for score, mask in zip(maps, masks, strict=True)]))
    positives = np.sort(np.concatenate([score[mask] for score, mask in zip(maps, masks, strict=True)]))
    even = np.linspace(0.0, 1.0, 1000)
    rates = np.concatenate([even, AUPRO_LIMIT * even, AUPRO_STRICT_LIMIT * even, np.logspace(-7, 0, 1000)])

    def from_top(ascending: NDArray[np.floating], rate: Float) -> NDArray[np.floating]:
        """Return the scores that the given share is at or above."""
        if ascending.size == 0:
            return ascending
        return ascending[ascending.size - 1 - np.rint(rate * (ascending.size - 1)).astype(np.int64)]

    return np.unique(np.concatenate([from_top(negatives, rates), from_top(positives, even)]))[::-1]
