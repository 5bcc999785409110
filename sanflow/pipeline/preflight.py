"""Check what a benchmark names before its first job: categories, files, encoders.

A job would find each of these errors too, but later: after a download, in a queue, or while other jobs run.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanflow.config.experiment import EncoderExperiment
from sanflow.data.registry import categories
from sanflow.errors import ConfigError, SanflowError
from sanflow.methods.method import DetectorMethod
from sanflow.methods.registry import methods
from sanflow.pipeline.benchmark import Benchmark, Job


def categories_of(benchmark: Benchmark) -> dict[str, list[str]]:
    """Return the categories of each data set, `all` resolved.

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
        results: Folder of its results; what only finished jobs need may be missing.

    Returns:
        The categories of each data set.

    Raises:
        ConfigError: If a data set or category is unknown, or with all faults of files and encoders together.
        DataError: If a folder of the user's own is missing or no data set.
    """
    found = categories_of(benchmark)
    jobs = [job for job in benchmark.jobs(found) if not _finished(job, benchmark, results)]
    problems = [*_files(benchmark, jobs), *_encoders(benchmark, jobs)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"Expected all that the benchmark names, but:\n{listed}\nNothing was started.")
    return found


def _finished(job: Job, benchmark: Benchmark, results: Path | None) -> bool:
    """Return whether the result exists, so that the experiment's files and encoder are not needed again."""
    if results is None:
        return False
    method = methods()[benchmark.experiments[job.experiment].method]
    return (results / job.folder / ("checkpoint.pt" if isinstance(method, DetectorMethod) else "scores.npz")).exists()


def _files(benchmark: Benchmark, jobs: list[Job]) -> Iterator[str]:
    """Name the missing files and folders among those that the experiments name."""
    missing: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        files = benchmark.experiments[job.experiment].files_for(job.dataset, job.category)
        for key, path in files.items():
            if not Path(path).exists():
                missing.setdefault((job.experiment, key), []).append(f"{job.category} ({path})")
    for (experiment_name, key), places in missing.items():
        yield f"{experiment_name}: `{key}` points to nothing for {', '.join(dict.fromkeys(places))}"


def _encoders(benchmark: Benchmark, jobs: list[Job]) -> Iterator[str]:
    """Name encoders that cannot be built or do not take an input size. Only shapes count: nothing is downloaded."""
    for name, experiment in benchmark.experiments.items():
        own = [job for job in jobs if job.experiment == name]
        if not own or not isinstance(experiment, EncoderExperiment):
            continue
        sizes = {experiment.encoded_size_for(job.dataset, job.category) for job in own}
        try:
            encoder = _encoder(
                experiment.encoder,
                # Random weights have the same shapes as downloaded ones; a file of weights is read.
                weights="random" if experiment.weights == "pretrained" else experiment.weights,
                taps=None if experiment.taps is None else tuple(experiment.taps),
                scales=experiment.scales,
                padding=experiment.padding,
                tile_size=experiment.tile_size,
                tile_overlap=experiment.tile_overlap,
            )
            for height, width in sorted(sizes):
                encoder.map_sizes(height, width)
        except SanflowError as error:
            yield f"{name}: {error}"


@functools.cache
def _encoder(name: str, **choices: Any) -> Any:
    from sanflow.encoders import build_encoder

    return build_encoder(name, **choices)
