"""Show every run by itself, each metric with its interval over test images."""

import pandas as pd

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import METRICS
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Cell, Section, Table, percent, words

BESIDE_HEADLINE = ("pixel_ap", "aupimo")


def intervals_table(summary: Summary) -> Table:
    """Build a section for each data set, with a row for each run."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows, shown = [], (*headline_of(dataset), *BESIDE_HEADLINE)
        for category in summary.categories(dataset):
            for experiment in summary.experiments(dataset):
                for run in summary.runs_of(dataset, category, experiment):
                    cells = []
                    for metric in shown:
                        value = run.metrics.get(metric)
                        low, high = run.metrics.get("intervals", {}).get(metric) or (None, None)
                        cells.append(_cell(value, low, high))
                        records.append(
                            {
                                **{"dataset": dataset, "category": category, "experiment": experiment},
                                **{"seed": run.seed, "metric": metric, "value": value, "low": low, "high": high},
                            }
                        )
                    rows.append([words(category), words(summary.labels[experiment]), words(run.seed), *cells])
        header = ["Category", "Experiment", "Seed", *(METRICS[metric].title for metric in shown)]
        sections.append(Section(dataset, header, rows, text_columns=2))
    return Table(
        name="intervals",
        title="Every run with its intervals",
        caption="In percent, higher is better; in brackets the 95 % bootstrap interval over test images: how much the "
        "number would differ on other images of the same category, not after another training.",
        sections=sections,
        notes=summary.notes,
        data=pd.DataFrame(records),
    )


def _cell(value: float | None, low: float | None, high: float | None) -> Cell:
    cell = percent(value)
    return cell if low is None or high is None else Cell(f"{cell.text} [{100 * low:.2f}, {100 * high:.2f}]")
