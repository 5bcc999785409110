"""Evaluate one run: read scores and index, write metrics.json, images.csv and curves.npz.

The headline is measured with calibrated fusion at the input's resolution. Metrics of test-set fusion and of native
resolution have the prefixes `testset_*` and `native_*`. Regions with saturation thresholds are measured at the images'
own size always. All metrics are fractions; NaN where a class is missing.

Shapes: N test images, H x W the input size.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sanflow.anomaly_maps.maps import anomaly_maps, anomaly_maps_at, image_scores
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.config.experiment import Experiment
from sanflow.data.images import load_masks
from sanflow.data.index import Index, read_index
from sanflow.data.parts import PART, parts_of
from sanflow.data.vanished import load_masks_and_losses
from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import metrics_of
from sanflow.evaluation.metrics import (
    MetricWarning,
    PixelMeasures,
    SaturatedMeasures,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    bootstrap_saturated_metrics,
    image_metrics,
    pixel_curves,
    pixel_metrics,
    pr_curve,
    roc_curve,
)
from sanflow.evaluation.operating_point import operating_points
from sanflow.evaluation.subsets import NativeImages, by_group, by_kind, measured_here
from sanflow.files import atomic_path, read_json, sha256_of_file, write_json
from sanflow.provenance import Step, code_digest

Resolution = Literal["input", "native"]
HISTOGRAM_BINS = 200


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation of one run.

    Arguments:
        metrics: Content of metrics.json.
        images: Content of images.csv, a row per test image in the order of the index.
        curves: Content of curves.npz.
        index: The category that was evaluated.
    """

    metrics: dict[str, Any]
    images: pd.DataFrame
    curves: dict[str, np.ndarray]
    index: Index

    def write(
        self,
        metrics: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        curves: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write the three files, metrics.json last: once it exists, the others are complete.

        Arguments:
            metrics: Path of metrics.json.
            images: Path of images.csv; beside metrics.json if None.
            curves: Path of curves.npz; beside metrics.json if None.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        with atomic_path(curves or Path(metrics).with_name("curves.npz")) as temporary:
            np.savez_compressed(temporary, **self.curves)  # type: ignore[arg-type]
        with atomic_path(images or Path(metrics).with_name("images.csv")) as temporary:
            self.images.to_csv(temporary, index=False, lineterminator="\n")
        write_json(metrics, self.metrics)


def evaluate(scores: Scores, index: Index, *, evaluate_at: Resolution = "input", resamples: int = 1000) -> Evaluation:
    """Measure the scores of one run against the ground truth.

    Arguments:
        scores: From a scores file.
        index: The category they belong to.
        evaluate_at: `native` measures at the originals' resolution too; it needs memory for all maps at once.
        resamples: Of the bootstrap over parts, for the 95 % intervals of the headline metrics.

    Returns:
        All metrics; without pixel metrics where no defective image has a mask.

    Raises:
        DataError: If a score is not finite, or a mask cannot be read.
        IntegrityError: If the scores belong to another index.
    """
    index.require_same(scores.paths, scores.provenance.get("index_digest"))
    scores.require_finite(f"the scores of {index.dataset}/{index.category}")
    parts_N = parts_of(index.test).to_numpy(str) if PART in index.test else None
    masks_NHW, vanished = load_masks_and_losses(index, scores.input_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MetricWarning)
        maps_NHW = anomaly_maps(scores, scores.input_size)
        image_N = image_scores(maps_NHW, scores)
        metrics: dict[str, Any] = image_metrics(image_N, scores.labels)
        curves = _flat({"roc": roc_curve(image_N, scores.labels), "pr": pr_curve(image_N, scores.labels)}, "image")
        intervals = bootstrap_image_metrics(image_N, scores.labels, parts=parts_N, resamples=resamples)
        aupimo_N = np.full(len(image_N), np.nan)
        if index.knows_pixels:
            measures = PixelMeasures(maps_NHW, masks_NHW)
            pixels = measures.metrics("pixel")
            metrics |= measured_here(pixels, index)
            curves |= _histograms(maps_NHW, ~masks_NHW, masks_NHW)
            curves |= _flat(pixel_curves(maps_NHW, masks_NHW, ranking=measures.ranking), "pixel")
            pixel_intervals = bootstrap_pixel_metrics(
                maps_NHW, masks_NHW, parts=parts_N, resamples=resamples, exact=pixels
            )
            intervals |= measured_here(pixel_intervals, index)
            aupimo_N = measures.aupimo_N
            del measures
        else:
            # Pixels of good images are normal; those of other images are unknown.
            normal_NHW = np.broadcast_to(~scores.labels[:, None, None], maps_NHW.shape)
            curves |= _histograms(maps_NHW, normal_NHW, masks_NHW)
            curves |= _flat(dict.fromkeys(("roc", "pr", "pro"), (np.empty(0), np.empty(0))), "pixel")
        known_NHW = masks_NHW if index.knows_pixels else None
        if "group" in index.test:
            metrics |= by_group(index, scores, image_N, maps_NHW, known_NHW)
        if index.saturations:
            curves |= _flat({"pro": (np.empty(0), np.empty(0))}, "pixel")  # it would be that of AUPRO
            saturated = SaturatedMeasures(NativeImages(scores, index))
            metrics |= saturated.metrics() | by_kind(index, scores, image_N, maps_NHW, masks_NHW, saturated)
            intervals |= bootstrap_saturated_metrics(saturated, parts=parts_N, resamples=resamples)
        del maps_NHW
        testset_N = _add_testset(metrics, scores, index, known_NHW)
        if evaluate_at == "native" and index.knows_pixels:
            _add_native(metrics, scores, index)
    images = pd.DataFrame(
        {
            "image": scores.paths,
            "label": scores.labels.astype(int),
            "defect_type": scores.defect_types,
            "score": image_N,
            "testset_score": testset_N,
            "defect_pixels": masks_NHW.sum(axis=(1, 2)) if index.knows_pixels else None,
            "aupimo": aupimo_N,
        }
    )
    curves |= {f"resampled_{name}": interval.values_B.astype(np.float32) for name, interval in intervals.items()}
    metrics = {name: metrics[name] for name in headline_of(index.dataset) if name in metrics} | metrics
    metrics["intervals"] = {
        name: [interval.low, interval.high] for name, interval in intervals.items() if not math.isnan(interval.low)
    }
    metrics["interval_confidence"] = 0.95
    metrics["operating_point"] = operating_points(
        image_N,
        scores.labels,
        scores.held_out_scores,
        parts_N=parts_N,
        held_out_parts_M=scores.held_out_parts,
    )
    metrics["input_size"] = list(scores.input_size)
    metrics["evaluate_at"] = evaluate_at
    metrics["counts"] = {
        "test_images": len(scores.paths),
        "anomalous": int(scores.labels.sum()),
        "training_images": len(index.train),
    } | ({} if parts_N is None else {"test_parts": len(set(parts_N))})
    metrics["warnings"] = sorted({str(warning.message) for warning in caught} | {*vanished.warnings(), *index.warnings})
    metrics["provenance"] = {
        **scores.provenance,
        "index_digest": index.digest,
        "steps": {**scores.provenance.get("steps", {}), "evaluate": dataclasses.asdict(Step(code_digest("evaluate")))},
    }
    metrics["cost"] = {f"scoring_{name}": value for name, value in scores.cost.items()}
    return Evaluation(metrics, images, curves, index)


def evaluate_files(
    scores_path: str | os.PathLike[str],
    index_path: str | os.PathLike[str],
    *,
    experiment: Experiment | None = None,
    history_path: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    resamples: int = 1000,
) -> Evaluation:
    """Evaluate a scores file.

    Arguments:
        scores_path: scores.npz.
        index_path: index.csv of its category.
        experiment: The experiment as the benchmark file has it now: its label and its resolution may have changed since
            the scoring, which does not depend on them. None: as it was then.
        history_path: train.json, for the cost of training and its images; None where nothing was trained here.
        data_root: Folder of the data set now, if it was moved since it was indexed.
        resamples: Of the bootstrap.
    """
    scores = Scores.load(scores_path)
    index = read_index(Path(index_path), root=None if data_root is None else Path(data_root))
    settings = (scores.provenance.get("experiment") or {}) | (experiment.model_dump(mode="json") if experiment else {})
    evaluation = evaluate(scores, index, evaluate_at=settings.get("evaluate_at") or "input", resamples=resamples)
    evaluation.metrics["provenance"]["experiment"] = settings
    evaluation.metrics["provenance"]["scores_digest"] = sha256_of_file(scores_path)
    if history_path is not None:
        train = read_json(history_path)
        evaluation.metrics["cost"] |= training_cost(train)
        # Without the parts that were held out, which the index does not know of.
        counts = evaluation.metrics["counts"]
        counts["training_images"] = train.get("training_images", counts["training_images"])
    return evaluation


def training_cost(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost of a training, under its names in metrics.json, from the content of train.json.

    Example:
        >>> training_cost({"seconds": {"total": 60.0, "encoder": 20.0}, "images_per_second": 8.0, "device": "cpu"})
        {'training_seconds': 60.0, 'training_images_per_second': 8.0, 'device': 'cpu'}
    """
    seconds, choosing = train.get("seconds"), None
    if isinstance(seconds, Mapping):
        choosing = seconds.get("validation")
        seconds = seconds["total"] if "total" in seconds else sum(seconds.values())
    cost = {
        "training_seconds": seconds,
        "validation_seconds": choosing,
        "training_images_per_second": train.get("images_per_second"),
        "peak_memory_bytes": train.get("peak_memory_bytes"),
        "energy_joules": train.get("energy_joules"),
        "parameters": train.get("parameters"),
        "checkpoint_bytes": train.get("checkpoint_bytes"),
        "device": train.get("device"),
    }
    return {name: value for name, value in cost.items() if value is not None}


def _add_testset(metrics: dict[str, Any], scores: Scores, index: Index, masks_NHW: np.ndarray | None) -> np.ndarray:
    """Add all metrics of test-set fusion; returns its image scores."""
    maps_NHW = anomaly_maps(scores, scores.input_size, "testset")
    image_N = image_scores(maps_NHW, scores)
    found = image_metrics(image_N, scores.labels)
    if masks_NHW is not None:
        found |= measured_here(pixel_metrics(maps_NHW, masks_NHW), index)
    if index.saturations and scores.kind == "log_prob":
        del maps_NHW
        found |= SaturatedMeasures(NativeImages(scores, index, "testset")).metrics()
    elif index.saturations:  # finished maps are the same in both fusions
        found |= {name: metrics[name] for name in metrics_of("region")}
    metrics |= {f"testset_{name}": value for name, value in found.items()}
    return image_N


def _add_native(metrics: dict[str, Any], scores: Scores, index: Index) -> None:
    """Add all metrics of both fusions at the originals' resolution."""
    masks = [np.asarray(mask_HW) for mask_HW in load_masks(index)]
    sizes = [(mask_HW.shape[0], mask_HW.shape[1]) for mask_HW in masks]
    for prefix, fusion in (("native_", "calibrated"), ("testset_native_", "testset")):
        maps = anomaly_maps_at(scores, sizes, "testset" if fusion == "testset" else "calibrated")
        found = image_metrics(image_scores(maps, scores), scores.labels)
        found |= measured_here(pixel_metrics(maps, masks), index)
        metrics |= {prefix + name: value for name, value in found.items()}


def _histograms(maps_NHW: np.ndarray, normal_NHW: np.ndarray, anomalous_NHW: np.ndarray) -> dict[str, np.ndarray]:
    """Count pixel scores in histograms by ground truth."""
    edges = np.linspace(float(maps_NHW.min()), float(maps_NHW.max()) or 1.0, HISTOGRAM_BINS + 1)
    if edges[0] >= edges[-1]:
        edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, HISTOGRAM_BINS + 1)
    return {
        "pixel_histogram_edges": edges,
        "pixel_histogram_normal": np.histogram(maps_NHW[normal_NHW], edges)[0],
        "pixel_histogram_anomalous": np.histogram(maps_NHW[anomalous_NHW], edges)[0],
    }


def _flat(curves: dict[str, tuple[np.ndarray, np.ndarray]], level: str) -> dict[str, np.ndarray]:
    """Turn curves into entries of an archive: <level>_<curve>_x and _y."""
    return {
        f"{level}_{name}_{axis}": values
        for name, curve in curves.items()
        for axis, values in zip("xy", curve, strict=True)
    }
