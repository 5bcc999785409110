"""Make tables of one metric: category x experiment, beside published numbers.

`metric_table` shows all experiments side by side; `published_table` shows each experiment alone against the published
numbers, with the differences. Cells and the rows of the CSV file are made from the same numbers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sanflow.evaluation.headline import applies
from sanflow.evaluation.metric_table import METRICS
from sanflow.evaluation.metrics.comparison import mean_and_std
from sanflow.report.published import PublishedColumn, best_columns, covers
from sanflow.report.summary import Summary
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
from sanflow.report.tables.epoch import oracle_values

CAPTION = (
    "In percent, higher is better; the reported epoch (the last, unless validation chose it), calibrated fusion, input "
    "resolution. "
    "Bold: the best experiment of the row."
)
NATIVE = "the images' own resolution; each kind of anomaly with all good images, then the mean of the kinds"
ORACLE_NOTE = f"{ORACLE_MARK} Oracle epoch: chosen on the test set, an upper bound and not a result."
PARTIAL_NOTE = "A number in brackets after a mean is the number of its categories, where some are missing."
MEASURED, ORACLE, PUBLISHED = "measured", "oracle epoch", "published"
COLUMNS = ["dataset", "category", "origin", "method", "value", "std", "seeds", "categories", "low", "high", "source"]
DIFFERENCES = ["dataset", "category", "experiment", "value", "method", "published", "difference", "standing", "source"]
MEAN = "mean"


class Sources:
    """Numbers the sources of published columns over the sections of one table."""

    def __init__(self) -> None:
        self._footnotes: list[str] = []

    def mark(self, column: PublishedColumn) -> str:
        """Return the mark of a column's source: † and its number."""
        if column.footnote() not in self._footnotes:
            self._footnotes.append(column.footnote())
        return f"{PUBLISHED_MARK}{self._footnotes.index(column.footnote()) + 1}"

    def notes(self) -> list[str]:
        """Explain italics, then name one source per line; nothing if no column is published."""
        lines = [f"{PUBLISHED_MARK}{number} {text}" for number, text in enumerate(self._footnotes, 1)]
        return [PUBLISHED_NOTE, *lines] if lines else []


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of `metric_table`.

    Arguments:
        title: Its header.
        origin: What its numbers are, as the CSV file says it.
        method: Key of the experiment, or the published method.
        numbers: Category, or "mean", -> what `COLUMNS` says of its number; only where there is one.
    """

    title: str
    origin: str
    method: str
    numbers: Mapping[str, dict[str, Any]]

    def cell(self, category: str) -> Cell:
        """Return the number of a category as it is printed."""
        number = self.numbers.get(category, {})
        return percent(number.get("value"), number.get("std"), published=self.origin == PUBLISHED)


def metric_table(summary: Summary, metric: str) -> Table:
    """Show all experiments of a benchmark in one metric, with published numbers beside them.

    Arguments:
        summary: The runs.
        metric: A key of metrics.json.
    """
    sources = Sources()
    sections, records, notes = [], [], list(summary.notes)
    for dataset in summary.datasets:
        if not applies(metric, dataset):
            notes.append(f"{METRICS[metric].title} is not measured on {dataset}: docs/metrics.md says why.")
            continue
        measured = [_measured(summary, dataset, name, metric) for name in summary.experiments(dataset)]
        others = [*_oracles(summary, dataset, metric), *_published(summary, dataset, metric, sources)]
        columns = [*measured, *others]
        counts = [column.numbers[MEAN]["categories"] for column in measured]
        full = max(counts, default=0)
        rows = []
        for category in [*summary.categories(dataset), MEAN]:
            cells = [column.cell(category) for column in measured]
            values = [column.numbers.get(category, {}).get("value") for column in measured]
            if category == MEAN:  # a mean over fewer categories is marked and never the best
                cells = [_partial(cell, count, full) for cell, count in zip(cells, counts, strict=True)]
                values = [value if count == full else None for value, count in zip(values, counts, strict=True)]
            name = f"mean of {full}" if category == MEAN else category
            rows.append([words(name), *with_best(cells, values), *(column.cell(category) for column in others)])
        heading = dataset if len(summary.datasets) > 1 else ""
        sections.append(Section(heading, ["Category", *(column.title for column in columns)], rows, footer=1))
        records += [
            {"dataset": dataset, "category": category, "origin": column.origin, "method": column.method} | number
            for column in columns
            for category, number in column.numbers.items()
        ]
        if any(column.origin == ORACLE for column in others):
            notes.append(ORACLE_NOTE)
        if any(count < full for count in counts):
            notes.append(PARTIAL_NOTE)
    notes = [*dict.fromkeys(notes), *sources.notes()]
    caption = CAPTION.replace("input resolution", NATIVE) if METRICS[metric].level == "region" else CAPTION
    return Table(metric, METRICS[metric].title, caption, sections, notes, pd.DataFrame(records, columns=COLUMNS))


def _measured(summary: Summary, dataset: str, experiment: str, metric: str) -> Column:
    numbers: dict[str, dict[str, Any]] = {}
    for category in summary.categories(dataset):
        cell = summary.cell(dataset, category, experiment, metric)
        if cell is not None:
            runs = summary.runs_of(dataset, category, experiment)
            interval = runs[0].metrics.get("intervals", {}).get(metric) if len(runs) == 1 else None
            low, high = interval or (None, None)
            numbers[category] = {"value": cell[0], "std": cell[1], "seeds": len(runs), "low": low, "high": high}
    mean = summary.mean(dataset, experiment, metric)
    numbers[MEAN] = {"value": mean.value, "std": mean.std, "seeds": mean.seeds, "categories": mean.categories}
    return Column(summary.labels[experiment], MEASURED, experiment, numbers)


def _oracles(summary: Summary, dataset: str, metric: str) -> list[Column]:
    columns = []
    for experiment in summary.experiments(dataset):
        values = oracle_values(summary, dataset, experiment, metric)
        if values:
            values[MEAN] = mean_and_std(values.values())[0]
            numbers = {category: {"value": value} for category, value in values.items()}
            columns.append(Column(f"{summary.labels[experiment]}, oracle {ORACLE_MARK}", ORACLE, experiment, numbers))
    return columns


def _published(summary: Summary, dataset: str, metric: str, sources: Sources) -> list[Column]:
    categories = summary.categories(dataset)
    columns = []
    for column in best_columns(dataset, metric):
        values = {category: column.values.get(category) for category in categories}
        values[MEAN] = column.mean(categories, whole=covers(categories, dataset))
        numbers = {
            category: {"value": value, "source": column.footnote()}
            for category, value in values.items()
            if value is not None
        }
        columns.append(Column(f"{column.method} {sources.mark(column)}", PUBLISHED, column.method, numbers))
    return columns


def published_table(summary: Summary, metric: str) -> Table:
    """Show each experiment beside the published numbers of a metric: value and difference in points."""
    sources = Sources()
    sections, records = [], []
    for dataset in summary.datasets:
        published = best_columns(dataset, metric)
        categories = summary.categories(dataset)
        whole = covers(categories, dataset)
        for experiment in summary.experiments(dataset) if published else []:
            label = summary.labels[experiment]
            rows = []
            for category in [*categories, MEAN]:
                if category == MEAN:
                    mean = summary.mean(dataset, experiment, metric)
                    name, ours = f"mean of {mean.categories}", (mean.value, mean.std)
                    complete = mean.categories == len(categories)
                    theirs = [column.mean(categories, whole=whole) if complete else None for column in published]
                else:
                    name, cell = category, summary.cell(dataset, category, experiment, metric)
                    ours = cell or (math.nan, math.nan)
                    theirs = [column.values.get(category) for column in published]
                row = [
                    {
                        "dataset": dataset,
                        "category": category,
                        "experiment": experiment,
                        "value": ours[0],
                        "method": column.method,
                        "published": value,
                        "difference": None if value is None else ours[0] - value,
                        "standing": column.standing,
                        "source": column.footnote(),
                    }
                    for column, value in zip(published, theirs, strict=True)
                ]
                measured = percent(None) if category != MEAN and cell is None else percent(*ours)
                rows.append([words(name), measured, *map(_beside, row)])
                records += [record for record in row if record["published"] is not None]
            header = ["Category", label, *(f"{column.method} {sources.mark(column)}" for column in published)]
            sections.append(Section(f"{label} on {dataset}", header, rows, footer=1))
    nothing = ["No published numbers are known for these data sets in this metric."]
    return Table(
        name=f"published_{metric}",
        title=f"{METRICS[metric].title} beside published results",
        caption="In percent, higher is better; in brackets the difference, ours minus published, in percentage points.",
        sections=sections,
        notes=[*summary.notes, *sources.notes()] if sections else nothing,
        data=pd.DataFrame(records, columns=DIFFERENCES),
    )


def _partial(cell: Cell, n_categories: int, full: int) -> Cell:
    return cell if n_categories == full else Cell(f"{cell.text} [{n_categories}]")


def _beside(record: Mapping[str, Any]) -> Cell:
    """Format a published number with its difference from ours."""
    cell = percent(record["published"], published=True)
    if record["published"] is None:
        return cell
    return Cell(f"{cell.text} ({points(record['difference'])})", published=True)
