"""Histograms of scores, normal against anomalous: of images above, of pixels below; a column per experiment."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sanflow.data.index import Index
from sanflow.report.figures.inputs import first_seeds, read_images_table
from sanflow.report.figures.style import ANOMALOUS, NORMAL, add_notes, full_width, new_figure
from sanflow.report.runs import Run, notes_of, read_curves

BINS = 24


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Scores of one experiment.

    Arguments:
        label: Name of the experiment.
        image_scores: (N,).
        image_labels: (N,) True where anomalous.
        edges: (B + 1,) of the pixel histogram.
        normal: (B,) counts of normal pixels.
        anomalous: (B,) counts of anomalous pixels.
        image_threshold: Of the best image F1 on the test set.
        pixel_threshold: Of the best pixel F1 on the test set.
    """

    label: str
    image_scores: np.ndarray
    image_labels: np.ndarray
    edges: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray
    image_threshold: float
    pixel_threshold: float


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the score histograms of a category."""
    experiments = []
    for label, run in first_seeds(runs).items():
        images, curves = read_images_table(run, index), read_curves(run)
        experiments.append(
            Distribution(
                label=label,
                image_scores=images.score.to_numpy(float),
                image_labels=images.label.to_numpy() == 1,
                edges=curves["pixel_histogram_edges"],
                normal=curves["pixel_histogram_normal"],
                anomalous=curves["pixel_histogram_anomalous"],
                image_threshold=float(run.metrics.get("image_f1_threshold", math.nan)),
                pixel_threshold=float(run.metrics.get("pixel_f1_threshold", math.nan)),
            )
        )
    return score_histograms(experiments, notes_of(runs))


def score_histograms(experiments: Sequence[Distribution], notes: Sequence[str] = ()) -> Figure:
    """Draw the score histograms of a category.

    Arguments:
        experiments: One or more.
        notes: Small print.
    """
    n_experiments = len(experiments)
    width = min(3.4, full_width() / max(n_experiments, 2)) * n_experiments
    figure = new_figure(min(max(width, 3.6), full_width()), 4.4)
    panels = figure.subplots(2, n_experiments, squeeze=False)
    for column, one in enumerate(experiments):
        edges = np.histogram_bin_edges(one.image_scores, BINS)
        parts = [one.image_scores[~one.image_labels], one.image_scores[one.image_labels]]
        _pair(panels[0, column], edges, [np.histogram(part, edges)[0] for part in parts])
        _threshold(panels[0, column], one.image_threshold)
        panels[0, column].yaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0, column].set_title(one.label)
        panels[0, column].set_xlabel("image score")
        counts = [_merged(counts, 4) for counts in (one.normal, one.anomalous)]
        shares = [part / max(part.sum(), 1) for part in counts]
        _pair(panels[1, column], one.edges[::4], shares)
        _threshold(panels[1, column], one.pixel_threshold)
        panels[1, column].set_yscale("log")
        panels[1, column].set_xlabel("pixel score")
    panels[0, 0].set_ylabel("images")
    panels[1, 0].set_ylabel("share of the class's pixels (log)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    add_notes(figure, ["Dotted: threshold of the best F1 on the test set.", *notes])
    return figure


def _pair(axes: Axes, edges: np.ndarray, heights: Sequence[np.ndarray]) -> None:
    """Draw two overlaid histograms that differ in colour, edge and hatch."""
    styles = ((NORMAL, "", "normal"), (ANOMALOUS, "////", "anomalous"))
    for (colour, hatch, name), height in zip(styles, heights, strict=True):
        axes.stairs(height, edges, fill=True, facecolor=colour, alpha=0.35, edgecolor=colour, hatch=hatch, label=name)
        axes.stairs(height, edges, color=colour, linewidth=1.0)


def _threshold(axes: Axes, value: float) -> None:
    if np.isfinite(value):
        axes.axvline(value, color="#24292f", linestyle=":", linewidth=1.2)


def _merged(counts: np.ndarray, by: int) -> np.ndarray:
    return counts.reshape(-1, by).sum(axis=1)
