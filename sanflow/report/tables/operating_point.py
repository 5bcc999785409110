"""Compare the rate of false alarms expected from held-out good parts with that on the test set."""

from typing import Any

import pandas as pd

from sanflow.report.summary import Summary
from sanflow.report.tables.cells import MISSING, Cell, Section, Table, words

COLUMNS = (
    *("dataset", "category", "experiment", "seed", "level", "held_out", "threshold"),
    *("expected_rate", "expected_low", "expected_high"),
    *("false_alarm_rate", "false_alarm_low", "false_alarm_high"),
    *("detection_rate", "detection_low", "detection_high"),
)


def operating_point_table(summary: Summary) -> Table:
    """Build a section for each data set, with a row for each run and level."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            for category in summary.categories(dataset):
                for run in summary.runs_of(dataset, category, experiment):
                    for point in run.metrics.get("operating_point", []):
                        record = {
                            **{"dataset": dataset, "category": category, "experiment": experiment, "seed": run.seed},
                            **{name: point[name] for name in ("level", "held_out", "threshold")},
                            **_flat(point, "expected"),
                            **_flat(point, "false_alarm"),
                            **_flat(point, "detection"),
                        }
                        records.append(record)
                        rows.append(
                            [
                                *(words(category), words(summary.labels[experiment]), words(run.seed)),
                                *(words(f"{100 * point['level']:g}"), words(point["held_out"])),
                                *(_rate(record, name) for name in ("expected", "false_alarm", "detection")),
                            ]
                        )
        if rows:
            header = ["Category", "Experiment", "Seed", "Level", "Held out", "Expected", "False alarms", "Detections"]
            sections.append(Section(str(words(dataset).text), header, rows, text_columns=2))
    notes = list(summary.notes) if sections else ["No detector holds good parts out: set `calibration_fraction`."]
    return Table(
        name="operating_point",
        title="Threshold without labels",
        caption="Rates in percent, with 95 % intervals. An image is called anomalous where its p-value, from good "
        "parts that the fit did not see, is at most the level. Expected: the rate of false alarms on average over "
        "held-out sets, and its interval for one set of this size, if test images are exchangeable with held-out ones.",
        sections=sections,
        notes=notes,
        data=pd.DataFrame(records, columns=list(COLUMNS)),
    )


def _flat(point: dict[str, Any], name: str) -> dict[str, Any]:
    low, high = point[f"{name}_interval"] or (None, None)
    return {f"{name}_rate": point[f"{name}_rate"], f"{name}_low": low, f"{name}_high": high}


def _rate(record: dict[str, Any], name: str) -> Cell:
    rate, low, high = (record[f"{name}_{part}"] for part in ("rate", "low", "high"))
    return words(MISSING if rate is None else f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
