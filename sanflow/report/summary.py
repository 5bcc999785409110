"""Means of a benchmark: over seeds for a cell, over categories for a row.

The mean over categories is the mean of the categories' own values; pixels of different categories are never pooled.
"""

import dataclasses
import math
from collections.abc import Sequence

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metrics.comparison import mean_and_std
from sanflow.report.runs import Run, in_order, labels_of, notes_of


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over categories.

    Arguments:
        value: As a fraction; NaN if no category has a value.
        std: Standard deviation over seeds of the seeds' means; NaN for one seed.
        categories: How many categories it is over.
        seeds: How many seeds it is over.
    """

    value: float
    std: float
    categories: int
    seeds: int


class Summary:
    """All runs of a benchmark, ready to be averaged.

    Arguments:
        runs: From `read_runs`; data sets, categories and experiments keep their order.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if run.epoch is None]
        self.kept = [run for run in runs if run.epoch is not None]
        self.labels = labels_of(self.runs)
        self.notes = notes_of(self.runs)
        self.datasets: list[str] = in_order(run.dataset for run in self.runs)
        self._by_key: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.runs:
            self._by_key.setdefault((run.dataset, run.category, run.experiment), []).append(run)

    def categories(self, dataset: str) -> list[str]:
        """List the categories of a data set that have runs."""
        return in_order(run.category for run in self.runs if run.dataset == dataset)

    def experiments(self, dataset: str | None = None) -> list[str]:
        """List the experiments that have runs, on one data set or on any."""
        return in_order(run.experiment for run in self.runs if dataset in (None, run.dataset))

    def runs_of(self, dataset: str, category: str, experiment: str) -> list[Run]:
        """Return the runs of one cell, one a seed."""
        return self._by_key.get((dataset, category, experiment), [])

    def cell(self, dataset: str, category: str, experiment: str, metric: str) -> tuple[float, float] | None:
        """Compute mean and standard deviation over seeds; None if no run has this metric."""
        values = [
            float(run.metrics[metric]) for run in self.runs_of(dataset, category, experiment) if metric in run.metrics
        ]
        return mean_and_std(values) if values else None

    def values(self, dataset: str, experiment: str, metric: str) -> dict[str, float]:
        """Return category -> mean over seeds, where that is a number."""
        cells = {name: self.cell(dataset, name, experiment, metric) for name in self.categories(dataset)}
        return {name: cell[0] for name, cell in cells.items() if cell is not None and not math.isnan(cell[0])}

    def part(self, key: str, name: str) -> "Summary":
        """Return the summary of one part of the test sets, of the runs that have it.

        Arguments:
            key: `by_group` or `by_kind`, see docs/outputs.md.
            name: Of the part.
        """
        return Summary(
            [
                dataclasses.replace(
                    run,
                    metrics={
                        "provenance": run.metrics.get("provenance", {}),
                        **{
                            item: math.nan if value is None else value for item, value in run.metrics[key][name].items()
                        },
                    },
                )
                for run in self.runs
                if name in run.metrics.get(key, {})
            ]
        )

    def by_seed(self, dataset: str, category: str, experiment: str, metric: str) -> dict[str, float]:
        """Return seed -> value in one category, where that is a number."""
        runs = self.runs_of(dataset, category, experiment)
        found = {f"seed{run.seed}": float(run.metrics.get(metric, math.nan)) for run in runs}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def mean(self, dataset: str, experiment: str, metric: str) -> Mean:
        """Average over the categories that have a value, with the spread over the seeds that ran all of these."""
        values = self.values(dataset, experiment, metric)
        by_seed: dict[int, list[float]] = {}
        for category in values:
            for run in self.runs_of(dataset, category, experiment):
                by_seed.setdefault(run.seed, []).append(float(run.metrics.get(metric, math.nan)))
        whole = [mean_and_std(seed)[0] for seed in by_seed.values() if len(seed) == len(values)]
        return Mean(
            value=mean_and_std(values.values())[0],
            std=mean_and_std(whole)[1],
            categories=len(values),
            seeds=len(by_seed),
        )


def means_by_name(runs: Sequence[Run]) -> dict[str, float]:
    """Name the means of the headline metrics, as the tables show them, for a tracking server.

    Returns:
        `<experiment>/<metric>` -> mean over seeds, then categories; with `<data set>/` in front where there are
        several data sets. Means that could not be computed are left out.
    """
    summary = Summary(runs)
    means = {
        (dataset, experiment, metric): summary.mean(dataset, experiment, metric).value
        for dataset in summary.datasets
        for experiment in summary.experiments(dataset)
        for metric in headline_of(dataset)
    }
    first = 0 if len(summary.datasets) > 1 else 1
    return {"/".join(key[first:]): value for key, value in means.items() if not math.isnan(value)}
