"""Rule `dots`: metrics.json files of all categories in, one figure per headline metric out."""

import sys
from typing import TYPE_CHECKING

from sanflow.report.figures import plan_figures, write_figure
from sanflow.report.names import METRIC_FIGURES
from sanflow.report.runs import read_runs

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", encoding="utf-8") as sys.stderr:
    runs = read_runs(snakemake.params.results, snakemake.input.metrics)
    for figure in plan_figures(snakemake.params.results, snakemake.params.folder, METRIC_FIGURES, runs):
        write_figure(figure)
