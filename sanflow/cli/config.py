"""Commands about the configuration: `check` a benchmark file, write the `schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sanflow.config import Benchmark, Settings, benchmark_path, load_benchmark
from sanflow.files import atomic_path


def register(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    app.command()(check)
    app.command(hidden=True)(schema)


def check(
    benchmark: Annotated[str, typer.Argument(help="Name in config/benchmarks/ or path of a benchmark file.")],
) -> None:
    """Check a benchmark file and say what it would run."""
    path = benchmark_path(benchmark)
    chosen = load_benchmark(path)
    typer.echo(f"{path} is valid: {chosen.title or path.stem}")
    for name, dataset in chosen.datasets.items():
        categories = dataset.categories if dataset.categories == "all" else ", ".join(dataset.categories)
        typer.echo(f"  data set    {name}: {categories}")
    for name, experiment in chosen.experiments.items():
        typer.echo(f"  experiment  {name}: {experiment.method} on {experiment.encoder or experiment.maps}")
    typer.echo(f"  seeds       {', '.join(map(str, chosen.seeds))}")


def schema(
    folder: Annotated[Path, typer.Argument(help="Where the JSON schemas go.")] = Path("workflow/schemas"),
) -> None:
    """Write the JSON schemas of config.yaml and of benchmark files."""
    for name, model in {"config": Settings, "benchmark": Benchmark}.items():
        with atomic_path(folder / f"{name}.schema.json") as temporary:
            temporary.write_text(json.dumps(model.model_json_schema(), indent=2) + "\n", "utf-8")
