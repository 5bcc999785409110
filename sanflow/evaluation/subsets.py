"""Measure parts of the test set: the images of one group, such as a light, or one kind of anomaly with all good ones.

What the parts share with the whole set is here too: which metrics of regions apply, and maps at the images' own size,
one at a time.

Shapes: N test images, M of them in a part, H x W the input size.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from sanflow.anomaly_maps.maps import Fusion, iterate_maps
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.data.images import iterate_regions
from sanflow.data.index import Index
from sanflow.evaluation.metric_table import METRICS, UNSATURATED
from sanflow.evaluation.metrics import MetricWarning, SaturatedMeasures, ScoredImage, image_metrics, pixel_metrics
from sanflow.evaluation.operating_point import operating_points

MOST_GROUPS = 20  # with more, a group is no condition but a day or a batch, and has too few images
Values = TypeVar("Values")


def measured_here(pixels: Mapping[str, Values], index: Index) -> dict[str, Values]:
    """Leave out metrics of regions without saturation where the regions have thresholds."""
    return {name: value for name, value in pixels.items() if not (index.saturations and name in UNSATURATED)}


class NativeImages:
    """The test images with their maps at their own size, made one at a time, anew at each visit.

    Arguments:
        scores: Of the run.
        index: A category with saturation thresholds.
        fusion: How scales are joined.
    """

    def __init__(self, scores: Scores, index: Index, fusion: Fusion = "calibrated") -> None:
        self._scores, self._index, self._fusion = scores, index, fusion

    def __iter__(self) -> Iterator[ScoredImage]:
        maps = iterate_maps(self._scores, self._index.test_sizes, self._fusion)
        for map_HW, regions, row in zip(maps, iterate_regions(self._index), self._index.test.itertuples(), strict=True):
            yield ScoredImage(map_HW, regions, str(row.defect_type) if row.label else "")


def by_group(
    index: Index, scores: Scores, image_N: np.ndarray, maps_NHW: np.ndarray, masks_NHW: np.ndarray | None
) -> dict[str, Any]:
    """Measure the images of each group alone, such as those of one light; nothing for one group or very many.

    Returns:
        `by_group`: name of the group -> its metrics, its number of images, and its rates at the thresholds from
        held-out parts. NaN where a group lacks a class.
    """
    groups_N = index.test["group"].to_numpy()
    names = sorted(set(groups_N))
    if not 2 <= len(names) <= MOST_GROUPS:
        return {}
    found = {}
    for name in names:
        own_N = groups_N == name
        labels_M, image_M = scores.labels[own_N], image_N[own_N]
        found[name or "(no group)"] = {
            "images": int(own_N.sum()),
            **_quietly(image_metrics, image_M, labels_M),
            **({} if masks_NHW is None else _quietly(pixel_metrics, maps_NHW[own_N], masks_NHW[own_N])),
            "operating_point": operating_points(image_M, labels_M, scores.held_out_scores),
        }
    return {"by_group": found}


def by_kind(
    index: Index,
    scores: Scores,
    image_N: np.ndarray,
    maps_NHW: np.ndarray,
    masks_NHW: np.ndarray,
    saturated: SaturatedMeasures,
) -> dict[str, Any]:
    """Measure each kind of anomaly with all good images, as MVTec LOCO is reported.

    Returns:
        `by_kind`: kind of anomaly -> its metrics and its number of images; `mean` -> their means over the kinds.
    """
    found = {}
    for number, (kind, curve) in enumerate(saturated.kinds.items(), 1):
        own_N = np.isin(saturated.strata_N, (0, number))
        found[kind] = {
            "images": int(own_N.sum()),
            **_quietly(image_metrics, image_N[own_N], scores.labels[own_N]),
            **measured_here(_quietly(pixel_metrics, maps_NHW[own_N], masks_NHW[own_N]), index),
            **curve.metrics(),
        }
    names = [name for name in next(iter(found.values()), {}) if name in METRICS]
    mean = {name: float(np.mean([one[name] for one in found.values()])) for name in names}
    return {"by_kind": {**found, "mean": mean}}


def _quietly(measure: Callable[..., dict[str, float]], *given: np.ndarray) -> dict[str, float]:
    """Measure a part of the images without warnings: that a part lacks a class is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)
        return measure(*given)
