"""Score the test images of a category with a fitted detector, in one pass.

Extras for figures come from the same pass: the variance that the method predicts, and latent vectors of a seeded
sample of locations.

Shapes: B images of N, C channels, h x w cells of a scale's grid, M sampled locations.
"""

import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy import ndarray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.config.experiment import SCORED_AT_ONCE
from sanflow.data.images import ImageCache, load_images, load_masks
from sanflow.data.index import Index
from sanflow.device import repeatable
from sanflow.errors import DataError
from sanflow.memory import batches_that_fit
from sanflow.methods.checkpoints import Checkpoint, load_checkpoint
from sanflow.methods.method import Detector, Output
from sanflow.methods.registry import detector_method
from sanflow.provenance import Step, code_digest

# Of each class, normal and defective locations.
SAMPLED_LOCATIONS = 500
BATCH_SIZE = {"cpu": SCORED_AT_ONCE, "cuda": 32}


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
        checkpoint_path: Of a detector fitted on this category.
        index: The category.
        device: `auto`, `cuda` or `cpu`.
        cache: The image cache; None decodes into memory.
        batch_size: Images at once; 8 on a CPU, 32 on a GPU if None.

    Returns:
        Scores, and extras for figures; both in the order of the index.

    Raises:
        DataError: If the checkpoint belongs to another data set or category, or the category has no test images.
        IntegrityError: If the checkpoint is damaged.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    _require_same_category(checkpoint, index)
    if index.test.empty:
        raise DataError(
            f"Expected test images in the index of {index.dataset}/{index.category}, but it has none. Score new images "
            "with `sanflow predict`, or add test images and run `sanflow index` again."
        )
    method = detector_method(checkpoint.experiment.method)
    with repeatable():
        detector = method.load(checkpoint, device)
        test_NHW3 = load_images(index, "test", detector.input_size, cache=cache)
        batch_size = batch_size or BATCH_SIZE["cpu" if detector.device.startswith("cpu") else "cuda"]
        collected = _Collected(index, checkpoint.provenance.seed or 0)
        start = time.perf_counter()
        for first, output in _outputs(detector, test_NHW3, batch_size):
            collected.add(first, output)
        seconds = time.perf_counter() - start
    step = Step(code_digest("score", method.load_modules), detector.device, detector.precision)
    scores = collected.scores(detector, checkpoint, step, seconds)
    scores.require_finite(f"the scores of {checkpoint_path}")
    return scores, collected.extras()


def _outputs(detector: Detector, images_NHW3: ndarray, batch_size: int) -> Iterator[tuple[int, Output]]:
    """Give the first index and the outputs of each batch, with a progress bar on a terminal.

    Where memory runs out, the rest is scored in smaller batches.
    """

    def score_part(part: slice) -> Output:
        images_BHW3 = torch.from_numpy(np.array(images_NHW3[part]))
        return detector(images_BHW3.pin_memory() if torch.cuda.is_available() else images_BHW3, extras=True)

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("scoring", total=len(images_NHW3))
        for part, output in batches_that_fit(len(images_NHW3), batch_size, score_part):
            yield part.start, output
            progress.update(task, completed=part.stop)


class _Collected:
    """The outputs of all batches, in host memory."""

    def __init__(self, index: Index, seed: int) -> None:
        self.index, self.seed = index, seed
        self.grids: dict[str, list[Tensor]] = {}
        self.image_scores: list[Tensor] = []
        self.variance: list[Tensor] = []
        self.latents: list[Tensor] = []
        self.latent_scale: str | None = None
        self._chosen_M = np.empty(0, int)
        self._masks_Nhw = np.empty((0, 0, 0), bool)

    def add(self, first: int, output: Output) -> None:
        """Keep the output of the images from index `first` on."""
        for name, grid_Bhw in output.grids.items():
            self.grids.setdefault(name, []).append(grid_Bhw.float().cpu())
        if output.image_scores is not None:
            self.image_scores.append(output.image_scores.float().cpu())
        if output.variance_Bhw is not None:
            self.variance.append(output.variance_Bhw.half().cpu())
        # Without masks it is unknown which locations of a defective image are normal.
        if output.latents_NC is not None and output.latent_scale is not None and self.index.knows_pixels:
            self._add_latents(first, output.latents_NC, output.grids[output.latent_scale], output.latent_scale)

    def _add_latents(self, first: int, latents_NC: Tensor, grid_Bhw: Tensor, scale: str) -> None:
        """Keep the latents of the sampled locations of a batch."""
        if self.latent_scale is None:
            self.latent_scale = scale
            self._masks_Nhw = np.asarray(load_masks(self.index, size=(grid_Bhw.shape[1], grid_Bhw.shape[2])))
            self._chosen_M = sample_locations(self._masks_Nhw, self.seed)
        cells = grid_Bhw[0].numel()
        start, stop = np.searchsorted(self._chosen_M, [first * cells, (first + len(grid_Bhw)) * cells])
        rows = torch.from_numpy(self._chosen_M[start:stop] - first * cells).to(latents_NC.device)
        self.latents.append(latents_NC[rows].half().cpu())

    def scores(self, detector: Detector, checkpoint: Checkpoint, step: Step, seconds: float) -> Scores:
        """Return all scores."""
        table = self.index.test
        provenance = checkpoint.provenance.with_step("score", step).to_dict()
        return Scores(
            kind=detector.kind,
            grids={name: torch.cat(parts).numpy() for name, parts in self.grids.items()},
            constants=dict(detector.constants),
            paths=[str(path) for path in table.image],
            labels=table.label.to_numpy() == 1,
            defect_types=[str(kind) for kind in table.defect_type],
            input_size=detector.input_size,
            image_scores=torch.cat(self.image_scores).numpy() if self.image_scores else None,
            **_held_out(checkpoint),
            provenance={**provenance, "checkpoint_digest": checkpoint.digest},
            cost={
                "images_per_second": len(table) / seconds,
                "seconds": seconds,
                "images": len(table),
                "device": detector.device,
            },
        )

    def extras(self) -> Extras:
        """Return what only figures need."""
        latents_MC = torch.cat(self.latents).numpy() if self.latents else None
        return Extras(
            paths=[str(path) for path in self.index.test.image],
            variance=torch.cat(self.variance).numpy() if self.variance else None,
            latents=latents_MC,
            latent_labels=None if latents_MC is None else self._masks_Nhw.reshape(-1)[self._chosen_M],
            latent_scale=self.latent_scale,
        )


def _held_out(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the fields of `Scores` that hold what the checkpoint knows of held-out parts."""
    if checkpoint.held_out is None:
        return {}
    found = {"held_out_scores": np.asarray(checkpoint.held_out["scores"])}
    if "parts" in checkpoint.held_out:
        found["held_out_parts"] = np.unique(checkpoint.held_out["parts"], return_inverse=True)[1]
    return found


def sample_locations(masks_Nhw: ndarray, seed: int) -> ndarray:
    """Draw the flat indices of up to 500 normal and 500 defective locations, sorted.

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


def _require_same_category(checkpoint: Checkpoint, index: Index) -> None:
    made_for = (checkpoint.provenance.dataset, checkpoint.provenance.category)
    if made_for != (index.dataset, index.category):
        raise DataError(
            f"Expected a checkpoint of {index.dataset}/{index.category}, but got one of "
            f"{made_for[0]}/{made_for[1]}. Name the checkpoint that is beside this index."
        )
