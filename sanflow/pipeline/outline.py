"""Write benchmark.json from a benchmark file."""

from pathlib import Path

from sanflow.benchmark_json import write_outline
from sanflow.config.dataset import DatasetChoice
from sanflow.data.registry import categories
from sanflow.errors import DataError
from sanflow.pipeline.benchmark import load_benchmark
from sanflow.provenance import digest_of


def write_benchmark_outline(path: Path, results: Path) -> None:
    """Write the outline of a benchmark to its results folder.

    Arguments:
        path: The benchmark file.
        results: Folder of its results.

    Raises:
        ConfigError: With every fault of the file.
    """
    chosen = load_benchmark(path)
    write_outline(
        results,
        name=path.stem,
        title=chosen.title,
        digest=digest_of(chosen.model_dump(mode="json")),
        datasets={name: _order(name, choice) for name, choice in chosen.datasets.items()},
        experiments=chosen.experiments,
        runs_on={name: own.datasets for name, own in chosen.experiments.items() if own.datasets is not None},
        seeds=chosen.seeds,
    )


def _order(name: str, choice: DatasetChoice) -> list[str]:
    """List the categories in the benchmark's order; none if the folder of the data set is not here to be looked at."""
    if choice.categories != "all":
        return choice.categories
    try:
        return categories(name, "all", choice.kind, choice.root)
    except DataError:
        return []
