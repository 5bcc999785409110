"""Bars of one metric per category, experiments side by side; published numbers as open markers, never as bars."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sanflow.report.figures.style import MARKERS, PAGE_WIDTH, add_notes, looks, new_figure

PUBLISHED_NOTE = "Open markers: published, not measured here; the tables name their sources."


@dataclasses.dataclass(frozen=True)
class Group:
    """One data set in one metric.

    Arguments:
        dataset: Its name.
        categories: Its categories, the last one may be "mean".
        measured: Experiment -> (mean, standard deviation) per category as fractions; NaN where missing.
        published: Method -> value per category as a fraction; None where not published.
    """

    dataset: str
    categories: Sequence[str]
    measured: Mapping[str, Sequence[tuple[float, float]]]
    published: Mapping[str, Sequence[float | None]]


def metric_bars(title: str, groups: Sequence[Group], notes: Sequence[str] = ()) -> Figure:
    """Draw one metric, a panel per data set.

    Arguments:
        title: Name of the metric.
        groups: One per data set.
        notes: Small print.
    """
    most = max(len(group.categories) for group in groups)
    figure = new_figure(max(PAGE_WIDTH, 0.62 * most), 3.2 * len(groups) + 0.2)
    labels = list(dict.fromkeys(label for group in groups for label in group.measured))
    styles = looks(labels)
    for axes, group in zip(figure.subplots(len(groups), 1, squeeze=False).flat, groups, strict=True):
        width = min(0.8 / len(group.measured), 0.3)
        places = np.arange(len(group.categories), dtype=float)
        for number, (label, values) in enumerate(group.measured.items()):
            mean, std = 100 * np.array(values, float).T
            axes.bar(
                places + (number - (len(group.measured) - 1) / 2) * width,
                mean,
                width * 0.94,
                yerr=np.where(np.isnan(std), 0, std) if np.isfinite(std).any() else None,
                error_kw={"linewidth": 0.7, "ecolor": "#57606a"},
                facecolor=styles[label]["color"],
                hatch=styles[label]["hatch"],
                edgecolor="white",
                linewidth=0.3,
                label=label,
            )
        for number, (method, theirs) in enumerate(group.published.items()):
            heights = [math.nan if value is None else 100 * value for value in theirs]
            marker = MARKERS[number % len(MARKERS)]
            # Side by side, each at its own place in the group, so that none hides another.
            spread = (number + 0.5) / len(group.published) - 0.5
            axes.plot(
                places + 0.84 * spread,
                heights,
                marker,
                mfc="white",
                mec="#24292f",
                mew=0.7,
                ms=3.8,
                label=f"{method} (published)",
            )
        _finish(axes, title, group)
    add_notes(figure, [*([PUBLISHED_NOTE] if any(group.published for group in groups) else []), *notes])
    return figure


def _finish(axes: Axes, title: str, group: Group) -> None:
    ours = [mean for cells in group.measured.values() for mean, _ in cells if not math.isnan(mean)]
    theirs = [value for column in group.published.values() for value in column if value is not None]
    lowest = 100 * min(ours + theirs, default=0.0)
    floor = max(0.0, 10 * math.floor((lowest - 5) / 10))
    rotated = len(group.categories) > 8
    axes.set_ylim(floor, 100.5)
    axes.set_xlim(-0.6, len(group.categories) - 0.4)
    axes.set_ylabel(f"{title} [%]")
    axes.set_title(f"{group.dataset} (axis starts at {floor:.0f} %)" if floor else group.dataset)
    names = [name.replace("_", " ") for name in group.categories]
    axes.set_xticks(range(len(names)), names, rotation=35 if rotated else 0, ha="right" if rotated else "center")
    axes.tick_params(axis="x", length=0)
    if "mean" in group.categories:
        axes.axvline(len(names) - 1.5, color="#8c959f", linewidth=0.7)
    handles, labels = axes.get_legend_handles_labels()
    n_markers = len(group.published)  # matplotlib lists lines before bars; measured ones come first here
    axes.legend(
        handles[n_markers:] + handles[:n_markers],
        labels[n_markers:] + labels[:n_markers],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        handlelength=1.6,
    )
