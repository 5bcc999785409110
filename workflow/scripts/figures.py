"""Rule `figures`: the files of one category's runs in, all its figures out."""

import sys
from typing import TYPE_CHECKING

from sanflow.report.figures import ENDINGS, PER_CATEGORY, draw_category
from sanflow.report.runs import read_runs

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", encoding="utf-8") as sys.stderr:
    runs = read_runs(snakemake.params.results, snakemake.input.metrics)
    for kind in PER_CATEGORY:
        stem = f"{snakemake.params.folder}/{kind}/{snakemake.wildcards.dataset}/{snakemake.wildcards.category}"
        draw_category(kind, runs, snakemake.input.index, [stem + ending for ending in ENDINGS])
