"""Show how much choosing the epoch on the test set would have gained; this is not a result."""

import math

import pandas as pd

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metrics.comparison import mean_and_std
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Section, Table, percent, points, words
from sanflow.report.tables.overview import headline_titles


def oracle_values(summary: Summary, dataset: str, experiment: str, metric: str) -> dict[str, float]:
    """Return category -> mean over seeds of the best epoch's value, among the kept epochs and the last.

    Empty if the experiment keeps no epochs. Each metric has its own best epoch, as in the releases that report it.
    """
    values: dict[str, float] = {}
    for category in summary.categories(dataset):
        best = []
        for run in summary.runs_of(dataset, category, experiment):
            key = (dataset, category, experiment, run.seed)
            kept = [
                float(other.metrics.get(metric, math.nan))
                for other in summary.kept
                if (other.dataset, other.category, other.experiment, other.seed) == key
            ]
            finite = [value for value in [*kept, float(run.metrics.get(metric, math.nan))] if not math.isnan(value)]
            if kept and finite:
                best.append(max(finite))
        if best:
            values[category] = mean_and_std(best)[0]
    return values


def oracle_table(summary: Summary) -> Table:
    """Show last epoch, oracle epoch and gain for the headline metrics, per data set and experiment."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            row = [words(dataset), words(summary.labels[experiment])]
            n_categories = 0
            for metric in headline_of(dataset):
                oracle = oracle_values(summary, dataset, experiment, metric)
                last = summary.values(dataset, experiment, metric)
                n_categories = max(n_categories, len(oracle))
                mean_last = mean_and_std(last[name] for name in oracle if name in last)[0]
                mean_oracle = mean_and_std(oracle.values())[0]
                row += [percent(mean_last), percent(mean_oracle), words(points(mean_oracle - mean_last))]
                records += [
                    {
                        "dataset": dataset,
                        "category": name,
                        "experiment": experiment,
                        "metric": metric,
                        "last_epoch": last.get(name, math.nan),
                        "oracle_epoch": value,
                    }
                    for name, value in oracle.items()
                ]
            if n_categories:
                rows.append([*row, words(n_categories)])
        if rows:
            names = [f"{title}{part}" for title in headline_titles(dataset) for part in ("", " oracle", " Δ")]
            heading = dataset if len(summary.datasets) > 1 else ""
            sections.append(Section(heading, ["Data set", "Experiment", *names, "n"], rows, text_columns=2))
    columns = ["dataset", "category", "experiment", "metric", "last_epoch", "oracle_epoch"]
    notes = list(summary.notes) if sections else ["No experiment keeps epochs: set `keep_every` to have this table."]
    return Table(
        name="oracle_epoch",
        title="Last epoch and oracle epoch",
        caption="In percent, mean over n categories. The oracle epoch is chosen on the test set, for each metric and "
        "category separately, among the kept epochs and the last: an upper bound, not a result.",
        sections=sections,
        notes=notes,
        data=pd.DataFrame(records, columns=columns),
    )
