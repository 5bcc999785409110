"""Commands about results: `score-external`, `evaluate`, `tables`, `figures`, `show`."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

IndexArgument = Annotated[Path, typer.Argument(help="index.csv of the category.")]
BenchmarkOption = Annotated[str, typer.Option(help="Name in config/benchmarks/ or path of a benchmark file.")]
ExperimentOption = Annotated[str, typer.Option(help="Key of an experiment of the benchmark.")]
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
    maps: Annotated[Path | None, typer.Option(help="Folder of the maps, in place of the experiment's `maps`.")] = None,
) -> None:
    """Read the anomaly maps that another tool made of the test images into a scores file."""
    from sanflow.anomaly_maps.from_other_tools import score_external as read_maps
    from sanflow.config import load_experiment
    from sanflow.data.index import read_index
    from sanflow.errors import ConfigError
    from sanflow.provenance import code_digest, digest_of, environment

    settings = load_experiment(benchmark, experiment)
    content = read_index(index)
    folder = str(maps or settings.maps_for(content.dataset, content.category) or "")
    if not folder:
        raise ConfigError(f"Expected `maps` in the experiment {experiment!r} or `--maps`, but got neither.")
    provenance = {
        "dataset": content.dataset,
        "category": content.category,
        "experiment_name": experiment,
        "experiment": settings.model_dump(mode="json"),
        "maps": folder,
        "config_digest": digest_of(settings.model_dump(mode="json", include={"maps", "input_size"})),
        "device": "another tool's",
        "code_digest": code_digest("score_external"),
        "versions": environment(),
    }
    scores = read_maps(content, folder, settings.input_size_for(content.category), provenance)
    scores.save(output)
    typer.echo(f"{len(scores.paths)} maps of {folder} -> {output}")


def evaluate(
    index: IndexArgument,
    scores: Annotated[Path, typer.Option(help="Scores file of the run.")],
    output: Annotated[Path, typer.Option(help="metrics.json to write.")],
    images: Annotated[Path | None, typer.Option(help="images.csv to write.", show_default="beside --output")] = None,
    curves: Annotated[Path | None, typer.Option(help="curves.npz to write.", show_default="beside --output")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmark file that says how to evaluate.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Key of the experiment in it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    history: Annotated[Path | None, typer.Option(help="train.json of the run, for its cost.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the intervals.")] = 1000,
    tracking: Annotated[Path | None, typer.Option(help="`results/<benchmark>/tracking`; mirrors the metrics.")] = None,
) -> None:
    """Measure the scores of one run against the ground truth; needs no GPU and no model."""
    from sanflow.config import load_experiment
    from sanflow.data.index import read_index
    from sanflow.evaluation.evaluate import evaluate_files
    from sanflow.provenance import environment_tags, training_digest
    from sanflow.report.runs import HEADLINE
    from sanflow.tracking import job_tracker

    settings = load_experiment(benchmark, experiment or "") if benchmark else None
    found = evaluate_files(
        scores,
        index,
        evaluate_at=settings.evaluate_at if settings else None,
        history_path=history,
        resamples=resamples,
    )
    provenance = found.metrics["provenance"]
    if settings is not None:
        # The label and the resolution may have changed since the scoring, which does not depend on them.
        provenance["experiment"] = (provenance.get("experiment") or {}) | settings.model_dump(mode="json")
    for key, value in {"experiment_name": experiment, "seed": seed}.items():
        if value is not None:
            provenance[key] = value
    found.write(output, images, curves)
    for warning in found.metrics["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("  ".join(f"{name} {100 * found.metrics[name]:.2f}" for name in HEADLINE))
    if tracking is not None and settings is not None:
        dataset, category = str(provenance.get("dataset")), str(provenance.get("category"))
        unit = f"{dataset}/{category}/{experiment}/seed{seed}"
        numbers = {f"test/{name}": value for name, value in found.metrics.items() if isinstance(value, float)}
        finite = {name: value for name, value in numbers.items() if not math.isnan(value)}
        chosen = settings.training_settings(category)
        job = {"dataset": dataset, "category": category, "experiment": experiment, "seed": seed, "settings": chosen}
        images_of = read_index(index)
        with job_tracker(tracking, unit=unit, digest=training_digest(chosen), stage="evaluate", send=False) as run:
            if not settings.trains:  # else training has told it
                digests = {name: provenance.get(name) for name in ("code_digest", "config_digest")}
                run.log_params(job)
                run.log_tags({**environment_tags(), **digests, "data_digest": images_of.digest})
            run.log_dataset(f"{dataset}/{category}", images_of.digest, str(images_of.root), "test")
            run.log_metrics(finite, step=settings.epochs)
            run.log_artifact(output)
            if images is not None:
                run.log_artifact(images)


def tables(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/tables")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a table; again for more.", show_default="all")] = None,
) -> None:
    """Make the tables anew from the metrics.json files below a results folder; needs no torch."""
    from sanflow.report.runs import read_runs
    from sanflow.report.tables import write_tables

    folder = output or results / "tables"
    for file in write_tables(read_runs(results), folder, only):
        typer.echo(file)


def figures(
    results: ResultsArgument,
    output: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="<results>/figures")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Kind of figure; again for more.", show_default="all")] = None,
) -> None:
    """Draw the figures anew from the files below a results folder; needs the images too, but no torch."""
    from rich.progress import track

    from sanflow.report.figures import plan_figures, write_figure

    plan = plan_figures(results, output or results / "figures", only)
    for figure in track(plan, description="Figures", console=Console(stderr=True)):
        for file in write_figure(figure):
            typer.echo(file)


def show(results: ResultsArgument) -> None:
    """Print the headline table of a benchmark, and where to look for the rest."""
    from sanflow.report.runs import read_runs
    from sanflow.report.tables.show import print_overview

    print_overview(read_runs(results), results)
