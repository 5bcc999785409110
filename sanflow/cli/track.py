"""Commands for tracking in MLflow: begin a benchmark's run, send what is missing, end it with tables and figures.

None of them fails if a server cannot be reached: they warn, and the next `sync` sends what could not be sent.
"""

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track as progress

from sanflow.benchmark_json import claim
from sanflow.config.settings import settings_here
from sanflow.errors import DataError, IntegrityError
from sanflow.files import read_json, write_json
from sanflow.pipeline.benchmark import benchmark_path
from sanflow.pipeline.outline import write_benchmark_outline
from sanflow.provenance import environment
from sanflow.tracking import URI_VARIABLE, masked
from sanflow.tracking.contents import of_benchmark
from sanflow.tracking.mirror import Mirror, ServerAwayError
from sanflow.tracking.sync import sync as send_jobs
from sanflow.tracking.sync import units_of

console = Console(stderr=True, soft_wrap=True)
track = typer.Typer(
    help="Show runs in MLflow: `init` before a benchmark, `publish` after it, `sync` when a server is back.",
    no_args_is_help=True,
)

BenchmarkArgument = Annotated[str, typer.Argument(help="Name in config/benchmarks/ or path of a benchmark file.")]
ResultsOption = Annotated[
    Path | None, typer.Option(help="Folder of the benchmark's results.", show_default="results/<benchmark>")
]
UriOption = Annotated[
    str | None,
    typer.Option(
        help="MLflow's tracking URI; default: $SANFLOW_TRACKING_URI, else `tracking.uri` of config/config.yaml. Put a "
        "password into the environment (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), not here.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.add_typer(track, name="track")


@track.command()
def init(benchmark: BenchmarkArgument, results: ResultsOption = None, uri: UriOption = None) -> None:
    """Write benchmark.json and begin the benchmark's run, before jobs start at the same time."""
    path, results, uri = _places(benchmark, results, uri)
    # Also where tracking is off: tables are ordered by it, and results can be sent to a server that is started later.
    write_benchmark_outline(path, results)
    if uri:
        _send(path, results, uri, status="RUNNING", jobs=False)


@track.command()
def sync(benchmark: BenchmarkArgument, results: ResultsOption = None, uri: UriOption = None) -> None:
    """Send all that the server does not have yet; nothing arrives twice."""
    path, results, uri = _places(benchmark, results, uri)
    if uri:
        _send(path, results, uri)
    else:
        _warn(f"Tracking is off: give --uri, set ${URI_VARIABLE}, or set tracking.uri in config/config.yaml.")


@track.command()
def publish(
    benchmark: BenchmarkArgument,
    results: ResultsOption = None,
    uri: UriOption = None,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="The benchmark ended with failed jobs.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Also log each checkpoint as an MLflow model.")] = False,
) -> None:
    """Send what is missing, then tables, figures and the means of the metrics to the benchmark's run, and end it."""
    path, results, uri = _places(benchmark, results, uri)
    if uri:
        _send(path, results, uri, status="FAILED" if failed else "FINISHED", models=models)


def _places(benchmark: str, results: Path | None, uri: str | None) -> tuple[Path, Path, str | None]:
    """Find the benchmark file, its results and the tracking URI: given, of the environment, or of config.yaml."""
    path = benchmark_path(benchmark)
    uri = uri if uri is not None else os.environ.get(URI_VARIABLE)
    uri = uri if uri is not None else settings_here().tracking.uri
    return path.absolute(), (results or Path("results", path.stem)).absolute(), uri or None


def _send(
    path: Path, results: Path, uri: str, *, status: str | None = None, jobs: bool = True, models: bool = False
) -> None:
    """Send the benchmark's run and those of its jobs, and warn of what could not be sent.

    The status of the benchmark's run is kept beside the job files, for a `sync` that comes later.
    """
    if claim(results) is None:
        write_benchmark_outline(path, results)
    outline = claim(results) or {}
    state_file = results / "tracking" / "benchmark.json"
    if status or not state_file.exists():
        now = int(1000 * time.time())
        write_json(state_file, {"status": status or "RUNNING", "time": now, "versions": environment()})
    state, artifacts = read_json(state_file), {path: ""}
    if state["status"] != "RUNNING":
        state["means"] = _means(results)
        files = [file for folder in ("tables", "figures") for file in sorted((results / folder).rglob("*.*"))]
        artifacts |= {file: str(file.parent.relative_to(results)) for file in files}
    benchmark = of_benchmark(outline, state, artifacts)
    sent = running = 0
    problems = []
    try:
        mirror = Mirror(uri, results / "tracking", outline["name"])
        if jobs:
            deliveries = send_jobs(mirror, results, outline, benchmark, models=models)
            total = len(units_of(results))
            for delivery in progress(deliveries, "Sending to MLflow", total, console=console, transient=True):
                sent, running = sent + delivery.sent, running + delivery.running
                problems += [delivery.problem] if delivery.problem else []
        try:
            mirror.put(benchmark)
        except ValueError as error:
            problems.append(str(error))
    except ServerAwayError as error:
        problems.append(f"{error}. Nothing is lost: `sanflow track sync` sends the rest later.")
    for problem in problems:
        _warn(problem)
    if jobs:
        left = f"; {running} jobs still run and were left alone" if running else ""
        console.print(f"Sent {sent} runs to {masked(uri)}{left}.", highlight=False)


def _means(results: Path) -> dict[str, float]:
    """Compute the means of the headline metrics, as the tables show them; none where nothing is finished."""
    from sanflow.report.runs import read_runs
    from sanflow.report.summary import means_by_name

    try:
        return means_by_name(read_runs(results))
    except (DataError, IntegrityError) as problem:
        _warn(f"{problem} The means are not sent.")
        return {}


def _warn(message: str) -> None:
    console.print(f"[yellow]Tracking:[/] {masked(message)}", highlight=False)
