"""The command `explore`: write the page that shows a benchmark's results and every test image."""

from pathlib import Path
from typing import Annotated

import typer

from sanflow.cli.options import RunsOfOption, metrics_files

ResultsArgument = Annotated[Path, typer.Argument(help="A benchmark's results: `results/<benchmark>`.")]


def register(app: typer.Typer) -> None:
    """Add this file's command to the command line."""
    app.command()(explore)


def explore(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="<results>/explorer")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="one per processor, at most 8")
    ] = None,
    benchmark: RunsOfOption = None,
) -> None:
    """Write the explorer: one page with the headline table, every test image and its maps; needs the images."""
    from sanflow.benchmark_json import read_outline
    from sanflow.pipeline.benchmark import benchmark_path
    from sanflow.pipeline.outline import write_benchmark_outline
    from sanflow.report.explorer import write_explorer

    # A job of the workflow whose results come from an object store does not have it.
    if benchmark is not None and read_outline(results) is None:
        write_benchmark_outline(benchmark_path(benchmark), results)
    typer.echo(write_explorer(results, output, metrics_files(results, benchmark), workers=workers))
