"""Contact sheet of a category: images, ground truth, and of each experiment the map and the predicted outline."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sanflow.anomaly_maps.maps import anomaly_maps
from sanflow.data.index import Index
from sanflow.report.figures.inputs import first_seeds, load_samples, read_images_table, read_scores
from sanflow.report.figures.style import (
    MAP_COLOURS,
    PREDICTED,
    TRUTH,
    add_notes,
    full_width,
    most_images,
    new_figure,
    without_ticks,
)
from sanflow.report.runs import Run, notes_of, read_curves

OUTLINE_NOTE = (
    "Outline: prediction (orange, solid) at the threshold of the best pixel F1 on the test set; truth (blue, dashed)."
)
DARKEST = 0.02  # share of the test set's pixels that are drawn as dark as can be


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps and scores of the shown images by one experiment.

    Arguments:
        label: Name of the experiment.
        maps: (n, H, W) anomaly maps of the shown images.
        low: Score that is drawn darkest, over the whole test set.
        high: Score that is drawn brightest.
        threshold: Score at which the outline is drawn; NaN draws none.
        image_scores: (n,) scores of the shown images.
    """

    label: str
    maps: np.ndarray
    low: float
    high: float
    threshold: float
    image_scores: np.ndarray


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the contact sheet of a category.

    Only the maps of the shown images are computed. The range of colours is that of the whole test set, from the
    histogram of pixel scores in curves.npz.
    """
    shown = first_seeds(runs)
    samples = load_samples(shown, index, most_images())
    experiments = []
    for label, run in shown.items():
        low, high = colour_range(read_curves(run))
        experiments.append(
            Maps(
                label=label,
                maps=anomaly_maps(read_scores(run, index, samples.chosen), samples.images.shape[1:3]),
                low=low,
                high=high,
                threshold=float(run.metrics.get("pixel_f1_threshold", math.nan)),
                image_scores=read_images_table(run, index).score.to_numpy(float)[samples.chosen],
            )
        )
    return contact_sheet(samples.images, samples.masks, samples.kinds, experiments, notes_of(runs))


def colour_range(curves: dict[str, np.ndarray]) -> tuple[float, float]:
    """Choose the darkest and brightest score: a low quantile and the maximum over the test set's pixels.

    Example:
        >>> halves = {"pixel_histogram_normal": np.array([50, 49]), "pixel_histogram_anomalous": np.array([0, 1])}
        >>> low, high = colour_range({"pixel_histogram_edges": np.array([0.0, 1.0, 2.0]), **halves})
        >>> round(low, 3), high  # 2 of the 50 pixels per 1.0 lie below 0.04
        (0.04, 2.0)
    """
    edges = curves["pixel_histogram_edges"]
    below = np.cumsum(curves["pixel_histogram_normal"] + curves["pixel_histogram_anomalous"])
    return float(np.interp(DARKEST, np.append(0.0, below / below[-1]), edges)), float(edges[-1])


def contact_sheet(
    images: np.ndarray, masks: np.ndarray, kinds: Sequence[str], experiments: Sequence[Maps], notes: Sequence[str] = ()
) -> Figure:
    """Draw a contact sheet: a column per image, a row per view.

    Arguments:
        images: (n, H, W, 3) uint8.
        masks: (n, H, W) bool.
        kinds: Kind of defect of each image, its column's title.
        experiments: One or more.
        notes: Small print.
    """
    n_images, n_rows = len(images), 2 + 2 * len(experiments)
    cell = min(1.15, (full_width() - 0.9) / n_images)
    figure = new_figure(cell * n_images + 0.9, cell * images.shape[1] / images.shape[2] * n_rows + 0.5)
    panels = figure.subplots(n_rows, n_images, squeeze=False)
    for column, image in enumerate(images):
        panels[0, column].imshow(image)
        panels[0, column].set_title(kinds[column].replace("_", " "), fontsize=7)
        panels[1, column].imshow(masks[column], cmap="gray", vmin=0, vmax=1)
    _name(panels[0, 0], "image")
    _name(panels[1, 0], "ground truth")
    for number, experiment in enumerate(experiments):
        maps_row, outline_row = panels[2 + 2 * number], panels[3 + 2 * number]
        for column, map_HW in enumerate(experiment.maps):
            drawn = maps_row[column].imshow(map_HW, cmap=MAP_COLOURS, vmin=experiment.low, vmax=experiment.high)
            maps_row[column].set_xlabel(f"{experiment.image_scores[column]:.3g}", fontsize=6, labelpad=1.5)
            outline_row[column].imshow(images[column])
            _outline(outline_row[column], masks[column], 0.5, TRUTH, (0, (2, 1)))
            _outline(outline_row[column], map_HW, experiment.threshold, PREDICTED, "-")
        bar = figure.colorbar(drawn, ax=list(maps_row), fraction=0.02, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=6, length=2)
        bar.outline.set_linewidth(0.4)
        _name(maps_row[0], f"{experiment.label}\nmap, score")
        _name(outline_row[0], f"{experiment.label}\noutline")
    for axes in panels.flat:
        without_ticks(axes)
    add_notes(figure, [OUTLINE_NOTE, *notes])
    return figure


def _name(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=7, rotation=0, ha="right", va="center", labelpad=4)


def _outline(axes: Axes, values: np.ndarray, level: float, colour: str, style: object) -> None:
    """Draw a contour if there is one: matplotlib warns of levels outside the data."""
    highest = np.max(values)
    if np.min(values) < level <= highest:
        flat = level > 0.999 * highest  # a map of two values has no contour at the upper one
        drawn, at = (values >= level, 0.5) if flat else (values, level)
        axes.contour(drawn.astype(float), levels=[at], colors=[colour], linestyles=[style], linewidths=1.0)
