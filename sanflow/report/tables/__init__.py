"""Tables: metrics.json files in, CSV, Markdown, LaTeX and HTML out; published numbers beside ours.

Role: say what the runs of a benchmark amount to. Represents: a table of cells, its builders, its formats.
Layer: uses (4). Depends on: runs, published, metrics, files. No torch.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from sanflow.errors import not_among
from sanflow.report.runs import HEADLINE, METRIC_TITLES, Run
from sanflow.report.tables.cells import Table
from sanflow.report.tables.metric import metric_table, published_table
from sanflow.report.tables.oracle import oracle_table
from sanflow.report.tables.overview import overview_table, protocol_table
from sanflow.report.tables.paired import paired_table
from sanflow.report.tables.render import FORMATS, write_table
from sanflow.report.tables.settings import ablation_table, cost_table, encoders_table
from sanflow.report.tables.summary import Summary

BUILDERS: dict[str, Callable[[Summary], Table]] = {
    "overview": overview_table,
    **{metric: partial(metric_table, metric=metric) for metric in METRIC_TITLES},
    **{f"published_{metric}": partial(published_table, metric=metric) for metric in HEADLINE},
    "encoders": encoders_table,
    "ablation": ablation_table,
    "paired": paired_table,
    "protocols": protocol_table,
    "oracle_epoch": oracle_table,
    "cost": cost_table,
}
NAMES = tuple(BUILDERS)

__all__ = ["BUILDERS", "FORMATS", "NAMES", "Table", "build_table", "write_table", "write_tables"]


def build_table(name: str, runs: Sequence[Run]) -> Table:
    """One table of a benchmark.

    Arguments:
        name: One of `NAMES`.
        runs: From `read_runs`.

    Raises:
        ConfigError: If there is no table of this name.
    """
    if name not in BUILDERS:
        raise not_among("the name of a table, one of", NAMES, name)
    return BUILDERS[name](Summary(runs))


def write_tables(runs: Sequence[Run], folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> list[Path]:
    """Write tables in all formats.

    Arguments:
        runs: From `read_runs`.
        folder: Where to write.
        names: Which tables; all if None.

    Returns:
        The files.
    """
    files = []
    for name in names or NAMES:
        files += write_table(build_table(name, runs), folder)
    return files
