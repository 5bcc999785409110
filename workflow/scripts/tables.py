"""Rule `tables`: metrics.json files in, all tables out."""

import sys
from typing import TYPE_CHECKING

from sanflow.report.missing import missing_runs
from sanflow.report.runs import read_runs
from sanflow.report.tables import write_tables

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", encoding="utf-8") as sys.stderr:
    files = [*snakemake.input.metrics, *snakemake.input.epochs]
    runs = read_runs(snakemake.params.results, files)
    write_tables(runs, snakemake.params.folder, missing=missing_runs(snakemake.params.results, runs))
