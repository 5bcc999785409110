"""Is one experiment better than another? Their differences within each category, with n always printed."""

import itertools
import math

import pandas as pd

from sanflow.metrics import compare_paired
from sanflow.runs import HEADLINE, METRIC_TITLES
from sanflow.tables.cells import MISSING, Section, Table, points, words
from sanflow.tables.summary import Summary


def paired_table(summary: Summary) -> Table:
    """Each pair of experiments, compared over the categories that both have, in each headline metric."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for second, first in itertools.combinations(summary.experiments(dataset), 2):
            for metric in HEADLINE:
                reference = summary.values(dataset, first, metric)
                other = summary.values(dataset, second, metric)
                if not set(reference) & set(other):
                    continue
                found = compare_paired(reference, other)
                interval = MISSING if math.isnan(found.low) else f"{points(found.low)} … {points(found.high)}"
                rows.append(
                    [
                        words(f"{summary.labels[second]} − {summary.labels[first]}"),
                        words(METRIC_TITLES[metric]),
                        words(points(found.mean_difference)),
                        words(interval),
                        words(_p_value(found.t_p)),
                        words(_p_value(found.wilcoxon_p)),
                        words(f"{found.wins} / {found.ties} / {found.losses}"),
                        words(found.n),
                    ]
                )
                record = {"dataset": dataset, "first": first, "second": second, "metric": metric} | found.to_dict()
                records.append(record | {"left_out": " ".join(found.left_out)})
        header = ["Difference", "Metric", "Mean", "95 % interval", "p (t)", "p (Wilcoxon)", "+ / = / −", "n"]
        if rows:
            sections.append(Section(dataset, header, rows, text_columns=2))
    alone = ["There is only one experiment: nothing to compare."]
    return Table(
        name="paired",
        title="Paired comparison of experiments",
        caption="In percentage points, over the n categories that both have (mean over seeds); paired t interval and "
        "test, Wilcoxon signed-rank test, categories won / tied / lost. Not corrected for the number of comparisons; "
        "with few categories no test can say much.",
        sections=sections,
        notes=summary.notes if sections else alone,
        data=pd.DataFrame(records),
    )


def _p_value(p: float) -> str:
    return MISSING if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
