"""What can be known to fail is told before any work: categories, files that a benchmark names, its encoders.

A job would find each of these too, but later: after a download, in a queue, beside others that already train.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanflow.config import Benchmark, Experiment, Job
from sanflow.data.registry import categories
from sanflow.errors import ConfigError, SanflowError


def categories_of(benchmark: Benchmark) -> dict[str, list[str]]:
    """The categories of each data set, `all` resolved.

    Raises:
        ConfigError: If a data set or category is unknown.
        DataError: If a folder of the user's own is missing or no data set.
    """
    return {
        name: categories(name, choice.categories, choice.kind, choice.root)
        for name, choice in benchmark.datasets.items()
    }


def check_benchmark(benchmark: Benchmark, results: Path | None = None) -> dict[str, list[str]]:
    """Check what a benchmark names, and that its encoders can be built as it wants them.

    Arguments:
        benchmark: From `load_benchmark`.
        results: Where its finished jobs lie; what only they need is not asked for again.

    Returns:
        The categories of each data set.

    Raises:
        ConfigError: If a data set or category is unknown, or with all faults of files and encoders together.
        DataError: If a folder of the user's own is missing or no data set.
    """
    found = categories_of(benchmark)
    jobs = [job for job in benchmark.jobs(found) if not _finished(job, benchmark.experiments[job.experiment], results)]
    problems = [*_files(benchmark, jobs), *_encoders(benchmark, jobs)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"Expected all that the benchmark names, but:\n{listed}\nNothing was started.")
    return found


def _finished(job: Job, experiment: Experiment, results: Path | None) -> bool:
    if results is None:
        return False
    folder = results / job.dataset / job.category / job.experiment / f"seed{job.seed}"
    # With this file made, neither what the experiment names nor its encoder is asked for again.
    return (folder / ("scores.npz" if experiment.method == "external" else "checkpoint.pt")).exists()


def _files(benchmark: Benchmark, jobs: list[Job]) -> Iterator[str]:
    """Which of the files and folders that the experiments name are missing."""
    missing: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        experiment = benchmark.experiments[job.experiment]
        if experiment.method == "external":
            key, path = "maps", Path(experiment.maps_for(job.dataset, job.category) or "")
        elif experiment.source == "official":
            key, path = "official_weights", Path(experiment.official_weights_for(job.category) or "")
        else:
            continue
        if not path.exists():
            missing.setdefault((job.experiment, key), []).append(f"{job.category} ({path})")
    for (experiment_name, key), places in missing.items():
        yield f"{experiment_name}: `{key}` points to nothing for {', '.join(dict.fromkeys(places))}"


def _encoders(benchmark: Benchmark, jobs: list[Job]) -> Iterator[str]:
    """Encoders that cannot be built, or do not take an input size. Only shapes count here: nothing is downloaded."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    for job in jobs:
        size = benchmark.experiments[job.experiment].input_size_for(job.category)
        sizes.setdefault(job.experiment, set()).add(size)
    for name, wanted in sizes.items():
        experiment = benchmark.experiments[name]
        if experiment.method == "external":
            continue
        try:
            encoder = _encoder(
                str(experiment.encoder),
                # Downloaded weights differ from random ones in nothing that is asked here; a file is read.
                "random" if experiment.weights == "pretrained" else experiment.weights,
                None if experiment.taps is None else tuple(experiment.taps),
                experiment.scales,
                experiment.padding,
            )
            for height, width in sorted(wanted):
                encoder.map_sizes(height, width)
        except SanflowError as error:
            yield f"{name}: {error}"


@functools.cache
def _encoder(name: str, weights: str, taps: tuple[str, ...] | None, scales: int, padding: Any) -> Any:
    from sanflow.encoders import build_encoder

    return build_encoder(name, weights=weights, taps=taps, scales=scales, padding=padding)
