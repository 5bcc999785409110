"""Commands about results: `score-external`, `evaluate`, `tables`, `figures`, `show`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from sanflow.cli.options import BenchmarkOption, ExperimentOption, IndexArgument, TrackingOption
from sanflow.config import handed_on

ResultsArgument = Annotated[Path, typer.Argument(help="A benchmark's results: `results/<benchmark>`.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command("score-external")(score_external)
    app.command()(evaluate)
    app.command()(tables)
    app.command()(figures)
    app.command()(show)


def score_external(
    index: IndexArgument,
    benchmark: BenchmarkOption,
    experiment: ExperimentOption,
    output: Annotated[Path, typer.Option(help="Scores file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    maps: Annotated[
        Path | None, typer.Option(help="Folder of the maps, in place of the one that the experiment names.")
    ] = None,
) -> None:
    """Read the anomaly maps that another tool made of the test images into a scores file."""
    from sanflow.anomaly_maps.from_other_tools import score_external as read_maps
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.methods.method import MapSource
    from sanflow.methods.registry import METHODS
    from sanflow.pipeline.benchmark import load_experiment

    settings = load_experiment(benchmark, experiment)
    method = METHODS[settings.method]
    if not isinstance(method, MapSource):
        raise ConfigError(f"Expected an experiment with finished maps, but {experiment!r} is of `{settings.method}`.")
    content = read_index(index)
    folder = maps or settings.files_for(content.dataset, content.category)[method.maps_key]
    scores = read_maps(content, folder, settings, name=experiment, seed=seed)
    scores.save(output)
    typer.echo(f"{len(scores.paths)} maps of {folder} -> {output}")


def evaluate(
    index: IndexArgument,
    scores: Annotated[Path, typer.Option(help="Scores file of the run.")],
    output: Annotated[Path, typer.Option(help="metrics.json to write.")],
    images: Annotated[Path | None, typer.Option(help="images.csv to write.", show_default="beside --output")] = None,
    curves: Annotated[Path | None, typer.Option(help="curves.npz to write.", show_default="beside --output")] = None,
    benchmark: Annotated[
        str | None, typer.Option(envvar=handed_on.BENCHMARK, help="Benchmark file that says how to evaluate.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Key of the experiment in it.")] = None,
    history: Annotated[Path | None, typer.Option(help="train.json of the run, for its cost.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the intervals.")] = 1000,
    tracking: TrackingOption = None,
    untracked: Annotated[bool, typer.Option("--untracked", help="Log nothing to MLflow.")] = False,
) -> None:
    """Measure the scores of one run against the ground truth; needs no GPU and no model."""
    from sanflow.evaluation.evaluate import evaluate_files
    from sanflow.evaluation.metric_table import HEADLINE
    from sanflow.pipeline.benchmark import load_experiment

    settings = load_experiment(benchmark, experiment) if benchmark and experiment else None
    found = evaluate_files(scores, index, experiment=settings, history_path=history, resamples=resamples)
    found.write(output, images, curves)
    for warning in found.metrics["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("  ".join(f"{name} {100 * found.metrics[name]:.2f}" for name in HEADLINE))
    if tracking is not None and settings is not None and not untracked:
        _track(tracking, found, settings, [output, *([images] if images else [])])


def _track(tracking: Path, found: Any, settings: Any, files: list[Path]) -> None:
    """Log the metrics of a run to MLflow."""
    from sanflow.methods.method import DetectorMethod
    from sanflow.methods.registry import METHODS
    from sanflow.pipeline.benchmark import Job
    from sanflow.provenance import environment_tags, fit_digest
    from sanflow.tracking import job_tracker

    provenance, index = found.metrics["provenance"], found.index
    job = Job(index.dataset, index.category, str(provenance["experiment_name"]), provenance["seed"] or 0)
    numbers = {f"test/{name}": value for name, value in found.metrics.items() if isinstance(value, float)}
    digest = fit_digest(settings, index.dataset, index.category)
    with job_tracker(tracking, unit=str(job.folder), digest=digest, stage="evaluate", send=False) as run:
        if not isinstance(METHODS[settings.method], DetectorMethod):  # else the fit has logged it
            fit_settings = settings.fit_settings(index.dataset, index.category)
            run.log_params({**dataclasses.asdict(job), "settings": fit_settings})
            run.log_tags({**environment_tags(), "config_digest": digest, "data_digest": index.digest})
        run.log_dataset(f"{index.dataset}/{index.category}", index.digest, str(index.root), "test")
        run.log_metrics({name: value for name, value in numbers.items() if not math.isnan(value)}, step=0)
        for file in files:
            run.log_artifact(file)


def tables(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/tables")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a table; again for more.", show_default="all")] = None,
) -> None:
    """Make the tables anew from the metrics.json files below a results folder; needs no torch."""
    from sanflow.report.missing import missing_runs
    from sanflow.report.runs import read_runs
    from sanflow.report.tables import write_tables

    runs = read_runs(results)
    for file in write_tables(runs, output or results / "tables", only, missing_runs(results, runs)):
        typer.echo(file)


def figures(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/figures")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Kind of figure; again for more.", show_default="all")] = None,
    width: Annotated[Literal["page", "column"], typer.Option(help="For a page, or one of its two columns.")] = "page",
) -> None:
    """Draw the figures anew from the files below a results folder; needs the images too, but no torch."""
    from rich.progress import track

    from sanflow.report.figures import plan_figures, write_figure

    plan = plan_figures(results, output or results / "figures", only)
    for figure in track(plan, description="Figures", console=Console(stderr=True)):
        for file in write_figure(figure, width):
            typer.echo(file)


def show(results: ResultsArgument) -> None:
    """Print the headline table of a benchmark, and where to look for the rest."""
    from sanflow.report.missing import missing_runs
    from sanflow.report.runs import read_runs
    from sanflow.report.tables.show import print_overview

    runs = read_runs(results)
    print_overview(runs, results, missing=missing_runs(results, runs))
