"""Build the parts of one training: encoder, batches, model, optimizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from sanflow.data.images import load_images
from sanflow.device import placed, unit_images
from sanflow.encoders import Encoder, measure_feature_scales
from sanflow.errors import ConfigError
from sanflow.methods.fit import encoder_of
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batches
from sanflow.methods.flow.training.learner import Learner
from sanflow.methods.flow.training.replay import uses_cuda_graphs
from sanflow.methods.flow.training.step import Guard, Means, Stepper, make_optimizer
from sanflow.methods.method import FitJob
from sanflow.methods.validation import ValidationImages, validation_images

FEATURE_SCALE_BATCH = 8


@dataclass
class Parts:
    """The parts of one training, on their device.

    Arguments:
        encoder: Frozen.
        images_NHW3: All training images, uint8.
        anomalies: Draws and paints the synthetic anomalies; None if the experiment has none.
        batches: The batches by step.
        model: In training mode.
        stepper: Updates the model; it holds the optimizer and the guard.
        learner: Trains a batch.
        means: Means over the batches of the current epoch.
        validation: Held-out parts that choose the epoch; None if the last one is reported.
        steps_per_epoch: Batches of an epoch, all its passes together.
        n_steps: Batches of the training.
    """

    encoder: Encoder
    images_NHW3: ndarray
    anomalies: SyntheticAnomalies | None
    batches: Batches
    model: AnomalyFlow
    stepper: Stepper
    learner: Learner
    means: Means
    validation: ValidationImages | None
    steps_per_epoch: int
    n_steps: int

    @property
    def optimizer(self) -> torch.optim.Adam:
        """Adam over all weights of the model."""
        return self.stepper.optimizer

    @property
    def guard(self) -> Guard:
        """Counts skipped steps."""
        return self.stepper.guard


def build_parts(job: FitJob, device: torch.device, precision: Any, feature_scales: list[float] | None) -> Parts:
    """Build the parts of a training at its beginning.

    Arguments:
        job: The fit.
        device: Where everything runs.
        precision: Of matrix products and convolutions.
        feature_scales: What to divide the features by, from a saved state; None: measure them if the experiment wants.

    Raises:
        ConfigError: If there are too few training images for a batch, or too few locations for a step.
    """
    experiment, size = job.experiment, job.input_size
    encoder = placed(encoder_of(experiment, feature_scales), device)
    images_NHW3 = _load(job, size)
    if len(images_NHW3) < experiment.batch_size:
        raise ConfigError(
            f"Expected at least as many training images as a batch holds ({experiment.batch_size}), but "
            f"{job.index.dataset}/{job.index.category} has {len(images_NHW3)}. Set `batch_size` lower."
        )
    anomalies = SyntheticAnomalies(size, len(images_NHW3), job.seed) if experiment.synthetic_anomalies else None
    batches = Batches(
        images_NHW3,
        None if anomalies is None else _load(job, anomalies.foreign_size),
        batch_size=experiment.batch_size,
        seed=job.seed,
        anomalies=anomalies,
        rotation_degrees=experiment.rotation_degrees,
        pin=device.type == "cuda",
    )
    if experiment.locations_per_step is not None:
        _require_chunks(encoder, size, experiment.batch_size, experiment.locations_per_step)
    if experiment.normalize_features and feature_scales is None:
        encoder.set_feature_scales(measure_feature_scales(encoder, _plain_images(images_NHW3, encoder, device)))
    model = AnomalyFlow.from_experiment(encoder.channels, experiment, job.seed)
    placed(model, device).train()
    stepper = Stepper(
        model,
        make_optimizer(model),
        Guard(device),
        experiment.update,
        precision,
        experiment.gradient_clip,
        experiment.locations_per_step,
        job.seed,
        cuda_graphs=uses_cuda_graphs(device),
    )
    steps_per_epoch = batches.per_pass * experiment.passes_per_epoch
    choosing = job.choosing
    return Parts(
        encoder=encoder,
        images_NHW3=images_NHW3,
        anomalies=anomalies,
        batches=batches,
        model=model,
        stepper=stepper,
        learner=Learner(encoder, anomalies, stepper),
        means=Means(),
        validation=None if choosing is None else validation_images(choosing, size, job.seed, cache=job.cache),
        steps_per_epoch=steps_per_epoch,
        n_steps=steps_per_epoch * experiment.epochs,
    )


def _load(job: FitJob, size: tuple[int, int]) -> ndarray:
    return load_images(job.training, "train", size, cache=job.cache)


def _require_chunks(encoder: Encoder, size: tuple[int, int], batch_size: int, chunk: int) -> None:
    """Refuse a scale with fewer locations than a step takes: it would never be trained."""
    for number, (height, width) in enumerate(encoder.map_sizes(*size)):
        if batch_size * height * width < chunk:
            raise ConfigError(
                f"Expected at least `locations_per_step` ({chunk}) locations per batch at each scale, but scale "
                f"{number} has {batch_size} x {height} x {width}. Set `batch_size` to at least "
                f"{-(-chunk // (height * width))}, a larger `input_size`, or fewer `locations_per_step`."
            )


def _plain_images(images_NHW3: ndarray, encoder: Encoder, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(images_NHW3), FEATURE_SCALE_BATCH):
        images_BHW3 = torch.from_numpy(images_NHW3[start : start + FEATURE_SCALE_BATCH].copy())
        yield encoder.normalise(unit_images(images_BHW3, device))
