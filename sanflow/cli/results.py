"""Commands about results: `score-external`, `evaluate`, `maps`, `tables`, `figures`, `finished`, `show`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sanflow.cli.options import (
    BenchmarkOption,
    ExperimentOption,
    IndexArgument,
    RunArgument,
    RunsOfOption,
    metrics_files,
)
from sanflow.config import handed_on

ResultsArgument = Annotated[Path, typer.Argument(help="A benchmark's results: `results/<benchmark>`.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command("score-external")(score_external)
    app.command()(evaluate)
    app.command()(maps)
    app.command()(tables)
    app.command()(figures)
    app.command()(finished)
    app.command()(show)


def score_external(
    index: IndexArgument,
    benchmark: BenchmarkOption,
    experiment: ExperimentOption,
    output: Annotated[Path, typer.Option(help="Scores file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    maps: Annotated[
        Path | None, typer.Option(help="Folder of the maps, instead of the one that the experiment names.")
    ] = None,
) -> None:
    """Read the anomaly maps that another tool made of the test images into a scores file."""
    from sanflow.anomaly_maps.from_other_tools import score_external as read_maps
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.methods.method import MapSource
    from sanflow.methods.registry import methods
    from sanflow.pipeline.benchmark import load_experiment

    settings = load_experiment(benchmark, experiment)
    method = methods()[settings.method]
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
) -> None:
    """Measure the scores of one run against the ground truth; needs no GPU and no model."""
    from sanflow.evaluation.evaluate import evaluate_files
    from sanflow.evaluation.headline import headline_of
    from sanflow.pipeline.benchmark import load_experiment

    settings = load_experiment(benchmark, experiment) if benchmark and experiment else None
    found = evaluate_files(scores, index, experiment=settings, history_path=history, resamples=resamples)
    found.write(output, images, curves)
    for warning in found.metrics["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    headline = [name for name in headline_of(found.index.dataset) if name in found.metrics]
    typer.echo("  ".join(f"{name} {100 * found.metrics[name]:.2f}" for name in headline))


def maps(
    run: RunArgument,
    *,
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    fusion: Annotated[
        Literal["calibrated", "testset"], typer.Option(help="How scales are joined; docs/protocol.md.")
    ] = "calibrated",
) -> None:
    """Write the anomaly maps of a finished run as TIFF files of 32-bit floats, at the sizes of the test images.

    A map has its image's path below the output folder, as MVTec's evaluation scripts expect.
    """
    from rich.progress import track

    from sanflow.anomaly_maps.export import export_maps
    from sanflow.anomaly_maps.scores_file import Scores
    from sanflow.data.index import index_of_run, read_index

    scores, index = Scores.load(run / "scores.npz"), read_index(index_of_run(run))
    console = Console(stderr=True)
    files = export_maps(scores, index, output, fusion)
    shown = track(files, "Maps", len(scores.paths), console=console, disable=not console.is_terminal)
    typer.echo(f"{sum(1 for _ in shown)} maps of {run} -> {output}")


def tables(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/tables")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a table; again for more.", show_default="all")] = None,
    benchmark: RunsOfOption = None,
) -> None:
    """Make the tables again from the metrics.json files below a results folder; needs no torch."""
    from sanflow.report.missing import missing_runs
    from sanflow.report.runs import read_runs
    from sanflow.report.tables import write_tables

    runs = read_runs(results, metrics_files(results, benchmark))
    for file in write_tables(runs, output or results / "tables", only, missing_runs(results, runs)):
        typer.echo(file)


def figures(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/figures")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Kind of figure; again for more.", show_default="all")] = None,
    width: Annotated[Literal["page", "column"], typer.Option(help="For a page, or one of its two columns.")] = "page",
    category: Annotated[
        str | None, typer.Option(help="Only figures of this <data set>/<category>.", show_default="all")
    ] = None,
    benchmark: RunsOfOption = None,
) -> None:
    """Draw the figures again from the files below a results folder; needs the images too, but no torch."""
    from rich.progress import track

    from sanflow.errors import not_among
    from sanflow.report.figures import plan_figures, write_figure
    from sanflow.report.names import CATEGORY_FIGURES
    from sanflow.report.runs import in_order, read_runs

    runs = read_runs(results, metrics_files(results, benchmark))
    if category is not None:
        known = in_order(f"{run.dataset}/{run.category}" for run in runs)
        if category not in known:
            raise not_among("a category with finished runs among", known, category)
        runs = [run for run in runs if f"{run.dataset}/{run.category}" == category]
        only = only or list(CATEGORY_FIGURES)
    plan = plan_figures(results, output or results / "figures", only, runs)
    for figure in track(plan, description="Figures", console=Console(stderr=True)):
        for file in write_figure(figure, width):
            typer.echo(file)


def finished(results: ResultsArgument, benchmark: RunsOfOption = None) -> None:
    """Make tables and overall figures of the runs that are finished, and say which are missing.

    The workflow does so after failed jobs, so that the other categories have their numbers.
    """
    from sanflow.report.figures import plan_figures, write_figure
    from sanflow.report.missing import missing_runs
    from sanflow.report.names import METRIC_FIGURES
    from sanflow.report.runs import read_runs
    from sanflow.report.tables import write_tables

    files = metrics_files(results, benchmark)
    if not (any(results.rglob("metrics.json")) if files is None else files):
        typer.echo("No run is finished yet, so there are no tables.")
        return
    runs = read_runs(results, files)
    missing = missing_runs(results, runs)
    write_tables(runs, results / "tables", missing=missing)
    for figure in plan_figures(results, results / "figures", METRIC_FIGURES, runs):
        write_figure(figure)
    typer.echo(f"Tables and overall figures of the runs that are finished: {results}/tables, {results}/figures.")
    for line in missing:
        typer.echo(f"  missing: {line}")
    typer.echo(
        "Correct what failed (its log is above) and start snakemake again, which makes the rest. "
        f"`sanflow explore {results}` makes the explorer of the finished runs."
    )


def show(results: ResultsArgument) -> None:
    """Print the headline table of a benchmark, and where to look for the rest."""
    from sanflow.report.missing import missing_runs
    from sanflow.report.runs import read_runs
    from sanflow.report.tables.show import print_overview

    runs = read_runs(results)
    print_overview(runs, results, missing=missing_runs(results, runs))
