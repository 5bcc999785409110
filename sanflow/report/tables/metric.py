"""One metric, per category x experiment, beside what was published for it.

`metric_table` shows all experiments side by side; `published_table` shows each experiment alone against the published
numbers, with the differences.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from sanflow.report.published import PublishedColumn, best_columns, covers
from sanflow.report.runs import METRIC_TITLES
from sanflow.report.tables.cells import (
    ORACLE_MARK,
    PUBLISHED_MARK,
    PUBLISHED_NOTE,
    Cell,
    Section,
    Table,
    percent,
    points,
    with_best,
    words,
)
from sanflow.report.tables.oracle import oracle_values
from sanflow.report.tables.summary import Summary

CAPTION = (
    "In percent, higher is better; last epoch, calibrated fusion, input resolution. "
    "Bold: the best experiment of the row."
)
ORACLE_NOTE = f"{ORACLE_MARK} Oracle epoch: chosen on the test set, an upper bound and not a result."
COLUMNS = ["dataset", "category", "origin", "method", "value", "std", "seeds", "low", "high", "source"]


class Sources:
    """Numbers the sources of published columns over the sections of one table."""

    def __init__(self) -> None:
        self._footnotes: list[str] = []

    def mark(self, column: PublishedColumn) -> str:
        """The mark of a column's source: † and its number."""
        if column.footnote() not in self._footnotes:
            self._footnotes.append(column.footnote())
        return f"{PUBLISHED_MARK}{self._footnotes.index(column.footnote()) + 1}"

    def notes(self) -> list[str]:
        """What italics mean, then one line per source; nothing if no column is published."""
        lines = [f"{PUBLISHED_MARK}{number} {text}" for number, text in enumerate(self._footnotes, 1)]
        return [PUBLISHED_NOTE, *lines] if lines else []


def metric_table(summary: Summary, metric: str) -> Table:
    """All experiments of a benchmark in one metric, published numbers beside them.

    Arguments:
        summary: The runs.
        metric: A key of metrics.json.
    """
    sources = Sources()
    sections, records, has_oracle, partial = [], [], False, False
    for dataset in summary.datasets:
        categories, experiments = summary.categories(dataset), summary.experiments(dataset)
        oracles = {name: oracle_values(summary, dataset, name, metric) for name in experiments}
        oracles = {name: values for name, values in oracles.items() if values}
        published = best_columns(dataset, metric)
        rows = []
        for category in categories:
            found = [summary.cell(dataset, category, name, metric) for name in experiments]
            cells = [percent(*cell) if cell else percent(None) for cell in found]
            rows.append(
                [
                    words(category),
                    *with_best(cells, [cell[0] if cell else None for cell in found]),
                    *(percent(values.get(category)) for values in oracles.values()),
                    *(percent(column.values.get(category), published=True) for column in published),
                ]
            )
        means = [summary.mean(dataset, name, metric) for name in experiments]
        full = max((mean.categories for mean in means), default=0)
        partial = partial or any(mean.categories < full for mean in means)
        cells = [_partial(percent(mean.value, mean.std), mean.categories, full) for mean in means]
        whole = covers(categories, dataset)
        rows.append(
            [
                words(f"mean of {full}"),
                *with_best(cells, [mean.value if mean.categories == full else None for mean in means]),
                *(percent(float(np.mean(list(values.values())))) for values in oracles.values()),
                *(percent(column.mean(categories, whole=whole), published=True) for column in published),
            ]
        )
        header = [
            "Category",
            *(summary.labels[name] for name in experiments),
            *(f"{summary.labels[name]}, oracle {ORACLE_MARK}" for name in oracles),
            *(f"{column.method} {sources.mark(column)}" for column in published),
        ]
        sections.append(Section(_heading(summary, dataset), header, rows, footer=1))
        records += _records(summary, dataset, metric, oracles, published)
        has_oracle = has_oracle or bool(oracles)
    notes = [
        *summary.notes,
        *([ORACLE_NOTE] if has_oracle else []),
        *(["A number in brackets after a mean says over how many categories it is, where some are missing."] * partial),
        *sources.notes(),
    ]
    return Table(metric, METRIC_TITLES[metric], CAPTION, sections, notes, pd.DataFrame(records, columns=COLUMNS))


def published_table(summary: Summary, metric: str) -> Table:
    """Each experiment beside the published numbers of a metric: value and difference in points."""
    sources = Sources()
    sections, records = [], []
    for dataset in summary.datasets:
        published = best_columns(dataset, metric)
        categories = summary.categories(dataset)
        whole = covers(categories, dataset)
        for experiment in summary.experiments(dataset) if published else []:
            rows = []
            for category in categories:
                cell = summary.cell(dataset, category, experiment, metric)
                ours = cell[0] if cell else math.nan
                theirs = [column.values.get(category) for column in published]
                rows.append([words(category), percent(*cell) if cell else percent(None), *_beside(ours, theirs)])
                records += _differences(dataset, category, experiment, ours, published, theirs)
            mean = summary.mean(dataset, experiment, metric)
            complete = mean.categories == len(categories)
            theirs = [column.mean(categories, whole=whole) if complete else None for column in published]
            mean_row = [
                words(f"mean of {mean.categories}"),
                percent(mean.value, mean.std),
                *_beside(mean.value, theirs),
            ]
            rows.append(mean_row)
            records += _differences(dataset, "mean", experiment, mean.value, published, theirs)
            header = [
                "Category",
                summary.labels[experiment],
                *(f"{column.method} {sources.mark(column)}" for column in published),
            ]
            sections.append(Section(f"{summary.labels[experiment]} on {dataset}", header, rows, footer=1))
    nothing = ["Nothing was published for these data sets in this metric, or we know of nothing."]
    columns = ["dataset", "category", "experiment", "value", "method", "published", "difference", "standing", "source"]
    return Table(
        name=f"published_{metric}",
        title=f"{METRIC_TITLES[metric]} beside published results",
        caption="In percent, higher is better; in brackets the difference, ours minus published, in percentage points.",
        sections=sections,
        notes=[*summary.notes, *sources.notes()] if sections else nothing,
        data=pd.DataFrame(records, columns=columns),
    )


def _heading(summary: Summary, dataset: str) -> str:
    return dataset if len(summary.datasets) > 1 else ""


def _partial(cell: Cell, n_categories: int, full: int) -> Cell:
    return cell if n_categories == full else Cell(f"{cell.text} [{n_categories}]")


def _beside(ours: float, theirs: list[float | None]) -> list[Cell]:
    cells = []
    for value in theirs:
        cell = percent(value, published=True)
        difference = points(ours - value) if value is not None else ""
        cells.append(Cell(f"{cell.text} ({difference})", published=True) if value is not None else cell)
    return cells


def _records(
    summary: Summary,
    dataset: str,
    metric: str,
    oracles: dict[str, dict[str, float]],
    published: list[PublishedColumn],
) -> list[dict[str, Any]]:
    """Rows of the CSV file, as in `COLUMNS`."""
    categories = summary.categories(dataset)
    records: list[dict[str, Any]] = []

    def add(category: str, origin: str, method: str, value: float | None, **more: Any) -> None:
        if value is not None:
            base = {"dataset": dataset, "category": category, "origin": origin, "method": method, "value": value}
            records.append(base | more)

    for experiment in summary.experiments(dataset):
        for category in categories:
            cell = summary.cell(dataset, category, experiment, metric)
            runs = summary.runs_of(dataset, category, experiment)
            interval = runs[0].metrics.get("intervals", {}).get(metric) if len(runs) == 1 else None
            low, high = interval or (None, None)
            if cell is not None:
                more = {"std": cell[1], "seeds": len(runs), "low": low, "high": high}
                add(category, "measured", experiment, cell[0], **more)
        mean = summary.mean(dataset, experiment, metric)
        add("mean", "measured", experiment, mean.value, std=mean.std, seeds=mean.seeds)
    for experiment, values in oracles.items():
        for category, value in values.items():
            add(category, "oracle epoch", experiment, value)
        add("mean", "oracle epoch", experiment, float(np.mean(list(values.values()))))
    for column in published:
        origin, note = "published", column.footnote()
        for category in categories:
            add(category, origin, column.method, column.values.get(category), source=note)
        add("mean", origin, column.method, column.mean(categories, whole=covers(categories, dataset)), source=note)
    return records


def _differences(
    dataset: str,
    category: str,
    experiment: str,
    ours: float,
    published: list[PublishedColumn],
    theirs: list[float | None],
) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset,
            "category": category,
            "experiment": experiment,
            "value": ours,
            "method": column.method,
            "published": value,
            "difference": ours - value,
            "standing": column.standing,
            "source": column.footnote(),
        }
        for column, value in zip(published, theirs, strict=True)
        if value is not None
    ]
