"""The command `record`: keep the small files of a benchmark's results, and write its page from them."""

from pathlib import Path
from typing import Annotated

import typer

from sanflow.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this file's command to the command line."""
    app.command()(record)


def record(
    results: Annotated[
        Path | None,
        typer.Argument(
            help="A benchmark's results: `results/<benchmark>`.", show_default="the page is written from its copies"
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Page to write. Its copies are in the folder of its name.", dir_okay=False)
    ] = Path("docs/results.md"),
    *,
    check: Annotated[bool, typer.Option("--check", help="Only compare copies, digests and page.")] = False,
) -> None:
    """Copy the small files of a benchmark's results, and write a page of tables and conclusions from them alone.

    The page and its folder can be committed. Text of your own belongs in findings.md in that folder, which is kept.
    """
    from sanflow.report.copies import copy_results
    from sanflow.report.results_page import check_page, copies_of, write_page

    if check:
        if results is not None:
            raise ConfigError(f"Expected no results folder with --check, which compares copies, but got {results}.")
        check_page(output)
        typer.echo(f"{output} is what the files in {copies_of(output)} give, and these have their digests.")
        return
    if results is not None:
        for run in copy_results(results, copies_of(output)):
            typer.echo(f"left out, not named by benchmark.json: {run}", err=True)
    write_page(output)
    typer.echo(output)
