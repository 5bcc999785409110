"""Measure the time of the metrics on random smooth fields (medians), and the usual threshold loop beside them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sanflow.evaluation.metrics import (
    aupimo,
    aupro,
    auroc,
    average_precision,
    bootstrap_pixel_metrics,
    f1_max,
    pixel_curves,
    pixel_metrics,
    rank_pixels,
)

LOOP_THRESHOLDS = 1000
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
Window = tuple[int, tuple[slice, ...], NDArray[np.bool_]]


def smooth_fields(
    n_maps: int, n_anomalous: int, size: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw anomaly maps like those of a real test set: smooth noise, raised by an uneven amount where anomalous.

    Arguments:
        n_maps: Number of maps.
        n_anomalous: How many of them, the first ones, have anomalous regions.
        size: Height and width.
        seed: Of the fields.

    Returns:
        Maps (n, size, size) and masks of the same shape, with about 4 % of the pixels of an anomalous map in regions.
    """
    generator = np.random.default_rng(seed)
    maps = np.empty((n_maps, size, size), dtype=np.float32)
    masks = np.zeros((n_maps, size, size), dtype=bool)
    for i in range(n_maps):
        noise = generator.standard_normal((2, size, size), dtype=np.float32)
        field = ndimage.gaussian_filter(noise[0], size / 64, mode="wrap")
        maps[i] = field / field.std()
        if i < n_anomalous:
            blobs = ndimage.gaussian_filter(noise[1], size / 20, mode="wrap")
            masks[i] = blobs > np.quantile(blobs, 0.96)
            maps[i] += 5.0 * generator.random() * ndimage.gaussian_filter(masks[i] * 1.0, size / 128)
    return maps, masks


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Measure the median wall time of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def region_windows(masks: NDArray[np.bool_]) -> list[Window]:
    """Return image, bounding box and mask within it of every 8-connected region."""
    windows = []
    for i, mask in enumerate(masks):
        labels, _ = ndimage.label(mask, structure=EIGHT_NEIGHBOURS)
        for region, box in enumerate(ndimage.find_objects(labels), start=1):
            windows.append((i, box, labels[box] == region))
    return windows


def threshold_loop(
    maps: NDArray[np.floating], masks: NDArray[np.bool_], windows: list[Window], thresholds: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Compute a per-region-overlap curve the usual way: binarise all maps at each threshold and visit every region.

    Faster than usual: regions are labelled once, before the loop, and cut to their bounding boxes.

    Returns:
        False-positive rate and mean region overlap at each threshold.
    """
    outside = ~masks
    n_outside = np.count_nonzero(outside)
    rates, overlaps = [], []
    for threshold in thresholds:
        called = maps >= threshold
        overlaps.append(float(np.mean([called[i][box][region].mean() for i, box, region in windows])))
        rates.append(float(np.count_nonzero(called & outside) / n_outside))
    return rates, overlaps


def bench_metrics(
    *,
    sizes: Sequence[int] = (256, 512),
    n_maps: int = 83,
    n_anomalous: int = 63,
    repeats: int = 5,
    loop_thresholds_timed: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Time every metric on random smooth fields, and a plain threshold loop for the same AUPRO.

    Arguments:
        sizes: Heights and widths of the maps.
        n_maps: Number of maps; 83 with 63 anomalous are those of one MVTec AD category.
        n_anomalous: How many of them are anomalous.
        repeats: Times each call is timed; the median is given.
        loop_thresholds_timed: How many of the loop's 1000 thresholds are timed; the rest is extrapolated.
        seed: Of the fields.

    Returns:
        A dict that JSON can hold; all times in seconds.
    """
    return {
        "maps": n_maps,
        "anomalous": n_anomalous,
        "fields": "random, smooth, float32",
        "repeats": repeats,
        "seconds_are": "median wall time of one call",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "sizes": [
            _bench_one_size(
                size,
                n_maps=n_maps,
                n_anomalous=n_anomalous,
                repeats=repeats,
                loop_thresholds_timed=loop_thresholds_timed,
                seed=seed,
            )
            for size in sizes
        ],
    }


def _bench_one_size(
    size: int, *, n_maps: int, n_anomalous: int, repeats: int, loop_thresholds_timed: int, seed: int
) -> dict[str, Any]:
    """Measure times and values at one map size."""
    maps, masks = smooth_fields(n_maps, n_anomalous, size, seed)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    ranking, exact = rank_pixels(maps, masks), pixel_metrics(maps, masks)
    calls: dict[str, Callable[[], object]] = {
        "aupro": lambda: aupro(maps, masks),
        "aupro_05": lambda: aupro(maps, masks, limit=0.05),
        "aupimo": lambda: aupimo(maps, masks),
        "pixel_auroc": lambda: auroc(maps, masks),
        "pixel_ap": lambda: average_precision(maps, masks),
        "pixel_f1_max": lambda: f1_max(maps, masks),
        "all_pixel_metrics_in_one_pass": lambda: pixel_metrics(maps, masks),
        "three_curves_from_the_ranking": lambda: pixel_curves(maps, masks, ranking=ranking),
        "image_auroc": lambda: auroc(scores, labels),
        "bootstrap_of_all_pixel_metrics_1000_resamples": lambda: bootstrap_pixel_metrics(maps, masks, exact=exact),
    }
    seconds = {
        name: round(median_seconds(call, 1 if name.startswith("bootstrap") else repeats), 4)
        for name, call in calls.items()
    }
    every = np.linspace(maps.max(), maps.min(), LOOP_THRESHOLDS)
    timed = every[np.linspace(0, LOOP_THRESHOLDS - 1, loop_thresholds_timed).astype(int)]
    windows = region_windows(masks)
    per_threshold = [median_seconds(partial(threshold_loop, maps, masks, windows, [one]), 1) for one in timed.tolist()]
    loop = LOOP_THRESHOLDS * statistics.median(per_threshold)
    return {
        "height": size,
        "width": size,
        "regions": ranking.n_regions,
        "seconds": seconds,
        "values": {name: round(value, 6) for name, value in exact.items()},
        "threshold_loop": {
            "thresholds": LOOP_THRESHOLDS,
            "thresholds_timed": loop_thresholds_timed,
            "seconds": round(loop, 2),
            "seconds_are": f"extrapolated: {LOOP_THRESHOLDS} x median of {loop_thresholds_timed} single thresholds",
            "times_slower_than_aupro": round(loop / seconds["aupro"], 1),
        },
    }
