"""Choose an epoch, or compare settings, by good parts that the fit did not see: as they are, and with painted defects.

Nothing here reads a test image, or a label or mask of one. The parts are half of those that `calibration_fraction`
holds out. Each is painted with one defect of each kind of `sanflow.data.painted_defects`, with rough outlines, from the
seed of the run. SANFlow trains with rectangles, discs and rectangular scars, which are not among these kinds.

Shapes: N images, n of them good parts, H x W the input size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from sanflow.anomaly_maps.maps import fused
from sanflow.data.held_out import halve, split_training
from sanflow.data.images import ImageCache, load_images
from sanflow.data.index import Index
from sanflow.data.painted_defects import FRACTAL, KINDS, InvisibleDefect, paint_defect
from sanflow.data.photo_textures import FOREIGN, PHOTOGRAPHS, load_photograph
from sanflow.errors import ConfigError, DataError, TrainingError
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.methods.method import Detector
from sanflow.methods.registry import detector_method

# Of these measures, the one whose worst choice lost least AUPRO where all were compared (docs/protocol.md).
CRITERION = "region_overlap"
# Higher is better, each. `log_prob` exists for flows only.
MEASURES = ("pixel_ap", "region_overlap", "image_auroc", "log_prob")
PREFIX = "validation_"
MOST_PARTS = 16
STREAM = 7
BATCH_SIZE = 8
# False-positive rate up to which the overlap of regions counts, as in AUPRO.
OVERLAP_LIMIT = 0.3


@dataclasses.dataclass(frozen=True)
class ValidationImages:
    """Good parts that no fit saw, and copies of them with painted defects.

    Arguments:
        images_NHW3: uint8, the plain parts first.
        masks_NHW: True where a defect was painted.
    """

    images_NHW3: ndarray
    masks_NHW: ndarray

    @property
    def is_painted_N(self) -> ndarray:
        """True for the painted copies."""
        return np.asarray(self.masks_NHW.any(axis=(1, 2)))


def validation_images(
    index: Index, size: tuple[int, int], seed: int, *, cache: ImageCache | None = None
) -> ValidationImages:
    """Load good parts as test images are loaded, and paint a defect of each kind on each.

    A kind that cannot be seen on a part, such as blur on an even surface, is left out for it.

    Arguments:
        index: The parts, as the only test images; at most `MOST_PARTS` of them, evenly spread, are used.
        size: Height and width of the images.
        seed: Of the defects.
        cache: The image cache; None decodes into memory.

    Raises:
        DataError: If no painted defect can be seen on any part.
    """
    parts_nHW3 = load_images(index, "test", size, cache=cache)
    parts_nHW3 = np.array(parts_nHW3[:: -(-len(parts_nHW3) // MOST_PARTS)])
    # A piece of a category's own texture would be no defect.
    others = [load_photograph(name) for name in FOREIGN.get(index.category, PHOTOGRAPHS)]
    random = np.random.RandomState(np.random.SeedSequence([seed, STREAM]).generate_state(8))
    images, masks = list(parts_nHW3), [np.zeros(size, bool)] * len(parts_nHW3)
    for part_HW3 in parts_nHW3:
        for kind in KINDS:
            try:
                painted_HW3, mask_HW = paint_defect(kind, part_HW3, others, random, FRACTAL)
            except InvisibleDefect:
                continue
            images.append(painted_HW3)
            masks.append(mask_HW)
    if len(images) == len(parts_nHW3):
        raise DataError(
            f"Expected good parts of {index.dataset}/{index.category} on which a painted defect can be seen, but none "
            f"can on {len(parts_nHW3)} of them. Look at the images: they may be empty. Or set `choose_epoch: last`."
        )
    return ValidationImages(np.stack(images), np.stack(masks))


def validate(detector: Detector, images: ValidationImages) -> dict[str, float]:
    """Measure how well a detector finds the painted defects, and how likely the plain parts are.

    Arguments:
        detector: On its device.
        images: From `validation_images`.

    Returns:
        `pixel_ap`: average precision of the painted pixels among all pixels. `region_overlap`: mean overlap of painted
        regions up to a false-positive rate of 0.3, as AUPRO, rescaled to 0.5 for chance. `image_auroc`: painted against
        plain images. `log_prob`, of flows: mean of log p / C over scales and locations of the plain parts.

    Raises:
        TrainingError: If a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # loads slowly

    n_plain = int((~images.is_painted_N).sum())
    maps, image_scores, log_probs = [], [], []
    for first in range(0, len(images.images_NHW3), BATCH_SIZE):
        output = detector(torch.from_numpy(images.images_NHW3[first : first + BATCH_SIZE]))
        grids = {name: grid_Bhw.float().cpu().numpy() for name, grid_Bhw in output.grids.items()}
        maps.append(fused(detector.kind, grids, detector.constants, detector.input_size))
        own = output.image_scores
        image_scores.append(maps[-1].max(axis=(1, 2)) if own is None else own.float().cpu().numpy())
        log_probs.append(np.mean([grid_Bhw.mean(axis=(1, 2), dtype=np.float64) for grid_Bhw in grids.values()], axis=0))
    scores, masks = np.concatenate(maps).ravel(), images.masks_NHW.ravel()
    if not np.isfinite(scores).all():
        raise TrainingError(
            "Expected finite scores of the held-out parts, but got NaN or infinity: the model has diverged. Set "
            "`learning_rate` lower or `gradient_clip` (such as 1.0)."
        )
    area_N = np.maximum(images.masks_NHW.sum(axis=(1, 2), keepdims=True), 1)
    weights = np.where(images.masks_NHW, 1 / area_N, 1.0).ravel()  # so that each painted region counts alike
    found = {
        "pixel_ap": average_precision_score(masks, scores),
        "region_overlap": roc_auc_score(masks, scores, sample_weight=weights, max_fpr=OVERLAP_LIMIT),
        "image_auroc": roc_auc_score(images.is_painted_N, np.concatenate(image_scores)),
    }
    if detector.kind == "log_prob":
        found["log_prob"] = np.concatenate(log_probs)[:n_plain].mean()
    return {name: float(value) for name, value in found.items()}


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the epoch of the highest criterion; the first of equal ones, because it needs the least training.

    Arguments:
        history: One mapping per epoch, as in train.json; epochs without the criterion were not validated.

    Example:
        >>> values = {1: 0.6, 2: 0.7, 3: 0.7}
        >>> best_epoch([{"epoch": epoch, "validation_region_overlap": value} for epoch, value in values.items()])
        2
    """
    values = _criterion_by_epoch(history)
    return max(values, key=lambda epoch: (values[epoch], -epoch))


def is_out_of_patience(history: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Return whether the criterion has not improved for `patience` validated epochs; None is never out of patience.

    Example:
        >>> values = {1: 0.6, 2: 0.7, 3: 0.6}
        >>> history = [{"epoch": epoch, "validation_region_overlap": value} for epoch, value in values.items()]
        >>> is_out_of_patience(history, 1), is_out_of_patience(history, 2)
        (True, False)
    """
    values = _criterion_by_epoch(history)
    if patience is None or not values:
        return False
    best = best_epoch(history)
    return sum(epoch > best for epoch in values) >= patience


def _criterion_by_epoch(history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    key = PREFIX + CRITERION
    return {record["epoch"]: record[key] for record in history if key in record}


def index_of(checkpoint: Path) -> Path:
    """Find the index.csv of a run: that of the nearest folder above its checkpoint.

    Raises:
        DataError: If there is none.
    """
    found = next((file for folder in checkpoint.absolute().parents if (file := folder / "index.csv").is_file()), None)
    if found is None:
        raise DataError(
            f"Expected a checkpoint below the folder of its category's index.csv, as a benchmark writes it, but found "
            f"no index.csv above {checkpoint}. Name the folder of a run."
        )
    return found


def validate_checkpoint(path: Path, index: Index, *, device: str) -> dict[str, float]:
    """Validate a fitted detector by the half of its held-out parts that chooses.

    Arguments:
        path: A checkpoint of a fit with `calibration_fraction`, of any method.
        index: The category it was fitted on.
        device: `auto`, `cuda` or `cpu`.

    Raises:
        ConfigError: If no parts were held out.
        DataError: If the checkpoint is of other images.
    """
    checkpoint = load_checkpoint(path)
    provenance, seed = checkpoint.provenance, checkpoint.provenance.seed or 0
    if provenance.index_digest != index.digest:
        raise DataError(
            f"Expected a checkpoint of {index.dataset}/{index.category} as it is indexed ({index.digest[:12]}), but "
            f"{path} is of {provenance.dataset}/{provenance.category} ({provenance.index_digest[:12]}). Name the index "
            "that it was fitted with."
        )
    held_out = split_training(index, checkpoint.experiment.calibration_fraction, seed)[1]
    if held_out is None:
        raise ConfigError(
            f"Expected a fit with held-out parts, but {path} has `calibration_fraction: 0`. Fit it again with, for "
            "example, 0.2."
        )
    detector = detector_method(checkpoint.experiment.method).load(checkpoint, device)
    images = validation_images(halve(held_out, seed)[0], detector.input_size, seed)
    return validate(detector, images)
