"""Show the headline metrics of parts of the test sets: images of one light, or one kind of anomaly."""

import pandas as pd

from sanflow.report.runs import in_order
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Section, Table, words
from sanflow.report.tables.overview import headline_means, headline_titles

# Key of metrics.json -> what its parts are.
PARTS = {"by_group": "images of one group", "by_kind": "one kind of anomaly and all good images"}
COLUMNS = ["dataset", "experiment", "parts", "part", "metric", "value", "std", "categories", "seeds"]


def groups_table(summary: Summary) -> Table:
    """Show the headline metrics of each part of the test sets that have parts, mean over categories."""
    sections, records = [], []
    for dataset in summary.datasets:
        runs = [run for run in summary.runs if run.dataset == dataset]
        for key, what in PARTS.items():
            rows = []
            for part in in_order(part for run in runs for part in run.metrics.get(key, {})):
                own = summary.part(key, part)
                means, cells = headline_means(own, dataset, own.experiments(dataset))
                for experiment, by_metric in means.items():
                    counts = next(iter(by_metric.values()))
                    names = (words(part), words(summary.labels[experiment]))
                    rows.append([*names, *cells[experiment], words(counts.categories)])
                    records += [
                        {
                            "dataset": dataset,
                            "experiment": experiment,
                            "parts": key,
                            "part": part,
                            "metric": metric,
                            "value": mean.value,
                            "std": mean.std,
                            "categories": mean.categories,
                            "seeds": mean.seeds,
                        }
                        for metric, mean in by_metric.items()
                    ]
            if rows:
                header = ["Part", "Experiment", *headline_titles(dataset), "Categories"]
                sections.append(Section(f"{dataset}: {what}", header, rows, text_columns=2))
    nothing = ["No data set of this benchmark has groups, such as lights, or kinds of anomalies that are shown alone."]
    return Table(
        name="groups",
        title="Parts of the test sets",
        caption="In percent, mean over the categories that have the part; ± is the standard deviation over seeds. "
        "Parts have different images, so compare experiments within a part. Bold: the best experiment of the part.",
        sections=sections,
        notes=summary.notes if sections else nothing,
        data=pd.DataFrame(records, columns=COLUMNS),
    )
