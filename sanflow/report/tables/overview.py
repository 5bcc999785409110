"""Make the first tables: the headline metrics, and the effect of fusion and resolution on them."""

from collections.abc import Sequence

import pandas as pd

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import HEADLINE, METRICS
from sanflow.report.summary import Mean, Summary
from sanflow.report.tables.cells import Cell, Section, Table, percent, with_best, words

# Prefix in metrics.json -> how the map was made.
PROTOCOLS = {
    "": "calibrated, input resolution",
    "testset_": "test-set, input resolution",
    "native_": "calibrated, native resolution",
    "testset_native_": "test-set, native resolution",
}


def headline_means(
    summary: Summary, dataset: str, experiments: Sequence[str]
) -> tuple[dict[str, dict[str, Mean]], dict[str, list[Cell]]]:
    """Compute the headline metrics of experiments, mean over categories.

    Returns:
        Experiment -> metric -> mean; and experiment -> its cells, the best of these experiments marked.
    """
    metrics = headline_of(dataset)
    means = {name: {metric: summary.mean(dataset, name, metric) for metric in metrics} for name in experiments}
    columns = []
    for metric in metrics:
        values = [means[name][metric] for name in experiments]
        columns.append(with_best([percent(mean.value, mean.std) for mean in values], [mean.value for mean in values]))
    return means, {name: [column[number] for column in columns] for number, name in enumerate(experiments)}


def headline_titles(dataset: str) -> list[str]:
    """Return the titles of a data set's headline metrics."""
    return [METRICS[metric].title for metric in headline_of(dataset)]


def overview_table(summary: Summary) -> Table:
    """Show the headline metrics of each experiment, mean over categories."""
    sections, records = [], []
    for dataset in summary.datasets:
        experiments = summary.experiments(dataset)
        means, cells = headline_means(summary, dataset, experiments)
        rows = []
        for name in experiments:
            counts = means[name][HEADLINE[0]]
            rows.append([words(summary.labels[name]), *cells[name], words(counts.categories), words(counts.seeds)])
            for metric, mean in means[name].items():
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
        header = ["Experiment", *headline_titles(dataset), "Categories", "Seeds"]
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
    """Show the headline metrics under each fusion and resolution that was evaluated."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            for prefix, protocol in PROTOCOLS.items():
                means = {metric: summary.mean(dataset, experiment, prefix + metric) for metric in headline_of(dataset)}
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
        header = ["Experiment", "Fusion and resolution", *headline_titles(dataset)]
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
