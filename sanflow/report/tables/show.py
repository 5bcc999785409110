"""Print the headline table at the end of a benchmark, and the paths of the other results."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sanflow.report.missing import missing_notes
from sanflow.report.runs import Run
from sanflow.report.summary import Summary
from sanflow.report.tables.overview import overview_table


def print_overview(
    runs: Sequence[Run], results: Path, console: Console | None = None, missing: Sequence[str] = ()
) -> None:
    """Print the headline table of a benchmark and the places of its explorer, report, tables, figures and runs.

    Arguments:
        runs: Of the benchmark.
        results: Its folder.
        console: Where to print; the terminal if None.
        missing: From `missing_runs`.
    """
    console = console or Console()
    table = overview_table(Summary(runs))
    for section in table.sections:
        printed = RichTable(title=f"{section.heading}: {table.title.lower()} [%]", title_justify="left")
        for number, name in enumerate(section.header):
            printed.add_column(Text(name), justify="left" if number < section.text_columns else "right")
        for row in section.rows:
            printed.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
        console.print(printed)
    for note in missing_notes(missing):
        console.print(Text(note, style="yellow"))
    for note in table.notes:
        console.print(Text(note, style="dim"))
    places = {
        "explorer": results / "explorer" / "index.html",
        "report": results / "report.html",
        "tables": results / "tables",
        "figures": results / "figures",
        "each run": results / "<data set>" / "<category>" / "<experiment>" / "seed<k>",
    }
    for name, place in places.items():
        if name == "each run" or place.exists():
            console.print(Text(f"{name:>9}: {place}"), soft_wrap=True)
