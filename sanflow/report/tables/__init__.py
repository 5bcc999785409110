"""Make tables from metrics.json files as CSV, Markdown, LaTeX and HTML, with published numbers beside ours."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from sanflow.errors import not_among
from sanflow.evaluation.metric_table import HEADLINE, METRICS
from sanflow.report.missing import missing_notes
from sanflow.report.names import TABLES, tables_of
from sanflow.report.runs import Run
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import Table
from sanflow.report.tables.epoch import criterion_table, epoch_table
from sanflow.report.tables.groups import groups_table
from sanflow.report.tables.intervals import intervals_table
from sanflow.report.tables.metric import metric_table, published_table
from sanflow.report.tables.operating_point import operating_point_table
from sanflow.report.tables.overview import overview_table, protocol_table
from sanflow.report.tables.paired import paired_table
from sanflow.report.tables.render import write_table
from sanflow.report.tables.settings import ablation_table, cost_table, encoders_table

# In the order of `names.TABLES`; a test compares the two.
BUILDERS: dict[str, Callable[[Summary], Table]] = {
    "overview": overview_table,
    "intervals": intervals_table,
    **{metric: partial(metric_table, metric=metric) for metric in METRICS},
    **{f"published_{metric}": partial(published_table, metric=metric) for metric in HEADLINE},
    "encoders": encoders_table,
    "ablation": ablation_table,
    "paired": paired_table,
    "protocols": protocol_table,
    "groups": groups_table,
    "epoch": epoch_table,
    "criterion": criterion_table,
    "operating_point": operating_point_table,
    "cost": cost_table,
}

__all__ = ["BUILDERS", "Table", "build_table", "write_table", "write_tables"]


def build_table(name: str, runs: Sequence[Run], missing: Sequence[str] = ()) -> Table:
    """Build one table of a benchmark.

    Arguments:
        name: One of `names.TABLES`.
        runs: From `read_runs`.
        missing: From `missing_runs`; a note below the table names them.

    Raises:
        ConfigError: If there is no table of this name.
    """
    if name not in BUILDERS:
        raise not_among("the name of a table, one of", TABLES, name)
    table = BUILDERS[name](Summary(runs))
    return dataclasses.replace(table, notes=[*missing_notes(missing), *table.notes])


def write_tables(
    runs: Sequence[Run],
    folder: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    missing: Sequence[str] = (),
) -> list[Path]:
    """Write tables in all formats.

    Arguments:
        runs: From `read_runs`.
        folder: Where to write.
        names: Which tables; all that apply to the data sets if None.
        missing: From `missing_runs`; a note below each table names them.

    Returns:
        The files.
    """
    files = []
    for name in names or tables_of(run.dataset for run in runs):
        files += write_table(build_table(name, runs, missing), folder)
    return files
