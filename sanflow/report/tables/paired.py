"""Compare pairs of experiments by their differences within each category or seed; n is always printed."""

import itertools
import math

import pandas as pd

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import METRICS
from sanflow.evaluation.metrics.comparison import compare_paired
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import MISSING, Section, Table, points, words


def paired_table(summary: Summary, fewest_pairs: int = 1) -> Table:
    """Compare each pair of experiments over what both have, in each headline metric.

    Arguments:
        summary: The runs.
        fewest_pairs: Comparisons of fewer pairs are left out; an interval needs two.
    """
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for second, first in itertools.combinations(summary.experiments(dataset), 2):
            for metric in headline_of(dataset):
                unit, reference, other = _pairs(summary, dataset, first, second, metric)
                if len(set(reference) & set(other)) < fewest_pairs:
                    continue
                found = compare_paired(reference, other)
                interval = MISSING if math.isnan(found.low) else f"{points(found.low)} … {points(found.high)}"
                rows.append(
                    [
                        words(f"{summary.labels[second]} − {summary.labels[first]}"),
                        words(METRICS[metric].title),
                        words(points(found.mean_difference)),
                        words(interval),
                        words(_p_value(found.t_p)),
                        words(_p_value(found.wilcoxon_p)),
                        words(f"{found.wins} / {found.ties} / {found.losses}"),
                        words(unit),
                        words(found.n),
                    ]
                )
                record = {"dataset": dataset, "first": first, "second": second, "metric": metric, "pairs": unit}
                records.append(record | found.to_dict() | {"left_out": " ".join(found.left_out)})
        header = ["Difference", "Metric", "Mean", "95 % interval", "p (t)", "p (Wilcoxon)", "+ / = / −", "Pairs", "n"]
        if rows:
            sections.append(Section(dataset, header, rows, text_columns=2))
    alone = ["No two experiments have enough in common to be compared."]
    return Table(
        name="paired",
        title="Paired comparison of experiments",
        caption="In percentage points, over the n categories that both have (mean over seeds), or, where both have "
        "only one category, the same, over its n seeds; paired t interval and test, Wilcoxon signed-rank test, pairs "
        "won / tied / lost. Not corrected for the number of comparisons; with few pairs no test shows much.",
        sections=sections,
        notes=summary.notes if sections else alone,
        data=pd.DataFrame(records),
    )


def _pairs(
    summary: Summary, dataset: str, first: str, second: str, metric: str
) -> tuple[str, dict[str, float], dict[str, float]]:
    """Find what is paired, with each experiment's values: categories, or seeds if both have the same one category.

    Seeds of one category show how much of a difference comes from random training, but nothing about other categories.
    """
    reference, other = (summary.values(dataset, experiment, metric) for experiment in (first, second))
    if set(reference) == set(other) and len(reference) == 1:
        (category,) = reference
        of_first, of_second = (summary.by_seed(dataset, category, name, metric) for name in (first, second))
        if len(set(of_first) & set(of_second)) > 1:
            return "seeds", of_first, of_second
    return "categories", reference, other


def _p_value(p: float) -> str:
    return MISSING if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
