"""Make tables of experiments by their settings: encoder, ablation, cost."""

import math
from typing import Any

import pandas as pd

from sanflow.evaluation.metric_table import HEADLINE, METRICS
from sanflow.evaluation.metrics.comparison import mean_and_std
from sanflow.report.runs import Run, in_order
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Cell, Section, Table, words
from sanflow.report.tables.overview import headline_means, headline_titles

# Fields that the ablation always shows; others are shown where experiments differ in them.
ABLATED = ("base", "synthetic_anomalies", "abnormal_mean")
NOT_ABLATED = {"label", "datasets", "maps", "official_weights", "evaluate_at", "keep_every", "method", "source"}
COSTS = {
    # key in metrics.json: (column, factor, decimals)
    "training_seconds": ("Training [min]", 1 / 60, 1),
    "training_images_per_second": ("Training [images/s]", 1.0, 1),
    "scoring_images_per_second": ("Scoring [images/s]", 1.0, 1),
    "peak_memory_bytes": ("Peak memory [GB]", 1e-9, 2),
    "parameters": ("Parameters [M]", 1e-6, 2),
    "checkpoint_bytes": ("Checkpoint [MB]", 1e-6, 1),
}


def encoders_table(summary: Summary) -> Table:
    """Show experiments ordered by encoder, with what identifies it."""

    def describe(run: Run) -> dict[str, Any]:
        identity = run.metrics.get("provenance", {}).get("encoder") or {}
        settings = run.settings
        return {
            "encoder": settings.get("encoder") or identity.get("name"),
            "weights": _short(settings.get("weights")),
            "padding": identity.get("padding") or settings.get("padding"),
            "input_size": _size(run),
        }

    names = {"encoder": "Encoder", "weights": "Weights", "padding": "Padding", "input_size": "Input"}
    return _described(
        summary,
        "encoders",
        "Encoders",
        "In percent, mean over categories. Bold: the best experiment of the data set.",
        {name: describe for name in summary.experiments() if _runs(summary, name)[0].settings.get("encoder")},
        names,
    )


def ablation_table(summary: Summary) -> Table:
    """Show the experiments that are SANFlow with changed settings, by these settings."""
    family = [
        name
        for name in summary.experiments()
        if "synthetic_anomalies" in _runs(summary, name)[0].settings  # a key of SANFlow's family alone
    ]
    settings = {name: _runs(summary, name)[0].settings for name in family}
    fields = in_order(field for values in settings.values() for field in values if field not in NOT_ABLATED)
    differing = [
        field
        for field in fields
        if field not in ABLATED and len({repr(values.get(field)) for values in settings.values()}) > 1
    ]
    names = {field: field.replace("_", " ") for field in (*ABLATED, *differing)}

    def describe(run: Run) -> dict[str, Any]:
        return {field: _plain(run.settings.get(field)) for field in names}

    return _described(
        summary,
        "ablation",
        "Ablation",
        "In percent, mean over categories. Settings in which the experiments of SANFlow's family differ. Bold: the "
        "best experiment of the data set.",
        dict.fromkeys(family, describe),
        names,
    )


def cost_table(summary: Summary) -> Table:
    """Show the cost of each experiment: mean over its runs."""
    rows, records = [], []
    for experiment in summary.experiments():
        runs = _runs(summary, experiment)
        values = {key: _mean_cost(runs, key) for key in COSTS}
        provenance = runs[0].metrics.get("provenance", {})
        devices = [run.metrics.get("cost", {}).get("device") or provenance.get("device") for run in runs]
        device = ", ".join(in_order(str(name) for name in devices if name))
        cells = [_number(values[key] * factor, decimals) for key, (_, factor, decimals) in COSTS.items()]
        rows.append([words(summary.labels[experiment]), words(device or None), *cells, words(len(runs))])
        records.append({"experiment": experiment, "device": device, **values, "runs": len(runs)})
    header = ["Experiment", "Device", *(name for name, _, _ in COSTS.values()), "Runs"]
    return Table(
        name="cost",
        title="Cost",
        caption="Mean over the runs (category x seed) of an experiment. Training is the whole of one run; images per "
        "second include the encoder; parameters are the trained ones.",
        sections=[Section("", header, rows, text_columns=2)],
        notes=summary.notes,
        data=pd.DataFrame(records),
    )


def _described(
    summary: Summary, name: str, title: str, caption: str, describe: dict[str, Any], columns: dict[str, str]
) -> Table:
    """Make rows of description and headline metrics per data set and experiment."""
    sections, records = [], []
    for dataset in summary.datasets:
        experiments = [key for key in summary.experiments(dataset) if key in describe]
        means, cells = headline_means(summary, dataset, experiments)
        rows = []
        for key in experiments:
            runs = [run for run in _runs(summary, key) if run.dataset == dataset]
            described = [describe[key](run) for run in runs]
            # A field that differs between categories (input size) shows all its values.
            fields = {field: ", ".join(in_order(str(one[field]) for one in described)) for field in columns}
            rows.append([words(summary.labels[key]), *(words(fields[field]) for field in columns), *cells[key]])
            values_of = {metric: mean.value for metric, mean in means[key].items()}
            records.append({"dataset": dataset, "experiment": key, **fields, **values_of})
        if rows:
            rows.sort(key=lambda row: [cell.text for cell in row[1:2]])
            header = ["Experiment", *columns.values(), *headline_titles(dataset)]
            sections.append(Section(dataset, header, rows, text_columns=1 + len(columns)))
    nothing = ["No experiment of this benchmark belongs here."]
    measured = in_order([*HEADLINE, *(metric for record in records for metric in record if metric in METRICS)])
    data = pd.DataFrame(records, columns=["dataset", "experiment", *columns, *measured])
    return Table(name, title, caption, sections, summary.notes if sections else nothing, data)


def _runs(summary: Summary, experiment: str) -> list[Run]:
    return [run for run in summary.runs if run.experiment == experiment]


def _mean_cost(runs: list[Run], key: str) -> float:
    values = [run.metrics.get("cost", {}).get(key) for run in runs]
    return mean_and_std(float(value) for value in values if value is not None)[0]


def _number(value: float, decimals: int) -> Cell:
    return words(None) if math.isnan(value) else words(f"{value:.{decimals}f}")


def _plain(value: Any) -> str:
    return (
        {True: "yes", False: "no", None: "–"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )


def _short(weights: Any) -> str:
    text = str(weights) if weights is not None else "–"
    return text.rsplit("/", 1)[-1]


def _size(run: Run) -> str:
    size, tile = run.metrics.get("input_size"), run.settings.get("tile_size")
    text = f"{size[0]}" if size and size[0] == size[1] else " × ".join(map(str, size)) if size else "–"
    return f"{text} in tiles of {tile}" if tile else text
