"""ROC, precision-recall and per-region-overlap curves of a category; a line per experiment."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sanflow.data.index import Index
from sanflow.evaluation.metric_table import AUPRO_LIMIT
from sanflow.report.figures.inputs import first_seeds
from sanflow.report.figures.style import add_notes, full_width, is_narrow, looks, new_figure
from sanflow.report.runs import Run, notes_of, read_curves

# (archive name, title, x, y, metric whose value is written into the panel)
PANELS = (
    ("image_roc", "Image ROC", "false-positive rate", "true-positive rate", "image_auroc"),
    ("image_pr", "Image precision-recall", "recall", "precision", "image_ap"),
    None,
    ("pixel_roc", "Pixel ROC", "false-positive rate", "true-positive rate", "pixel_auroc"),
    ("pixel_pr", "Pixel precision-recall", "recall", "precision", "pixel_ap"),
    ("pixel_pro", "Per-region overlap", "false-positive rate", "mean overlap of regions", "aupro"),
)


def draw(runs: Sequence[Run], index: Index) -> Figure:
    """Draw the curves of a category."""
    shown = first_seeds(runs)
    curves = {label: read_curves(run) for label, run in shown.items()}
    return curves_of_category(curves, {label: run.metrics for label, run in shown.items()}, notes_of(runs))


def curves_of_category(
    curves: Mapping[str, Mapping[str, np.ndarray]], metrics: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()
) -> Figure:
    """Draw the curves of a category.

    Arguments:
        curves: Experiment -> content of curves.npz.
        metrics: Experiment -> content of metrics.json.
        notes: Small print.
    """
    styles = looks(curves)
    rows, columns = (3, 2) if is_narrow() else (2, 3)
    figure = new_figure(full_width(), full_width() / columns * rows)
    for axes, panel in zip(figure.subplots(rows, columns).flat, PANELS, strict=True):
        if panel is None:
            _legend(axes, styles)
            continue
        name, title, x_label, y_label, metric = panel
        areas = []
        for label, own in curves.items():
            x, y = own[f"{name}_x"], own[f"{name}_y"]
            style = {key: styles[label][key] for key in ("color", "linestyle")}
            axes.plot(x, y, **style)
            areas.append(100 * float(metrics[label].get(metric, math.nan)))  # without masks there are no pixel metrics
        lines = ["n/a" if math.isnan(area) else f"{area:.2f}" for area in areas]
        axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        if name == "pixel_pro":
            axes.set_xlim(-0.006, AUPRO_LIMIT)
        if name.endswith("roc"):
            axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=0.7)
        if name.endswith("pr"):
            # A good curve leaves the lower left corner free, a poor one the upper right.
            poor = max(areas) < 50
            _areas(axes, lines, list(styles.values()), right=poor, low=not poor)
        else:
            _areas(axes, lines, list(styles.values()), right=True, low=True)
    explained = f"Numbers: area under the curve in percent (AUPRO: up to a false-positive rate of {AUPRO_LIMIT})."
    add_notes(figure, [explained, *notes])
    return figure


def _legend(axes: Axes, styles: Mapping[str, Mapping[str, Any]]) -> None:
    axes.axis("off")
    for label, style in styles.items():
        axes.plot([], [], color=style["color"], linestyle=style["linestyle"], label=label)
    axes.legend(loc="center", title="Experiments", handlelength=3)


def _areas(axes: Axes, texts: Sequence[str], styles: Sequence[Mapping[str, Any]], *, right: bool, low: bool) -> None:
    """Print the areas in the colours of their lines, in the corner that curves leave free."""
    for number, (text, style) in enumerate(zip(texts, styles, strict=True)):
        height = 0.06 + 0.09 * (len(texts) - 1 - number) if low else 0.9 - 0.09 * number
        axes.text(
            0.97 if right else 0.05,
            height,
            text,
            transform=axes.transAxes,
            ha="right" if right else "left",
            color=style["color"],
            fontsize=7.5,
            fontweight="bold",
        )
