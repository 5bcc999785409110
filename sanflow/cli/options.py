"""Options that several commands share; the workflow passes some of them in environment variables."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sanflow.config import handed_on

IndexArgument = Annotated[Path, typer.Argument(help="index.csv of the category.")]
RunArgument = Annotated[
    Path, typer.Argument(help="A run: `results/<benchmark>/<data set>/<category>/<experiment>/seed<k>`.")
]
BenchmarkOption = Annotated[
    str, typer.Option(envvar=handed_on.BENCHMARK, help="Name in config/benchmarks/ or path of a benchmark file.")
]
ExperimentOption = Annotated[str, typer.Option(help="Key of an experiment of the benchmark.")]
DeviceOption = Annotated[
    str, typer.Option(envvar=handed_on.DEVICE, help="auto, cuda (stops where there is none) or cpu.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(envvar=handed_on.CACHE, help="Folder of the image cache; decodes into memory if unset."),
]
GigabytesOption = Annotated[
    float, typer.Option(envvar=handed_on.CACHE_GIGABYTES, min=0, help="Limit of the image cache.")
]
TrackingOption = Annotated[
    Path | None,
    typer.Option(envvar=handed_on.TRACKING, help="`results/<benchmark>/tracking`; unset: nothing is logged to MLflow."),
]
RunsOfOption = Annotated[
    str | None,
    typer.Option(
        envvar=handed_on.BENCHMARK,
        help="Take only the runs of this benchmark: a name in config/benchmarks/ or a path.",
        show_default="all runs below the folder",
    ),
]


def metrics_files(results: Path, benchmark: str | None) -> list[Path] | None:
    """Return the metrics.json files that `RunsOfOption` chooses; None for all."""
    from sanflow.pipeline.plan import finished_metrics

    return None if benchmark is None else finished_metrics(benchmark, results)


def image_cache(folder: Path | None, gigabytes: float) -> Any:
    """Return the image cache that the options name; None where images are decoded into memory."""
    from sanflow.data.images import ImageCache

    return None if folder is None else ImageCache(folder, int(gigabytes * 1e9))
