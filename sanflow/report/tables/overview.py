"""The tables a reader looks at first: the headline metrics, and what fusion and resolution do to them."""

import pandas as pd

from sanflow.report.runs import HEADLINE, METRIC_TITLES
from sanflow.report.tables.cells import Section, Table, percent, with_best, words
from sanflow.report.tables.summary import Summary

# Prefix in metrics.json -> how the map was made.
PROTOCOLS = {
    "": "calibrated, input resolution",
    "testset_": "test-set, input resolution",
    "native_": "calibrated, native resolution",
    "testset_native_": "test-set, native resolution",
}


def overview_table(summary: Summary) -> Table:
    """The headline metrics of each experiment, mean over categories."""
    sections, records = [], []
    for dataset in summary.datasets:
        experiments = summary.experiments(dataset)
        means = {(name, metric): summary.mean(dataset, name, metric) for name in experiments for metric in HEADLINE}
        columns = []
        for metric in HEADLINE:
            values = [means[name, metric] for name in experiments]
            columns.append(
                with_best([percent(mean.value, mean.std) for mean in values], [mean.value for mean in values])
            )
        rows = []
        for number, name in enumerate(experiments):
            counts = means[name, HEADLINE[0]]
            cells = [column[number] for column in columns]
            rows.append([words(summary.labels[name]), *cells, words(counts.categories), words(counts.seeds)])
            for metric in HEADLINE:
                mean = means[name, metric]
                records.append(
                    {
                        "dataset": dataset,
                        "experiment": name,
                        "label": summary.labels[name],
                        "metric": metric,
                        "value": mean.value,
                        "std": mean.std,
                        "categories": mean.categories,
                        "seeds": mean.seeds,
                    }
                )
        header = ["Experiment", *(METRIC_TITLES[metric] for metric in HEADLINE), "Categories", "Seeds"]
        sections.append(Section(dataset, header, rows))
    return Table(
        name="overview",
        title="Headline metrics, mean over categories",
        caption="In percent, higher is better; last epoch, calibrated fusion, input resolution; ± is the standard "
        "deviation over seeds. Bold: the best experiment.",
        sections=sections,
        notes=summary.notes,
        data=pd.DataFrame(records),
    )


def protocol_table(summary: Summary) -> Table:
    """The headline metrics under each fusion and resolution that was evaluated."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            for prefix, protocol in PROTOCOLS.items():
                means = {metric: summary.mean(dataset, experiment, prefix + metric) for metric in HEADLINE}
                if not any(mean.categories for mean in means.values()):
                    continue
                cells = [percent(mean.value, mean.std) for mean in means.values()]
                rows.append([words(summary.labels[experiment]), words(protocol), *cells])
                records += [
                    {
                        "dataset": dataset,
                        "experiment": experiment,
                        "protocol": protocol,
                        "metric": metric,
                        "value": mean.value,
                        "std": mean.std,
                        "categories": mean.categories,
                    }
                    for metric, mean in means.items()
                ]
        header = ["Experiment", "Fusion and resolution", *(METRIC_TITLES[metric] for metric in HEADLINE)]
        sections.append(Section(dataset, header, rows, text_columns=2))
    return Table(
        name="protocols",
        title="Fusion and resolution",
        caption="In percent, mean over categories. Headline: calibrated fusion (the score of an image depends on it "
        "alone) at the input's resolution. Test-set fusion is the authors' (it sees all test images at once); native "
        "resolution measures against the ground truth as it was drawn.",
        sections=sections,
        notes=summary.notes,
        data=pd.DataFrame(records),
    )
