"""Commands of the mirror in MLflow: begin a benchmark's run, send what waits, publish what is finished.

None of them fails because a server is away: they warn, and keep what could not be sent.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track as progress

from sanflow.benchmark_json import read_outline, write_outline
from sanflow.config.dataset import DatasetChoice
from sanflow.config.settings import settings_here
from sanflow.data.registry import categories
from sanflow.errors import DataError, IntegrityError
from sanflow.files import sha256_of_file
from sanflow.pipeline.benchmark import Benchmark, benchmark_path, load_benchmark
from sanflow.provenance import digest_of, environment_tags, fit_digest
from sanflow.tracking import Status, job_tracker, masked
from sanflow.tracking.mirror import initialise
from sanflow.tracking.sync import sync as send_pending
from sanflow.tracking.tracker import URI_VARIABLE

console = Console(stderr=True, soft_wrap=True)
track = typer.Typer(
    help="Mirror runs in MLflow: `init` before a benchmark, `publish` after it, `sync` whenever a server came back.",
    no_args_is_help=True,
)

BenchmarkArgument = Annotated[str, typer.Argument(help="Name in config/benchmarks/ or path of a benchmark file.")]
ResultsOption = Annotated[
    Path | None, typer.Option(help="Folder of the benchmark's results.", show_default="results/<benchmark>")
]
UriOption = Annotated[
    str | None,
    typer.Option(
        help="MLflow's tracking URI; default: $SANFLOW_TRACKING_URI, else `tracking.uri` of config/config.yaml. A "
        "password belongs into the environment (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), not here.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.add_typer(track, name="track")


@track.command()
def init(benchmark: BenchmarkArgument, results: ResultsOption = None, uri: UriOption = None) -> None:
    """Make the database and the benchmark's parent run, before jobs start at the same time."""
    path = benchmark_path(benchmark)
    chosen = load_benchmark(path)
    results = results or Path("results", path.stem)
    # Also where the mirror is off: tables are ordered by it, and files can be published to a server of later days.
    digest = _outline(chosen, path, results)
    uri = _chosen(uri)
    if not uri:
        return
    if problem := initialise(uri, results / "tracking"):
        _warn(f"{problem}. The benchmark goes on; `sanflow track sync` sends what it tells, later.")
    tracker = job_tracker(results / "tracking", unit="", digest=digest, stage="start", send=problem is None)
    tracker.log_params(
        {"experiments": list(chosen.experiments), "datasets": list(chosen.datasets), "seeds": chosen.seeds}
    )
    tracker.log_tags({"sanflow.title": chosen.title, "sanflow.config_digest": digest, **environment_tags()})
    tracker.log_artifact(path.absolute())
    # Running until `publish` says how it ended.
    tracker.finish("RUNNING")


@track.command()
def sync(
    benchmark: BenchmarkArgument,
    results: ResultsOption = None,
    uri: UriOption = None,
) -> None:
    """Send what jobs could not send while the server was away; nothing arrives twice."""
    path = benchmark_path(benchmark)
    folder = (results or Path("results", path.stem)) / "tracking"
    uri = _chosen(uri)
    if not uri:
        _warn(f"The mirror is off: give --uri, set ${URI_VARIABLE}, or set tracking.uri in config/config.yaml.")
        return
    _sync(uri, folder)


@track.command()
def publish(
    benchmark: BenchmarkArgument,
    results: ResultsOption = None,
    uri: UriOption = None,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="The benchmark ended with failed jobs.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Also log each checkpoint as an MLflow model.")] = False,
) -> None:
    """Send what waits, then tables, figures and the means of all metrics to the parent run, and end it."""
    path = benchmark_path(benchmark)
    chosen = load_benchmark(path)
    results = results or Path("results", path.stem)
    uri = _chosen(uri)
    if not uri:
        return
    if read_outline(results) is None:
        _outline(chosen, path, results)
    arrived = _sync(uri, results / "tracking")
    digest = digest_of(chosen.model_dump(mode="json"))
    tracker = job_tracker(results / "tracking", unit="", digest=digest, stage="publish", send=False)
    for folder in ("tables", "figures"):
        for file in sorted((results / folder).rglob("*")):
            if file.is_file():
                tracker.log_artifact(file, str(file.parent.relative_to(results)))
    tracker.log_metrics(_means(results), step=0)
    if models:
        _log_models(chosen, results)
    status: Status = "FAILED" if failed else "FINISHED"
    tracker.finish(status)
    if arrived:
        _sync(uri, results / "tracking")


def _outline(chosen: Benchmark, path: Path, results: Path) -> str:
    """Write what the results folder says of its benchmark; returns the digest of its settings."""
    digest = digest_of(chosen.model_dump(mode="json"))
    datasets = {name: _order(name, choice) for name, choice in chosen.datasets.items()}
    write_outline(
        results,
        name=path.stem,
        title=chosen.title,
        digest=digest,
        datasets=datasets,
        experiments=chosen.experiments,
        runs_on={name: own.datasets for name, own in chosen.experiments.items() if own.datasets is not None},
        seeds=chosen.seeds,
    )
    return digest


def _order(name: str, choice: DatasetChoice) -> list[str]:
    """Categories of a data set in the benchmark's order; none if its folder is not here to be looked at."""
    if choice.categories != "all":
        return choice.categories
    try:
        return categories(name, "all", choice.kind, choice.root)
    except DataError:
        return []


def _chosen(uri: str | None) -> str | None:
    """The tracking URI: given, of the environment (where "" means off), or of config.yaml."""
    uri = uri if uri is not None else os.environ.get(URI_VARIABLE)
    uri = uri if uri is not None else settings_here().tracking.uri
    # Where the tracker of this process looks for it.
    os.environ[URI_VARIABLE] = uri or ""
    return uri or None


def _sync(uri: str, folder: Path) -> bool:
    """Send all outboxes, stopping at the first that a dead server refuses; whether all arrived."""
    total = len(list(folder.glob("*.run.json")))
    sent = waiting = 0
    deliveries = progress(send_pending(uri, folder), "Sending to MLflow", total=total, console=console, transient=True)
    for delivery in deliveries:
        if delivery.problem is not None:
            _warn(f"{delivery.problem}. {total - sent} outboxes wait in {folder}.")
            return False
        sent += not delivery.running
        waiting += delivery.running
    if sent or waiting:
        left = f"; {waiting} belong to running jobs and were left alone" if waiting else ""
        console.print(f"Sent {sent} outboxes to {masked(uri)}{left}.", highlight=False)
    else:
        console.print("Nothing waits to be sent.")
    return True


def _log_models(chosen: Benchmark, results: Path) -> None:
    """Put every finished job's checkpoint into its outbox."""
    for scores in sorted(results.glob("*/*/*/seed*/scores.npz")):
        dataset, category, experiment, seed = scores.relative_to(results).parts[:4]
        checkpoint = scores.with_name("checkpoint.pt")
        if experiment not in chosen.experiments or not checkpoint.exists():
            continue
        settings = chosen.experiments[experiment]
        unit = f"{dataset}/{category}/{experiment}/{seed}"
        digest = fit_digest(settings, dataset, category)
        with job_tracker(results / "tracking", unit=unit, digest=digest, stage="model", send=False) as tracker:
            tracker.log_model(
                checkpoint, scores, sha256_of_file(checkpoint), settings.input_size_for(dataset, category)
            )


def _means(results: Path) -> dict[str, float]:
    """Means of the headline metrics, as the tables show them; none where nothing is finished."""
    from sanflow.report.runs import read_runs
    from sanflow.report.summary import means_by_name

    try:
        return means_by_name(read_runs(results))
    except (DataError, IntegrityError) as problem:
        _warn(f"{problem} The means are not sent.")
        return {}


def _warn(message: str) -> None:
    console.print(f"[yellow]Tracking:[/] {masked(message)}", highlight=False)
