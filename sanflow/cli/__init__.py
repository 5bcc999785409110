"""The command `sanflow`: one command per step of the benchmark, named as the rule that calls it.

A command parses, calls one function and writes. A user's error is one line and an exit code (sanflow/errors.py).
"""

import importlib.metadata
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from sanflow.cli import bench as _bench
from sanflow.cli import config as _config
from sanflow.cli import data as _data
from sanflow.cli import explore as _explore
from sanflow.cli import model as _model
from sanflow.cli import predict as _predict
from sanflow.cli import record as _record
from sanflow.cli import results as _results
from sanflow.cli import track as _track
from sanflow.cores import load_torch
from sanflow.errors import SanflowError
from sanflow.memory import is_out_of_memory, out_of_memory

# Commands that compute with torch. Others, such as `gpu-exec`, hand their environment on to a command of these.
COMPUTING = ("bench", "calibrate", "export", "predict", "score", "submission", "train", "validate")
EXIT_CODES = """Exit codes: 0 done · 1 a defect of sanflow (please report it) · 2 configuration or command line ·
3 data · 4 weights · 5 device · 6 disk · 7 a damaged file · 8 training diverged · 9 out of memory · 10 the command
of another tool · 11 export · 130, 143 interrupted, state saved."""

app = typer.Typer(
    name="sanflow",
    help="A reproducible benchmark for visual anomaly detection, built around SANFlow.\n\n"
    "`snakemake` runs these commands in order; each can also be run by hand.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
_config.register(app)
_data.register(app)
_model.register(app)
_predict.register(app)
_results.register(app)
_explore.register(app)
_record.register(app)
_bench.register(app)
_track.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sanflow {importlib.metadata.version('sanflow')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Define the global options; this text is not shown, because the application above has its own `help`."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    if sys.argv[1:2] and sys.argv[1] in COMPUTING and "--help" not in sys.argv:
        load_torch()
    try:
        app()
    except SanflowError as error:
        _exit_with(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _exit_with(out_of_memory(error))


def _exit_with(error: SanflowError) -> NoReturn:
    Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] ", end="")
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
