"""Rule `explorer`: the files of all runs in, the page that shows them out."""

import sys
from typing import TYPE_CHECKING

from sanflow.report.explorer import write_explorer

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with open(snakemake.log[0], "w", encoding="utf-8") as sys.stderr:
    parameters = snakemake.params
    write_explorer(parameters.results, parameters.folder, snakemake.input.metrics, workers=snakemake.threads)
