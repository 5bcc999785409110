"""Rule `bars`: metrics.json files of all categories in, one figure per headline metric out."""

import sys
from typing import TYPE_CHECKING

from sanflow.report.figures import ENDINGS, draw_bars
from sanflow.report.names import HEADLINE
from sanflow.report.runs import read_runs

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", encoding="utf-8") as sys.stderr:
    runs = read_runs(snakemake.params.results, snakemake.input.metrics)
    for metric in HEADLINE:
        draw_bars(metric, runs, [f"{snakemake.params.folder}/bars/{metric}{ending}" for ending in ENDINGS])
