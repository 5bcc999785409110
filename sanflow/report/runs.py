"""The runs of a benchmark, read back from `results/<benchmark>/**/metrics.json`, for tables and figures.

A run is one data set x category x experiment x seed; an epoch kept by `keep_every` is a separate run. A run is
identified by its folder, so that results can be moved or merged by moving folders.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanflow.benchmark_json import position, read_outline
from sanflow.errors import DataError, IntegrityError
from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.files import read_json

RUN_FOLDER = re.compile(r"seed(?P<seed>\d+)(?:/epoch(?P<epoch>\d+))?")
RANDOM_MARK = "‡"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run and what was measured of it.

    Arguments:
        dataset: Name of the data set.
        category: Name of the category.
        experiment: Key of the experiment in the benchmark file.
        seed: Seed of the run.
        epoch: The epoch, if this is one kept by `keep_every`; None for the last one, which is reported.
        folder: Folder of metrics.json and the other files of the run.
        metrics: Content of metrics.json; what could not be computed is NaN.
    """

    dataset: str
    category: str
    experiment: str
    seed: int
    epoch: int | None
    folder: Path
    metrics: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the experiment, as the configuration resolved them; empty if the run has none."""
        return self.metrics.get("provenance", {}).get("experiment") or {}

    @property
    def label(self) -> str:
        """Name of the experiment in tables and figures, with its marks."""
        return (self.settings.get("label") or self.experiment) + "".join(self.marks)

    @property
    def marks(self) -> list[str]:
        """Marks of the encoder: ‡ for random weights."""
        identity = self.metrics.get("provenance", {}).get("encoder") or {}
        weights = self.settings.get("weights") or identity.get("weights")
        return [RANDOM_MARK] if self.settings.get("method") != "external" and weights == "random" else []


MARK_NOTES = {
    RANDOM_MARK: "The encoder has random, untrained weights: these numbers show that the pipeline runs, not how good "
    "the method is.",
}


def read_runs(results: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]] | None = None) -> list[Run]:
    """Read the runs of one benchmark.

    Arguments:
        results: Its folder, `results/<benchmark>`.
        files: The metrics.json files to take, in the order in which tables show them; all below `results`,
            in the order of the benchmark's outline, if None.

    Raises:
        DataError: If there is none, or one is not in the folder of a run.
        IntegrityError: If one is damaged.
    """
    root = Path(results)
    paths = [Path(file) for file in (root.rglob("metrics.json") if files is None else files)]
    if not paths:
        raise DataError(
            f"Expected metrics.json files below {root}, but there is none. Run the benchmark first, or name "
            "its results folder."
        )
    runs = [_read_run(root, path) for path in paths]
    return runs if files is not None else _sorted(runs, read_outline(root) or {})


def _read_run(root: Path, path: Path) -> Run:
    try:
        dataset, category, experiment, *rest = path.parent.relative_to(root).parts
    except ValueError:
        dataset, category, experiment, rest = "", "", "", []
    match = RUN_FOLDER.fullmatch("/".join(rest))
    if match is None:
        raise DataError(
            f"Expected {path} at {root}/<data set>/<category>/<experiment>/seed<k>/[epoch<n>/]metrics.json. "
            "Name the benchmark's results folder, or move the file to its place."
        )
    metrics = read_json(path)
    if not isinstance(metrics, dict) or HEADLINE[0] not in metrics:
        raise DataError(f"Expected {path} to hold {HEADLINE[0]}, but it does not. Evaluate the run again.")
    # Pixel metrics are absent where the data set has no masks.
    metrics = dict.fromkeys(headline_of(dataset)) | metrics
    return Run(
        dataset=dataset,
        category=category,
        experiment=experiment,
        seed=int(match["seed"]),
        epoch=None if match["epoch"] is None else int(match["epoch"]),
        folder=path.parent,
        metrics={name: math.nan if value is None else value for name, value in metrics.items()},
    )


def read_curves(run: Run) -> dict[str, np.ndarray]:
    """Read curves.npz of a run.

    Raises:
        IntegrityError: If it is missing or damaged.
    """
    path = run.folder / "curves.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise IntegrityError(f"Expected curves in {path}, but got: {error}. Evaluate the run again.") from error


def _sorted(runs: Iterable[Run], outline: dict[str, Any]) -> list[Run]:
    """Sort runs in the order of the benchmark; alphabetically if there is none."""
    datasets, experiments = outline.get("datasets", {}), outline.get("experiments", [])

    def key(run: Run) -> tuple[Any, ...]:
        return (
            position(run.dataset, list(datasets)),
            position(run.category, datasets.get(run.dataset, [])),
            position(run.experiment, experiments),
            run.seed,
            run.epoch or 0,
        )

    return sorted(runs, key=key)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Return the different values, in the order in which they first occur."""
    return list(dict.fromkeys(values))


def labels_of(runs: Sequence[Run]) -> dict[str, str]:
    """Return experiment -> its label; an experiment is marked if any of its runs is.

    Two experiments with one label are distinguished by their keys.
    """
    labels = {}
    for experiment in in_order(run.experiment for run in runs):
        own = [run for run in runs if run.experiment == experiment]
        marks = in_order(mark for run in own for mark in run.marks)
        labels[experiment] = (own[0].settings.get("label") or experiment) + "".join(marks)
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {key: f"{label} ({key})" if label in twice and label != key else label for key, label in labels.items()}


def notes_of(runs: Sequence[Run]) -> list[str]:
    """Return the notes that explain the marks of these runs."""
    return [f"{mark} {MARK_NOTES[mark]}" for mark in in_order(mark for run in runs for mark in run.marks)]
