"""Write the files of one category: images, maps, outlines, and the numbers by which the page sorts and counts.

Runs are read one after another, and images are decoded once, a few at a time, so that memory does not grow with the
number of images: what is kept of a run are its maps at 8 bits.

Shapes: N test images, H x W a map.
"""

import csv
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sanflow.anomaly_maps.fusion import calibrated
from sanflow.anomaly_maps.maps import resized
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.data.decode import read_image
from sanflow.data.images import iterate_masks
from sanflow.data.index import Index
from sanflow.errors import IntegrityError
from sanflow.report.explorer.colour_scale import level_edges, levels_of
from sanflow.report.explorer.outlines import outline_of, overlap_of
from sanflow.report.explorer.scripts import write_script
from sanflow.report.runs import Run

LARGE, SMALL = 640, 160  # longest side of an image in the dialog and in the grid, pixels
MAP_SIDE = 256  # longest side of a map
TRUTH_SIDE = 512  # longest side at which the ground truth is outlined
SAMPLED_PIXELS = 2_000_000  # of a run, for its colour scale
CHUNK = 16  # images whose maps are made at once


@dataclasses.dataclass(frozen=True)
class RunPictures:
    """The data of one run that the page shows.

    Arguments:
        levels_NHW: uint8 maps on the common colour scale.
        outlines: Per image, where the map reaches the threshold of the best pixel F1; SVG paths.
        overlaps: Per image, intersection over union of that region and the ground truth; None where there is none.
        scores: Per image, the image score.
    """

    levels_NHW: np.ndarray
    outlines: list[str]
    overlaps: list[float | None]
    scores: list[float]


def write_category(
    folder: Path, number: int, index: Index, runs: Sequence[Run], experiments: Sequence[str], workers: int | None = None
) -> None:
    """Write all files of one category.

    Arguments:
        folder: Of the explorer.
        number: Of the category; its files are named by it, since a category's own name may hold any character.
        index: The category.
        runs: Its runs of the last epoch.
        experiments: Keys of all experiments; the page knows them by their place here.
        workers: Threads that decode and encode; one per processor, at most 8, if unset.

    Raises:
        DataError: If an image or mask is missing, damaged or changed.
        IntegrityError: If scores belong to other images.
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        # Decoded once for all runs whose maps have the same size.
        masks_of = functools.cache(lambda size: np.stack(list(iterate_masks(index, size))))
        pictures = [_pictures_of(run, index, masks_of, pool.map) for run in runs]
        truth_size = _bounded(_usual_size(index), TRUTH_SIDE)
        truths = list(pool.map(lambda mask_HW: outline_of(mask_HW, 0.5), iterate_masks(index, truth_size)))
        images, maps = folder / "images" / str(number), folder / "maps" / str(number)
        for place in (images, *(maps / str(k) for k in range(len(runs)))):
            place.mkdir(parents=True)

        def write_images(i: int) -> None:
            row = index.test.iloc[i]
            size = _bounded((int(row.height), int(row.width)), LARGE)
            large = Image.fromarray(read_image(index.root / row.image, size, "lanczos", row.sha256))
            large.save(images / f"{i}.webp", quality=75, method=2)
            height, width = _bounded(size, SMALL)
            large.resize((width, height), Image.Resampling.BILINEAR).save(images / f"{i}-small.webp", quality=75)
            for k, run in enumerate(pictures):
                Image.fromarray(run.levels_NHW[i]).save(maps / str(k) / f"{i}.webp", quality=85, method=1)

        list(pool.map(write_images, range(len(index.test))))
    data = folder / "data"
    table = index.test
    write_script(
        data / f"category-{number}.js",
        f"category-{number}",
        {
            "files": list(table.image),
            "labels": [int(label) for label in table.label],
            "kinds": list(table.defect_type),
            "sizes": [[int(width), int(height)] for width, height in zip(table.width, table.height, strict=True)],
            "runs": [
                {
                    "experiment": experiments.index(run.experiment),
                    "seed": run.seed,
                    "scores": shown.scores,
                    "overlaps": shown.overlaps,
                }
                for run, shown in zip(runs, pictures, strict=True)
            ],
        },
    )
    outlines = {"truth": truths, "runs": [shown.outlines for shown in pictures]}
    write_script(data / f"outlines-{number}.js", f"outlines-{number}", outlines)


def _pictures_of(
    run: Run,
    index: Index,
    masks_of: Callable[[tuple[int, int]], np.ndarray],
    each: Callable[..., Iterable[Any]],
) -> RunPictures:
    """Read one run; `masks_of` gives the ground truth at a size, `each` is a `map` that may work on several chunks."""
    scores = _scores_of(run, index)
    size, n_images = _bounded(scores.input_size, MAP_SIDE), len(scores.paths)
    chunks = [slice(start, start + CHUNK) for start in range(0, n_images, CHUNK)]
    step = max(1, math.isqrt(n_images * size[0] * size[1] // SAMPLED_PIXELS))
    samples = each(lambda part: _maps_of(scores, part, size)[:, ::step, ::step].ravel(), chunks)
    edges = level_edges(np.concatenate(list(samples)))
    threshold = float(run.metrics.get("pixel_f1_threshold", math.nan))
    masks_NHW = masks_of(size)

    def picture(part: slice) -> tuple[np.ndarray, list[str], list[float | None]]:
        maps_NHW = _maps_of(scores, part, size)
        overlaps = [
            None if math.isnan(threshold) else overlap_of(map_HW >= threshold, mask_HW)
            for map_HW, mask_HW in zip(maps_NHW, masks_NHW[part], strict=True)
        ]
        outlines = [outline_of(map_HW, threshold) for map_HW in maps_NHW]
        return levels_of(maps_NHW, edges), outlines, overlaps

    parts = list(each(picture, chunks))
    return RunPictures(
        levels_NHW=np.concatenate([part[0] for part in parts]),
        outlines=[outline for part in parts for outline in part[1]],
        overlaps=[overlap for part in parts for overlap in part[2]],
        scores=_image_scores(run, index),
    )


def _maps_of(scores: Scores, part: slice, size: tuple[int, int]) -> np.ndarray:
    """Make the anomaly maps of some images, calibrated fusion; (n, H, W) float32."""
    if scores.kind == "anomaly_map":
        return np.stack([resized(map_HW, size) for map_HW in scores.grids["map"][part]])
    grids = [grid_Nhw[part] for grid_Nhw in scores.grids.values()]
    return calibrated(grids, [scores.constants[name] for name in scores.grids], size)


def _scores_of(run: Run, index: Index) -> Scores:
    scores = Scores.load(run.folder / "scores.npz")
    _require_images_of(index, scores.paths, run.folder / "scores.npz", "Score")
    scores.require_finite(run.folder / "scores.npz")
    return scores


def _image_scores(run: Run, index: Index) -> list[float]:
    file = run.folder / "images.csv"
    # Not by pandas, whose older versions lose the last digit: a threshold equals some image's score.
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    _require_images_of(index, [row["image"] for row in rows], file, "Evaluate")
    return [float(row["score"]) for row in rows]


def _require_images_of(index: Index, found: Sequence[str], file: Path, remedy: str) -> None:
    if list(found) != [str(image) for image in index.test.image]:
        raise IntegrityError(
            f"Expected {file} to be of the test images of {index.dataset}/{index.category}, but it is of others: the "
            f"data set has changed since. {remedy} the run again."
        )


def _usual_size(index: Index) -> tuple[int, int]:
    """Return height and width of the first test image; outlines are stretched over the others."""
    first = index.test.iloc[0]
    return int(first.height), int(first.width)


def _bounded(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return a size of the same shape whose longest side is at most `longest`.

    Example:
        >>> _bounded((1024, 512), 256), _bounded((100, 50), 256)
        ((256, 128), (100, 50))
    """
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
