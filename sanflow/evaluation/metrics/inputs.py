"""Check the inputs of a metric: finite scores and matching labels or masks.

Every message says what was expected, what was found and, where there is one, the remedy.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Maps = NDArray[np.floating] | Sequence[NDArray[np.floating]]
Masks = NDArray[np.bool_] | NDArray[np.integer] | Sequence[NDArray[np.bool_]]


class MetricWarning(UserWarning):
    """A metric is undefined (and returned as NaN) or coarser than its definition requires."""


def undefined(metric: str, missing: str) -> float:
    """Warn that a metric has no value for this set, and return NaN. Averages over categories leave out NaN."""
    warnings.warn(f"{metric} is undefined without {missing}; NaN is returned.", MetricWarning, stacklevel=3)
    return float("nan")


def as_scores(scores: ArrayLike, where: str = "") -> NDArray[np.floating]:
    """Convert scores to float32 or float64, so that ties and order do not change.

    Raises:
        ValueError: If the scores are not real numbers, or one is NaN or infinite.

    Example:
        >>> as_scores([1, 2]).dtype
        dtype('float64')
    """
    array = np.asarray(scores)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"Expected scores that are real numbers, but got dtype {array.dtype}{where}.")
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        bad = array.size - int(np.count_nonzero(finite))
        raise ValueError(
            f"Expected finite scores, but got {bad} of {array.size} that are NaN or infinite{where}; "
            "look for a diverged training or an overflow; scores are never corrected here."
        )
    return array


def as_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    """Convert labels to booleans, True where anomalous.

    Raises:
        ValueError: If they are neither booleans nor the integers 0 and 1.
    """
    array = np.asarray(labels)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu" or not np.isin(array, (0, 1)).all():
        raise ValueError(
            "Expected labels that are booleans or the integers 0 (normal) and 1 (anomalous), "
            f"but got dtype {array.dtype} with values such as {np.unique(array)[:4].tolist()}."
        )
    return array.astype(np.bool_)


def as_mask(mask: ArrayLike, where: str = "") -> NDArray[np.bool_]:
    """Convert a mask to booleans: every pixel that is not 0 is anomalous (so 0/1 and 0/255 are both valid).

    Raises:
        ValueError: If it holds neither booleans nor integers. A resized mask must be thresholded first.
    """
    array = np.asarray(mask)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"Expected a mask of booleans or integers, but got dtype {array.dtype}{where}; "
            "threshold it first, so that it is clear which pixels are anomalous."
        )
    return array != 0


def check_labelled_scores(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Check flat scores and their labels, and return them.

    Raises:
        ValueError: If the shapes differ, or `as_scores` or `as_labels` rejects them.
    """
    score_array, label_array = as_scores(scores), as_labels(labels)
    if score_array.shape != label_array.shape:
        raise ValueError(
            f"Expected one label per score, but got scores of shape {score_array.shape} "
            f"and labels of shape {label_array.shape}."
        )
    return score_array.ravel(), label_array.ravel()


def check_maps(maps: Maps, masks: Masks) -> tuple[list[NDArray[np.floating]], list[NDArray[np.bool_]]]:
    """Check anomaly maps and masks; return two lists of (h, w) arrays, without copying where possible.

    A map and its mask have the same shape.

    Raises:
        ValueError: If there are not as many masks as maps, a map and its mask differ in shape, a map is not 2-D, or
            `as_scores` or `as_mask` rejects one. The message names the map.
    """
    if len(maps) != len(masks):
        raise ValueError(f"Expected one mask per map, but got {len(maps)} maps and {len(masks)} masks.")
    map_list, mask_list = [], []
    for i, (one_map, one_mask) in enumerate(zip(maps, masks, strict=True)):
        where = f" in map {i}"
        score, mask = as_scores(one_map, where), as_mask(one_mask, where)
        if score.ndim != 2 or score.shape != mask.shape:
            raise ValueError(
                f"Expected map {i} and its mask to be of one shape (h, w), but got {score.shape} "
                f"and {mask.shape}; maps are (n, h, w) arrays or lists of (h, w) arrays."
            )
        map_list.append(score)
        mask_list.append(mask)
    return map_list, mask_list
