"""Read the inputs of figures: the run of each experiment that is shown, its files, the images to show."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.data.images import load_images, load_masks
from sanflow.data.index import Index
from sanflow.errors import IntegrityError
from sanflow.report.figures.samples import MOST, choose_samples
from sanflow.report.figures.style import plain
from sanflow.report.runs import Run, in_order, labels_of


@dataclasses.dataclass(frozen=True)
class Samples:
    """The test images that a figure shows.

    Arguments:
        chosen: Their places in the index.
        images: (n, H, W, 3) uint8, at the input size of the first experiment.
        masks: (n, H, W) bool.
        kinds: Kind of defect of each.
    """

    chosen: list[int]
    images: np.ndarray
    masks: np.ndarray
    kinds: list[str]


def first_seeds(runs: Sequence[Run]) -> dict[str, Run]:
    """Label of each experiment -> its run of the lowest seed and the last epoch: the one that figures show."""
    last = sorted((run for run in runs if run.epoch is None), key=lambda run: run.seed)
    by_experiment: dict[str, Run] = {}
    for run in last:
        by_experiment.setdefault(run.experiment, run)
    labels = labels_of(runs)
    return {plain(labels[name]): by_experiment[name] for name in in_order(run.experiment for run in runs)}


def load_samples(shown: Mapping[str, Run], index: Index, most: int = MOST) -> Samples:
    """Choose test images by the scores of the first experiment, and read these alone: a test set may have thousands."""
    run = next(iter(shown.values()))
    images = read_images_table(run, index)
    chosen = choose_samples(list(images.defect_type), images.score.to_numpy(float), most)
    table = index.test.iloc[chosen]
    part = dataclasses.replace(index, table=table.reset_index(drop=True))
    size = (int(run.metrics["input_size"][0]), int(run.metrics["input_size"][1]))
    return Samples(
        chosen,
        np.asarray(load_images(part, "test", size)),
        np.asarray(load_masks(part, size)),
        [plain(kind) for kind in images.defect_type.iloc[chosen]],
    )


def read_images_table(run: Run, index: Index) -> pd.DataFrame:
    """Read images.csv of a run.

    Raises:
        IntegrityError: If it is of other images than those of the index.
    """
    # Kinds of defect may be called "None" or "01"; they are text.
    table = pd.read_csv(run.folder / "images.csv", dtype={"image": str, "defect_type": str}, keep_default_na=False)
    _require_same_images(run, index, list(table.image))
    return table


def read_scores(run: Run, index: Index, chosen: Sequence[int]) -> Scores:
    """Read the scores of some images of a run.

    Raises:
        IntegrityError: If they are of other images than those of the index.
    """
    scores = Scores.load(run.folder / "scores.npz")
    _require_same_images(run, index, scores.paths)
    return Scores(
        kind=scores.kind,
        grids={name: grid[list(chosen)] for name, grid in scores.grids.items()},
        constants=scores.constants,
        paths=[scores.paths[i] for i in chosen],
        labels=scores.labels[list(chosen)],
        defect_types=[scores.defect_types[i] for i in chosen],
        input_size=scores.input_size,
    )


def read_extras(run: Run) -> Extras | None:
    """Read extras.npz of a run; None where it has none."""
    file = run.folder / "extras.npz"
    return Extras.load(file) if file.exists() else None


def _require_same_images(run: Run, index: Index, paths: Sequence[str]) -> None:
    if list(paths) != [str(image) for image in index.test.image]:
        raise IntegrityError(
            f"Expected the scores in {run.folder} to be of the images of {index.dataset}/{index.category}, but they "
            "are of others: the data set has changed since. Score the run again."
        )
