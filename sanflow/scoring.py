"""What a trained model says about every test image: log-probabilities per scale, and what calibrates them.

The constants that make a score depend on its image alone come from normal training images, here, with the model that
is scored. Extras for figures: predicted variance maps, and latents of a seeded sample of locations.

Shapes: B images of N, C channels, H x W pixels, h x w cells of a scale's grid, M sampled locations.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sanflow.anomaly_maps.fusion import calibration_constants
from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.data.images import ImageCache, load_images, load_masks
from sanflow.data.index import Index
from sanflow.device import (
    MEMORY_FORMAT,
    autocast,
    choose_device,
    device_name,
    placed,
    repeatable,
    usable_precision,
)
from sanflow.encoders import Encoder
from sanflow.errors import DataError
from sanflow.methods.checkpoints import Checkpoint, load_checkpoint
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.provenance import code_digest, environment

MOST_CALIBRATION_IMAGES = 400
# Of each class, normal and defective locations.
SAMPLED_LOCATIONS = 500
VARIANCE_STRIDE = 4
BATCH_SIZE = {"cpu": 8, "cuda": 32}


def score(
    checkpoint_path: str | os.PathLike[str],
    index: Index,
    *,
    device: str = "auto",
    cache: ImageCache | None = None,
    batch_size: int | None = None,
) -> tuple[Scores, Extras]:
    """Score the test images of a category.

    Arguments:
        checkpoint_path: Of a model trained on (or imported for) this category.
        index: The category.
        device: `auto`, `cuda` or `cpu`.
        cache: The image cache; None decodes into memory.
        batch_size: Images at once; 8 on a CPU, 32 on a GPU if None.

    Returns:
        Scores, and extras for figures; both in the order of the index.

    Raises:
        DataError: If the checkpoint belongs to another data set or category.
        IntegrityError: If the checkpoint is damaged.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    _require_same_category(checkpoint, index)
    chosen = choose_device(device)
    with repeatable():
        scorer = Scorer.of(checkpoint, chosen, batch_size or BATCH_SIZE[chosen.type])
        train_NHW3 = load_images(index, "train", checkpoint.input_size, cache=cache)
        test_NHW3 = load_images(index, "test", checkpoint.input_size, cache=cache)
        calibration = _evenly(len(train_NHW3), MOST_CALIBRATION_IMAGES)
        constants = calibration_constants(scorer.grids(train_NHW3[calibration], "calibrating"))
        start = time.perf_counter()
        grids = scorer.grids(test_NHW3, "scoring")
        seconds = time.perf_counter() - start
        extras = _extras(scorer, test_NHW3, index, grids, checkpoint.seed)
    names = [f"scale{scale}" for scale in range(len(grids))]
    scores = Scores(
        kind="log_prob",
        grids=dict(zip(names, grids, strict=True)),
        constants=dict(zip(names, constants, strict=True)),
        paths=[str(path) for path in index.test.image],
        labels=index.test.label.to_numpy() == 1,
        defect_types=[str(kind) for kind in index.test.defect_type],
        input_size=checkpoint.input_size,
        provenance=_provenance(checkpoint, index, scorer, len(calibration)),
        cost={
            "images_per_second": len(test_NHW3) / seconds,
            "seconds": seconds,
            "images": len(test_NHW3),
            "device": device_name(chosen),
        },
    )
    scores.require_finite(f"the scores of {checkpoint_path}")
    return scores, extras


@dataclass
class Scorer:
    """A model with its encoder on a device, ready to score batches of bytes.

    Arguments:
        model: In eval mode.
        encoder: The one it was trained with.
        device: Where both are.
        precision: Of matrix products and convolutions.
        batch_size: Images at once.
    """

    model: AnomalyFlow
    encoder: Encoder
    device: torch.device
    precision: Any
    batch_size: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device, batch_size: int) -> "Scorer":
        """From a checkpoint."""
        return cls(
            placed(checkpoint.build_model(), device),
            placed(checkpoint.build_encoder(), device),
            device,
            usable_precision(checkpoint.experiment.precision, device),
            batch_size,
        )

    def batches(self, images_NHW3: ndarray, task: str) -> Iterator[tuple[int, Tensor]]:
        """First index and normalised images_B3HW of each batch, with a progress bar on a terminal."""
        console = Console(stderr=True)
        starts = range(0, len(images_NHW3), self.batch_size)
        quiet = not console.is_terminal
        for start in track(starts, description=task, console=console, disable=quiet, transient=True):
            images_BHW3 = torch.from_numpy(np.array(images_NHW3[start : start + self.batch_size]))
            if self.device.type == "cuda":
                images_BHW3 = images_BHW3.pin_memory()
            yield start, self.normalised(images_BHW3)

    def normalised(self, images_BHW3: Tensor) -> Tensor:
        """Bytes to what the encoder sees."""
        images_B3HW = images_BHW3.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        constants = torch.tensor([self.encoder.mean, self.encoder.std]).to(self.device, non_blocking=True)
        images_B3HW = (images_B3HW - constants[0, :, None, None]) / constants[1, :, None, None]
        return images_B3HW.contiguous(memory_format=MEMORY_FORMAT)

    def grids(self, images_NHW3: ndarray, task: str) -> list[ndarray]:
        """For each scale log p / C of every location, (N, h, w) float32."""
        parts: list[list[Tensor]] = []
        with torch.inference_mode(), autocast(self.precision, self.device):
            for _, images_B3HW in self.batches(images_NHW3, task):
                parts.append(self.model.log_prob_grids(self.encoder(images_B3HW), images_B3HW))
        return [torch.cat(scale).float().cpu().numpy() for scale in zip(*parts, strict=True)]


def _extras(scorer: Scorer, images_NHW3: ndarray, index: Index, grids: list[ndarray], seed: int) -> Extras:
    """Variance maps of all test images and latents of sampled locations."""
    scale = min(1, len(grids) - 1)
    masks_Nhw = np.asarray(load_masks(index, size=(grids[scale].shape[1], grids[scale].shape[2])))
    chosen_M = sample_locations(masks_Nhw, seed)
    labels_M = masks_Nhw.reshape(-1)[chosen_M]
    cells = masks_Nhw[0].size
    variances, latents = [], []
    with torch.inference_mode(), autocast(scorer.precision, scorer.device):
        for start, images_B3HW in scorer.batches(images_NHW3, "variances and latents"):
            variance_BHW = scorer.model.variance(images_B3HW)
            if variance_BHW is not None:
                variances.append(F.avg_pool2d(variance_BHW[:, None].float(), VARIANCE_STRIDE)[:, 0].cpu())
            first, last = np.searchsorted(chosen_M, [start * cells, (start + len(images_B3HW)) * cells])
            if first < last:
                rows = torch.from_numpy(chosen_M[first:last] - start * cells).to(scorer.device)
                latents.append(_latents(scorer, images_B3HW, scale, rows).cpu())
    return Extras(
        paths=[str(path) for path in index.test.image],
        variance=torch.cat(variances).numpy().astype(np.float16) if variances else None,
        latents=torch.cat(latents).numpy().astype(np.float16) if latents else None,
        latent_labels=labels_M if latents else None,
        latent_scale=f"scale{scale}" if latents else None,
    )


def _latents(scorer: Scorer, images_B3HW: Tensor, scale: int, rows_M: Tensor) -> Tensor:
    """Latents of some locations of a batch."""
    features_NC, condition_P = scorer.model.locations(scorer.encoder(images_B3HW)[scale])
    z_MC, _ = scorer.model.flows[scale](features_NC[rows_M], condition_P[rows_M % len(condition_P)])
    return z_MC.float()


def sample_locations(masks_Nhw: ndarray, seed: int) -> ndarray:
    """Flat indices of up to 500 normal and 500 defective locations, sorted.

    Example:
        >>> masks_Nhw = np.zeros((2, 30, 30), bool)
        >>> masks_Nhw[1, 0, :5] = True
        >>> chosen_M = sample_locations(masks_Nhw, seed=0)
        >>> len(chosen_M), int(masks_Nhw.reshape(-1)[chosen_M].sum())
        (505, 5)
    """
    random = np.random.RandomState(seed % 2**32)
    flat = masks_Nhw.reshape(-1)
    chosen = []
    for where in (np.flatnonzero(~flat), np.flatnonzero(flat)):
        chosen.append(random.choice(where, size=min(SAMPLED_LOCATIONS, len(where)), replace=False))
    return np.sort(np.concatenate(chosen))


def _evenly(n: int, most: int) -> ndarray:
    """At most `most` of n places, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _require_same_category(checkpoint: Checkpoint, index: Index) -> None:
    made_for = tuple(checkpoint.provenance.get(name) for name in ("dataset", "category"))
    if made_for != (index.dataset, index.category):
        raise DataError(
            f"Expected a checkpoint of {index.dataset}/{index.category}, but got one of "
            f"{made_for[0]}/{made_for[1]}. Name the checkpoint that stands beside this index."
        )


def _provenance(checkpoint: Checkpoint, index: Index, scorer: Scorer, n_calibration: int) -> dict[str, Any]:
    trained = checkpoint.provenance
    return {
        "experiment": checkpoint.experiment.model_dump(mode="json"),
        "experiment_name": trained.get("experiment_name"),
        "dataset": index.dataset,
        "category": index.category,
        "seed": checkpoint.seed,
        "epoch": trained.get("epoch"),
        "encoder": checkpoint.encoder_identity,
        "index_digest": index.digest,
        "checkpoint_digest": checkpoint.digest,
        "config_digest": trained.get("config_digest"),
        "code_digest": code_digest("score"),
        "training_code_digest": trained.get("code_digest"),
        "versions": environment(),
        "device": device_name(scorer.device),
        "precision": scorer.precision,
        "calibration_images": n_calibration,
    }
