"""From the files of runs to what a figure function takes. One function per kind of figure, of the same name."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sanflow.anomaly_maps.maps import anomaly_maps, image_scores
from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.data.images import load_images, load_masks
from sanflow.data.index import Index
from sanflow.errors import IntegrityError
from sanflow.files import read_json
from sanflow.report.figures.bars import Group, metric_bars
from sanflow.report.figures.contact_sheet import Maps, contact_sheet
from sanflow.report.figures.curves import curves_of_category
from sanflow.report.figures.histograms import Distribution, score_histograms
from sanflow.report.figures.latents import latents_of_category
from sanflow.report.figures.samples import choose_samples
from sanflow.report.figures.style import plain
from sanflow.report.figures.training import training_curves
from sanflow.report.figures.variance import variance_maps
from sanflow.report.published import best_columns, covers
from sanflow.report.runs import METRIC_TITLES, Run, in_order, labels_of, notes_of

DrawCategory = Callable[[Sequence[Run], Index], Figure]


def first_seeds(runs: Sequence[Run]) -> dict[str, Run]:
    """Label of each experiment -> its run of the lowest seed and the last epoch: the one that figures show."""
    last = sorted((run for run in runs if run.epoch is None), key=lambda run: run.seed)
    by_experiment: dict[str, Run] = {}
    for run in last:
        by_experiment.setdefault(run.experiment, run)
    labels = labels_of(runs)
    return {plain(labels[name]): by_experiment[name] for name in in_order(run.experiment for run in runs)}


def contact(runs: Sequence[Run], index: Index) -> Figure:
    """Contact sheet of a category."""
    shown = first_seeds(runs)
    chosen, images, masks, kinds = _samples(shown, index)
    experiments = []
    for label, run in shown.items():
        scores = _scores(run, index)
        maps_NHW = anomaly_maps(scores, scores.input_size)
        experiments.append(
            Maps(
                label=label,
                maps=anomaly_maps(_only(scores, chosen), (images.shape[1], images.shape[2])),
                low=float(np.quantile(maps_NHW[:, ::4, ::4], 0.02)),
                high=float(maps_NHW.max()),
                threshold=float(run.metrics.get("pixel_f1_threshold", math.nan)),
                image_scores=image_scores(maps_NHW)[chosen],
            )
        )
    return contact_sheet(images, masks, kinds, experiments, notes_of(runs))


def variance(runs: Sequence[Run], index: Index) -> Figure:
    """Variance maps of a category."""
    shown = first_seeds(runs)
    extras = {label: _extras(run) for label, run in shown.items()}
    variances = {label: own.variance for label, own in extras.items() if own is not None and own.variance is not None}
    chosen, images, masks, kinds = _samples(shown, index)
    return variance_maps(images, masks, kinds, {label: own[chosen] for label, own in variances.items()}, notes_of(runs))


def histograms(runs: Sequence[Run], index: Index) -> Figure:
    """Score histograms of a category."""
    experiments = []
    for label, run in first_seeds(runs).items():
        images = pd.read_csv(run.folder / "images.csv")
        curves = _curves(run)
        experiments.append(
            Distribution(
                label=label,
                image_scores=images.score.to_numpy(float),
                image_labels=images.label.to_numpy() == 1,
                edges=curves["pixel_histogram_edges"],
                normal=curves["pixel_histogram_normal"],
                anomalous=curves["pixel_histogram_anomalous"],
                image_threshold=float(run.metrics.get("image_f1_threshold", math.nan)),
                pixel_threshold=float(run.metrics.get("pixel_f1_threshold", math.nan)),
            )
        )
    return score_histograms(experiments, notes_of(runs))


def curves(runs: Sequence[Run], index: Index) -> Figure:
    """ROC, PR and PRO curves of a category."""
    shown = first_seeds(runs)
    own = {label: _curves(run) for label, run in shown.items()}
    return curves_of_category(own, {label: run.metrics for label, run in shown.items()}, notes_of(runs))


def latents(runs: Sequence[Run], index: Index) -> Figure:
    """t-SNE of the latents of a category."""
    found = {}
    for label, run in first_seeds(runs).items():
        extras = _extras(run)
        if extras is not None and extras.latents is not None and extras.latent_labels is not None:
            found[label] = (extras.latents, extras.latent_labels, str(extras.latent_scale))
    return latents_of_category(found, notes_of(runs))


def training(runs: Sequence[Run], index: Index) -> Figure:
    """Training curves of a category."""
    labels = {name: plain(label) for name, label in labels_of(runs).items()}
    histories: dict[str, list] = {label: [] for label in labels.values()}
    for run in runs:
        file = run.folder / "train.json"
        if run.epoch is None and file.exists():
            histories[labels[run.experiment]].append(read_json(file).get("history") or [])
    return training_curves(histories, notes_of(runs))


def bars(runs: Sequence[Run], metric: str) -> Figure:
    """Bars of one metric over all data sets and categories."""
    last = [run for run in runs if run.epoch is None]
    labels = {name: plain(label) for name, label in labels_of(last).items()}
    groups = []
    for dataset in in_order(run.dataset for run in last):
        here = [run for run in last if run.dataset == dataset]
        categories = in_order(run.category for run in here)
        measured = {}
        for experiment in in_order(run.experiment for run in here):
            by_category = {
                category: [
                    float(run.metrics.get(metric, math.nan))
                    for run in here
                    if (run.category, run.experiment) == (category, experiment)
                ]
                for category in categories
            }
            cells = [_mean_std(values) for values in by_category.values()]
            means = [mean for mean, _ in cells if not math.isnan(mean)]
            complete = len(means) == len(categories)
            mean = (float(np.mean(means)) if complete else math.nan, math.nan)
            measured[labels[experiment]] = [*cells, mean] if len(categories) > 1 else cells
        whole = covers(categories, dataset)
        published = {}
        for column in best_columns(dataset, metric):
            values = [column.values.get(category) for category in categories]
            published[column.method] = (
                [*values, column.mean(categories, whole=whole)] if len(categories) > 1 else values
            )
        names = [*map(plain, categories), *(["mean"] if len(categories) > 1 else [])]
        groups.append(Group(plain(dataset), names, measured, published))
    return metric_bars(METRIC_TITLES[metric], groups, notes_of(last))


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _samples(shown: dict[str, Run], index: Index) -> tuple[list[int], np.ndarray, np.ndarray, list[str]]:
    """Indices, images, masks and kinds of defect of the test images to show, at the first experiment's input size."""
    scores = _scores(next(iter(shown.values())), index)
    chosen = choose_samples(scores.defect_types, image_scores(anomaly_maps(scores, scores.input_size)))
    # Only these images are read: a test set may have thousands.
    table = index.test.iloc[chosen]
    part = dataclasses.replace(index, table=table.reset_index(drop=True))
    images = load_images(part, "test", scores.input_size)
    masks = np.asarray(load_masks(part, scores.input_size))
    return chosen, np.asarray(images), masks, [plain(scores.defect_types[i]) for i in chosen]


def _only(scores: Scores, chosen: Sequence[int]) -> Scores:
    """The scores of some images."""
    return Scores(
        kind=scores.kind,
        grids={name: grid[list(chosen)] for name, grid in scores.grids.items()},
        constants=scores.constants,
        paths=[scores.paths[i] for i in chosen],
        labels=scores.labels[list(chosen)],
        defect_types=[scores.defect_types[i] for i in chosen],
        input_size=scores.input_size,
    )


def _scores(run: Run, index: Index) -> Scores:
    scores = Scores.load(run.folder / "scores.npz")
    if scores.paths != [str(image) for image in index.test.image]:
        raise IntegrityError(
            f"Expected the scores in {run.folder} to be of the images of {index.dataset}/{index.category}, but they "
            "are of others: the data set has changed since. Score the run again."
        )
    return scores


def _extras(run: Run) -> Extras | None:
    file = run.folder / "extras.npz"
    return Extras.load(file) if file.exists() else None


def _curves(run: Run) -> dict[str, np.ndarray]:
    path: Path = run.folder / "curves.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise IntegrityError(f"Expected curves in {path}, but got: {error}. Evaluate the run again.") from error
