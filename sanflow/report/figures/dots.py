"""Draw one metric as rows of dots: a row per category, a dot per method; published values in a separate panel."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sanflow.evaluation.headline import applies
from sanflow.evaluation.metric_table import METRICS
from sanflow.report.figures.style import MARKERS, add_notes, full_width, is_narrow, looks, new_figure, plain
from sanflow.report.published import METHODS, best_columns, covers
from sanflow.report.runs import Run, notes_of
from sanflow.report.summary import Summary

MEAN = "mean"
INTERVAL_NOTE = (
    "Line: standard deviation over seeds; of a single seed, the 95 % bootstrap interval over its test images. "
    "The mean of one seed has none."
)
PUBLISHED_NOTE = (
    "Published: printed elsewhere, not measured here; the tables name the sources. Grey line: the best measured value."
)
PUBLISHED_MARKERS = dict(zip(METHODS, MARKERS, strict=True))


@dataclasses.dataclass(frozen=True)
class Dot:
    """One measured value with its interval, as fractions; the ends are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Group:
    """One data set in one metric.

    Arguments:
        dataset: Its name.
        rows: Its categories, with "mean" as the last where there are several.
        measured: Label of an experiment -> a dot per row; its value is NaN where missing.
        published: Method -> a value per row as a fraction; None where not published.
    """

    dataset: str
    rows: Sequence[str]
    measured: Mapping[str, Sequence[Dot]]
    published: Mapping[str, Sequence[float | None]]


def draw(runs: Sequence[Run], metric: str) -> Figure:
    """Draw one metric over all data sets and categories.

    Arguments:
        runs: All runs of the benchmark.
        metric: A key of metrics.json.
    """
    summary = Summary(runs)
    groups = [_group(summary, dataset, metric) for dataset in summary.datasets if applies(metric, dataset)]
    return rows_of_dots(METRICS[metric].title, groups, notes_of(summary.runs))


def _group(summary: Summary, dataset: str, metric: str) -> Group:
    categories, experiments = summary.categories(dataset), summary.experiments(dataset)
    measured = {}
    for experiment in experiments:
        dots = [_dot(summary, dataset, category, experiment, metric) for category in categories]
        mean = summary.mean(dataset, experiment, metric)
        # A mean over fewer categories than its neighbours' would mislead.
        whole = mean.categories == len(categories)
        dots.append(Dot(mean.value, mean.value - mean.std, mean.value + mean.std) if whole else Dot(math.nan))
        measured[plain(summary.labels[experiment])] = dots
    published = {
        column.method: [
            *(column.values.get(category) for category in categories),
            column.mean(categories, whole=covers(categories, dataset)),
        ]
        for column in best_columns(dataset, metric)
    }
    rows = [*map(plain, categories), MEAN]
    if len(categories) == 1:  # the mean would be the same
        rows = rows[:1]
    return Group(plain(dataset), rows, measured, published)


def _dot(summary: Summary, dataset: str, category: str, experiment: str, metric: str) -> Dot:
    cell = summary.cell(dataset, category, experiment, metric)
    if cell is None:
        return Dot(math.nan)
    value, std = cell
    runs = summary.runs_of(dataset, category, experiment)
    if len(runs) == 1:
        return Dot(value, *runs[0].metrics.get("intervals", {}).get(metric, ()))
    return Dot(value, value - std, value + std)


def rows_of_dots(title: str, groups: Sequence[Group], notes: Sequence[str] = ()) -> Figure:
    """Draw one metric: per data set a panel of measured dots and, where there are any, one of published dots.

    Arguments:
        title: Name of the metric.
        groups: One per data set.
        notes: Small print.
    """
    legends = [max(len(group.measured), len(group.published)) / (1 if is_narrow() else 3) for group in groups]
    heights = [
        len(group.rows) * _row_height(group) + 0.9 + 0.16 * math.ceil(lines)
        for group, lines in zip(groups, legends, strict=True)
    ]
    below = (0.5 if is_narrow() else 0.25) * (2 + len(notes))  # inches for the small print
    beside = any(group.published for group in groups)
    figure = new_figure(full_width() if beside or is_narrow() else 0.75 * full_width(), sum(heights) + below)
    panels = figure.subplots(len(groups), 2 if beside else 1, squeeze=False, height_ratios=heights)
    styles = looks(dict.fromkeys(label for group in groups for label in group.measured))
    for own, group in zip(panels, groups, strict=True):
        limits = _limits(group)
        for axes in own:
            _frame(axes, group, f"{title} [%]", limits)
        own[0].set_yticks(range(len(group.rows)), [name.replace("_", " ") for name in group.rows])
        own[0].set_title(f"{group.dataset}: measured" if len(groups) > 1 or beside else group.dataset)
        for number, (label, dots) in enumerate(group.measured.items()):
            _measured(own[0], label, dots[: len(group.rows)], _place(number, len(group.measured)), styles[label])
        _legend(own[0], len(group.measured))
        if group.published:
            own[1].set_title("published elsewhere")
            _published(own[1], group)
            _legend(own[1], len(group.published))
        elif beside:
            own[1].axis("off")
    add_notes(figure, [INTERVAL_NOTE, *([PUBLISHED_NOTE] if beside else []), *notes])
    return figure


def _row_height(group: Group) -> float:
    """Return the inches per row: each method has its own line, so that no dot covers another."""
    return 0.07 + 0.035 * max(len(group.measured), len(group.published), 2)


def _place(number: int, count: int) -> float:
    """Return the place of a method's line within a row, from -0.5 to 0.5."""
    return 0.8 * ((number + 0.5) / count - 0.5)


def _limits(group: Group) -> tuple[float, float]:
    """Choose the ends of the axis in percent, the same for measured and published values."""
    n_rows = len(group.rows)
    dots = [dot for own in group.measured.values() for dot in own[:n_rows]]
    values = [number for dot in dots for number in (dot.value, dot.low, dot.high) if not math.isnan(number)]
    values += [value for own in group.published.values() for value in own[:n_rows] if value is not None]
    low = 100 * min(values, default=0.0)
    reach = max(100.0 - low, 1.0)
    return max(0.0, low - 0.04 * reach) if low > 0.0 else -0.04 * reach, 100.0 + 0.03 * reach


def _frame(axes: Axes, group: Group, label: str, limits: tuple[float, float]) -> None:
    n_rows = len(group.rows)
    axes.set_xlim(limits)
    axes.set_ylim(n_rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#d0d7de", linewidth=0.5)
    axes.set_axisbelow(True)
    for row in range(0, n_rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f5f7", zorder=0, linewidth=0)
    if group.rows[-1] == MEAN:
        axes.axhline(n_rows - 1.5, color="#57606a", linewidth=0.8)


def _measured(axes: Axes, label: str, dots: Sequence[Dot], place: float, style: Mapping[str, Any]) -> None:
    axes.errorbar(
        [100 * dot.value for dot in dots],
        [row + place for row in range(len(dots))],
        # Intervals of the bootstrap need not hold the value; a line cannot be shorter than nothing.
        xerr=[
            [max(0.0, 100 * (dot.value - dot.low)) for dot in dots],
            [max(0.0, 100 * (min(dot.high, 1.0) - dot.value)) for dot in dots],
        ],
        fmt=style["marker"],
        color=style["color"],
        markersize=3.6,
        markeredgewidth=0,
        elinewidth=0.9,
        label=label,
    )


def _published(axes: Axes, group: Group) -> None:
    n_rows = len(group.rows)
    for row in range(n_rows):
        known = [dots[row].value for dots in group.measured.values() if not math.isnan(dots[row].value)]
        if known:
            axes.plot([100 * max(known)] * 2, [row - 0.42, row + 0.42], color="#8c959f", linewidth=1.0)
    for number, (method, values) in enumerate(group.published.items()):
        axes.plot(
            [math.nan if value is None else 100 * value for value in values[:n_rows]],
            [row + _place(number, len(group.published)) for row in range(n_rows)],
            PUBLISHED_MARKERS[method],
            markerfacecolor="white",
            markeredgecolor="#24292f",
            markeredgewidth=0.6,
            markersize=3.6,
            label=method,
        )


def _legend(axes: Axes, count: int) -> None:
    """Name the methods below a panel."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=4.5,  # below the axis's label, whatever the panel's height
        ncols=1 if is_narrow() else min(3, count),
        handlelength=1.2,
        columnspacing=1.0,
        fontsize=7,
    )
