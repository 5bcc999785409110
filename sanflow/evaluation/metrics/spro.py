r"""Area under the saturated per-region-overlap curve (AU-sPRO): the metric of MVTec LOCO.

A logical anomaly, such as a missing screw, can be marked at any of several places, so its region is larger than what a
method must find. Each region r has a saturation area s_r in pixels. With t_r of its pixels found, its overlap is

    min(t_r / s_r, 1).

A region is what one mask file draws, also where regions touch or share pixels. The rest is as for AUPRO: the curve has
one point per distinct score, its vertical axis is the mean over regions, its horizontal axis the false-positive rate
over all pixels outside of every region, the area is taken up to a limit and divided by it. It is computed for each
kind of anomaly (logical, structural) with all good images, and averaged over the kinds. With s_r the size of each
region it is AUPRO.

Only the s_r pixels of a region with the highest scores raise the curve, each by 1 / s_r. So the area is a sum over
them, as for AUPRO. Maps at the images' own size do not fit in memory together (300 images of 2 megapixels: 5 GB), so
they are visited twice, one at a time: first the pixels that raise the curve are collected, then the other pixels are
counted between them. Nothing is sampled.

Shapes: H x W one image, G distinct scores, N images, K levels.

Source:
    Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and Localization
    (Bergmann et al., 2022), section 4, https://doi.org/10.1007/s11263-022-01578-9
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sanflow.evaluation.metric_table import metrics_of
from sanflow.evaluation.metrics.aupro import check_limit, ranked_aupro
from sanflow.evaluation.metrics.inputs import as_mask, as_scores, undefined
from sanflow.evaluation.metrics.ranking import Ranking

# Scores at which each image's pixels are counted for the intervals, even in the height of the curve.
LEVELS = 1000


@dataclass(frozen=True)
class ScoredImage:
    """One test image with its map.

    Arguments:
        map_HW: Anomaly scores; higher is more anomalous.
        regions: Mask (H, W) and saturation area in pixels of each region; none of a good image.
        kind: Kind of its anomaly; empty for a good image.
    """

    map_HW: NDArray[np.floating]
    regions: Sequence[tuple[NDArray[np.bool_], int]] = ()
    kind: str = ""


def spro(images: Iterable[ScoredImage], limit: float) -> float:
    """Compute the area under the saturated per-region-overlap curve up to a false-positive rate, divided by that rate.

    Float64, exact with ties, and a function of the scores' order only.

    Arguments:
        images: Iterated twice, so a list, or an object that makes the same images each time; not a generator.
        limit: Upper end of the false-positive rate, in (0, 1].

    Returns:
        Mean over the kinds of anomalies, in [0, 1]. NaN with a `MetricWarning` where there is no region, or no pixel
        outside of regions.

    Raises:
        ValueError: If a mask and its map differ in shape, a score is not finite, a saturation area is not in
            [1, size of the region], a good image has regions, an anomalous one has none, or the limit is not in (0, 1].

    Example:
        A row of 10 pixels whose last three are one region, of which one pixel is enough: found after 1 of the 7 false
        alarms.

        >>> row = np.array([[9, 7, 6, 5, 3, 2, 1, 0, 8, 4]])
        >>> region = (np.arange(10)[None] >= 7, 1)
        >>> round(spro([ScoredImage(row, [region], "logical")], limit=1.0), 6)  # 1 - 1 / 7
        0.857143
    """
    check_limit(limit)
    return SaturatedMeasures(images).saturated_overlap(limit)


class SaturatedMeasures:
    """Exact measures of saturated regions, from which the formulas of `metric_table` make metrics.

    Arguments:
        images: As in `spro`.

    Attributes:
        kinds: Kind of anomaly -> its curve, sorted by name.
        strata_N: The number of each image's kind in `kinds`, from 1; 0 for a good image.

    Raises:
        ValueError: As `spro`.
    """

    def __init__(self, images: Iterable[ScoredImage]) -> None:
        rising_N = [_rising(image, f" in map {number}") for number, image in enumerate(images)]
        names = sorted({rising.kind for rising in rising_N} - {""})
        self.strata_N = np.array([names.index(one.kind) + 1 if one.kind else 0 for one in rising_N], dtype=np.int64)
        self.kinds = {
            name: KindCurve([one if one.kind == name else None for one in rising_N if one.kind in ("", name)])
            for name in names
        }
        del rising_N
        for image in images:
            outside = _outside(image)
            for name, curve in self.kinds.items():
                if image.kind in ("", name):
                    curve.count(outside)

    def metrics(self) -> dict[str, float]:
        """Compute all metrics of level "region" of `metric_table`, means over the kinds."""
        return {name: float(metric.formula(self)) for name, metric in metrics_of("region").items()}

    def saturated_overlap(self, limit: float) -> float:
        """Compute the mean saturated overlap of regions up to a false-positive rate, mean over the kinds."""
        if not self.kinds:
            return undefined("AU-sPRO", "anomalies")
        return float(np.mean([curve.saturated_overlap(limit) for curve in self.kinds.values()]))


@dataclass(frozen=True)
class _Rising:
    """The pixels of one image that raise the curve.

    Arguments:
        kind: Kind of its anomaly; empty for a good image.
        scores: Their scores, ascending.
        shares: 1 / saturation area of the region of each.
        n_regions: Number of regions.
    """

    kind: str
    scores: NDArray[np.floating]
    shares: NDArray[np.float64]
    n_regions: int


def _rising(image: ScoredImage, where: str) -> _Rising:
    map_HW = as_scores(image.map_HW, where)
    if bool(image.kind) != bool(len(image.regions)):
        raise ValueError(
            "Expected a kind of anomaly for an image with regions and none for one without, but got the kind "
            f"{image.kind!r} and {len(image.regions)} regions{where}."
        )
    scores, shares = [np.empty(0, map_HW.dtype)], [np.empty(0)]
    for mask, saturation in image.regions:
        mask_HW = as_mask(mask, where)
        if mask_HW.shape != map_HW.shape:
            raise ValueError(
                f"Expected the mask of a region to have the shape of its map, {map_HW.shape}, but got "
                f"{mask_HW.shape}{where}."
            )
        inside = map_HW[mask_HW]
        if not 1 <= saturation <= inside.size:
            raise ValueError(
                f"Expected a saturation area from 1 to the {inside.size} pixels of its region, but got "
                f"{saturation}{where}."
            )
        # Which of several tied pixels are taken makes no difference.
        scores.append(np.partition(inside, inside.size - saturation)[inside.size - saturation :])
        shares.append(np.full(saturation, 1.0 / saturation))
    together, share = np.concatenate(scores), np.concatenate(shares)
    order = np.argsort(together)
    return _Rising(image.kind, together[order], share[order], len(image.regions))


def _outside(image: ScoredImage) -> NDArray[np.floating]:
    """Return the scores of an image's pixels outside of every region, ascending."""
    map_HW = as_scores(image.map_HW)
    if not image.regions:
        return np.sort(map_HW, axis=None)
    return np.sort(map_HW[~np.logical_or.reduce([as_mask(mask) for mask, _ in image.regions])])


class KindCurve:
    """The curve of one kind of anomaly, and the counts of each image from which its intervals are made.

    Arguments:
        rising_N: The pixels that raise the curve, of its images; None for a good image. In the order of the images.

    Attributes:
        overlaps_NK: Sum over each image's regions of their overlaps, at each of K levels of the score, descending; at
            the last level all are found.
        outside_NK: Each image's pixels outside of regions at or above each level; at the last level all. Filled by
            `count`, an image at a time.
    """

    def __init__(self, rising_N: Sequence[_Rising | None]) -> None:
        own = [rising for rising in rising_N if rising is not None]
        scores = np.concatenate([rising.scores for rising in own])
        self.n_regions = sum(rising.n_regions for rising in own)
        shares = np.concatenate([rising.shares for rising in own]) / self.n_regions
        order = np.argsort(scores)
        scores, shares = scores[order], shares[order]
        first = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
        self._scores_G, self._weights_G = scores[first], np.add.reduceat(shares, first)
        self._positives_G = np.diff(first, append=scores.size)
        # How many pixels outside of regions have exactly g of the scores below them, and not above them.
        self._below_G1, self._not_above_G1 = (np.zeros(first.size + 1, dtype=np.int64) for _ in range(2))
        self._levels_K = self._choose_levels()
        self.overlaps_NK = np.zeros((len(rising_N), self._levels_K.size))
        for number, rising in enumerate(rising_N):
            if rising is not None:
                from_top = np.concatenate([np.cumsum(rising.shares[::-1])[::-1], [0.0]])
                self.overlaps_NK[number] = from_top[np.searchsorted(rising.scores, self._levels_K)]
        self.outside_NK = np.zeros_like(self.overlaps_NK)
        self._n_counted = 0

    def _choose_levels(self) -> NDArray[np.floating]:
        """Choose scores that are even in the height of the curve, each with the next number above, and one below all.

        Without the number above, a rise at one score would look like one from the level before.
        """
        risen_G = np.cumsum(self._weights_G[::-1])
        chosen = np.searchsorted(risen_G, np.linspace(0.0, risen_G[-1], LEVELS))
        scores_K = self._scores_G[::-1][np.minimum(chosen, risen_G.size - 1)]
        above_K = np.nextafter(scores_K, np.inf, dtype=scores_K.dtype)
        return np.append(np.unique([scores_K, above_K])[::-1], scores_K.dtype.type(-np.inf))

    def count(self, outside: NDArray[np.floating]) -> None:
        """Count the pixels of the next image that are outside of regions, ascending."""
        below = np.searchsorted(self._scores_G, outside)
        tied = self._scores_G[np.minimum(below, self._scores_G.size - 1)] == outside
        self._below_G1 += np.bincount(below, minlength=self._below_G1.size)
        self._not_above_G1 += np.bincount(below + tied, minlength=self._below_G1.size)
        self.outside_NK[self._n_counted] = outside.size - np.searchsorted(outside, self._levels_K)
        self._n_counted += 1

    @cached_property
    def ranking(self) -> Ranking:
        """The pixels that raise the curve among the pixels outside of regions; read it after the last count."""
        n_outside = int(self._below_G1.sum())
        return Ranking(
            scores=self._scores_G[::-1],
            positives=self._positives_G[::-1],
            region_weight=self._weights_G[::-1],
            negatives_above=(n_outside - np.cumsum(self._below_G1)[:-1])[::-1],
            negatives_at_least=(n_outside - np.cumsum(self._not_above_G1)[:-1])[::-1],
            n_positives=int(self._positives_G.sum()),
            n_negatives=n_outside,
            n_regions=self.n_regions,
        )

    def saturated_overlap(self, limit: float) -> float:
        """Compute the mean saturated overlap of the kind's regions up to a false-positive rate."""
        return ranked_aupro(self.ranking, limit)

    def metrics(self) -> dict[str, float]:
        """Compute all metrics of level "region" of `metric_table` for this kind alone."""
        return {name: float(metric.formula(self)) for name, metric in metrics_of("region").items()}
