"""Rank each positive among the negatives: one sort, from which every ranking metric is computed.

Only the negatives are all sorted; the place of each positive, of which a test set has far fewer, is looked up. Counts
are exact integers and ties are kept, so metrics depend on the order of the scores only.

Shapes: G distinct scores of positives, in descending order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sanflow.evaluation.metrics.inputs import Maps, Masks, check_maps

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
BLOCK = 1 << 20


@dataclass(frozen=True)
class Ranking:
    """Positives grouped by distinct score, highest first, with the negatives they beat or tie with.

    Arguments:
        scores: Distinct scores of positives, strictly descending, (G,).
        positives: How many positives have that score, (G,).
        region_weight: Their share of the mean region overlap, summing to 1, (G,); empty if there are no regions.
        negatives_above: Number of negatives with a higher score, (G,).
        negatives_at_least: Number of negatives with that or a higher score, (G,).
        n_positives: Number of all positives.
        n_negatives: Number of all negatives.
        n_regions: Number of connected anomalous regions; 0 for image scores.
    """

    scores: NDArray[np.floating]
    positives: NDArray[np.int64]
    region_weight: NDArray[np.float64]
    negatives_above: NDArray[np.int64]
    negatives_at_least: NDArray[np.int64]
    n_positives: int
    n_negatives: int
    n_regions: int = 0

    @property
    def missing(self) -> str | None:
        """Name the class that has no member; None if both have members."""
        if self.n_positives == 0:
            return "anomalies"
        return "normals" if self.n_negatives == 0 else None

    def blocks(self) -> Iterator["Ranking"]:
        """Yield the ranking in blocks of its scores, in order, so that sums over it need small temporaries only."""
        for first in range(0, max(self.scores.size, 1), BLOCK):
            part = slice(first, first + BLOCK)
            yield replace(
                self,
                scores=self.scores[part],
                positives=self.positives[part],
                region_weight=self.region_weight[part],
                negatives_above=self.negatives_above[part],
                negatives_at_least=self.negatives_at_least[part],
            )

    @property
    def start(self) -> NDArray[np.float64]:
        """False-positive rate just before each score becomes the threshold, (G,)."""
        return self.negatives_above / self.n_negatives

    @property
    def end(self) -> NDArray[np.float64]:
        """False-positive rate with each score as the threshold, (G,)."""
        return self.negatives_at_least / self.n_negatives


def rank(
    positives: NDArray[np.floating],
    negatives: NDArray[np.floating],
    weights: NDArray[np.float64] | None = None,
    *,
    n_positives: int | None = None,
    n_negatives: int | None = None,
    n_regions: int = 0,
) -> Ranking:
    """Rank positives among negatives.

    Arguments:
        positives: Their scores, (P,).
        negatives: Their scores, (N,); sorted in place, so pass an array that is not used elsewhere.
        weights: Share of each positive in the mean region overlap, (P,).
        n_positives: Number of all positives, where `positives` holds only the highest ones.
        n_negatives: Number of all negatives, where `negatives` holds only the highest ones.
        n_regions: Number of regions behind the weights.
    """
    n_kept = negatives.size
    negatives.sort()
    if weights is None:
        ascending = np.sort(positives)
    else:
        order = np.argsort(positives)
        ascending, weights = positives[order], weights[order]
        del order
    first = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1]))[: positives.size])
    distinct = ascending[first]
    counts = np.diff(first, append=positives.size)
    region_weight = np.add.reduceat(weights, first) if weights is not None and first.size else np.empty(0)
    del ascending, weights, first  # with many anomalous pixels each is as large as the maps
    at_least = np.searchsorted(negatives, distinct, side="left")
    above = at_least.copy()
    # few scores tie with a negative: only those need the second search
    tied = np.flatnonzero(negatives[np.minimum(at_least, n_kept - 1)] == distinct) if n_kept else at_least[:0]
    above[tied] = np.searchsorted(negatives, distinct[tied], side="right")
    return Ranking(
        scores=distinct[::-1],
        positives=counts[::-1],
        region_weight=region_weight[::-1],
        negatives_above=np.subtract(n_kept, above, out=above)[::-1],
        negatives_at_least=np.subtract(n_kept, at_least, out=at_least)[::-1],
        n_positives=positives.size if n_positives is None else n_positives,
        n_negatives=n_kept if n_negatives is None else n_negatives,
        n_regions=n_regions,
    )


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Label the region of each anomalous pixel of one mask, in the order of `map[mask]`, and count the regions.

    Pixels that touch by an edge or a corner are of one region (8-connectivity, as in the MVTec definition).

    Example:
        >>> label_regions(np.eye(3, dtype=bool))
        (array([0, 0, 0]), 1)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return np.empty(0, dtype=np.int64), 0
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, n_regions = ndimage.label(window, structure=EIGHT_NEIGHBOURS)
    return labels[window].astype(np.int64) - 1, n_regions


def rank_pixels(maps: Maps, masks: Masks, limit: float | None = None) -> Ranking:
    """Rank the anomalous pixels of a whole set among all its other pixels, those of anomalous images included.

    Memory beyond the maps: one copy of the scores, and about 40 bytes per anomalous pixel.

    Arguments:
        maps: Anomaly scores, (n, h, w) or a list of (h, w) arrays of any sizes; higher is more anomalous.
        masks: True (or not 0) where anomalous; same shapes.
        limit: Largest false-positive rate that is needed. Only the highest scores are then sorted and
            kept; counts within the limit are exact, those beyond it are only known to be beyond it.

    Raises:
        ValueError: If scores are not finite or shapes differ.
    """
    map_list, mask_list = check_maps(maps, masks)
    dtype = np.result_type(*map_list) if map_list else np.dtype(np.float64)
    n_pixels = sum(score.size for score in map_list)
    n_positives = sum(int(np.count_nonzero(mask)) for mask in mask_list)
    negatives = np.empty(n_pixels - n_positives, dtype=dtype)
    positives = np.empty(n_positives, dtype=dtype)
    weights = np.empty(n_positives, dtype=np.float64)
    seen_negatives, seen_positives, n_regions = 0, 0, 0
    for score, mask in zip(map_list, mask_list, strict=True):
        region, n_here = label_regions(mask)
        here = slice(seen_positives, seen_positives + region.size)
        there = slice(seen_negatives, seen_negatives + score.size - region.size)
        if n_here == 0:
            negatives[there] = score.ravel()
        else:
            negatives[there] = score[~mask]
            positives[here] = score[mask]
            weights[here] = (1.0 / np.bincount(region))[region]
        seen_positives, seen_negatives, n_regions = here.stop, there.stop, n_regions + n_here
    weights /= max(n_regions, 1)
    n_negatives = negatives.size
    if limit is not None and n_negatives:
        negatives = _highest(negatives, limit)
        if negatives.size < n_negatives:
            kept = positives >= negatives.min()
            positives, weights = positives[kept], weights[kept]
    return rank(positives, negatives, weights, n_positives=n_positives, n_negatives=n_negatives, n_regions=n_regions)


def _highest(negatives: NDArray[np.floating], share: float) -> NDArray[np.floating]:
    """Return the highest negatives: at least that share and one more, with all that tie with the lowest kept."""
    n_kept = int(np.ceil(share * negatives.size)) + 1
    if n_kept >= negatives.size:
        return negatives
    negatives.partition(negatives.size - n_kept)
    return negatives[negatives >= negatives[negatives.size - n_kept]]
