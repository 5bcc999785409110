"""Shared by all fits: digests, provenance, and the writing of checkpoint and train.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sanflow.data.index import Index
from sanflow.encoders import Encoder, build_encoder
from sanflow.files import write_json
from sanflow.methods.checkpoints import Checkpoint, save_checkpoint
from sanflow.methods.cost import Cost
from sanflow.methods.method import FitJob
from sanflow.methods.registry import detector_method
from sanflow.provenance import Provenance, Step, environment, fit_digest, modules_digest


class FitFiles:
    """Write the outputs of one fit and log it.

    Arguments:
        job: The fit.
        device: Name of its device.
        precision: Of its matrix products and convolutions.

    Attributes:
        config_digest: Of the settings and of the files they name.
        code_digest: Of the code that decides the result.
    """

    def __init__(self, job: FitJob, device: str, precision: str) -> None:
        self.job = job
        self.device, self.precision = device, precision
        index = job.index
        self.config_digest = fit_digest(job.experiment, index.dataset, index.category)
        self.code_digest = modules_digest(detector_method(job.experiment.method).fit_modules)
        self._known: dict[str, Any] = {
            "job": {
                "dataset": index.dataset,
                "category": index.category,
                "experiment": job.name,
                "seed": job.seed,
                "settings": job.settings,
            },
            "device": device,
            "precision": precision,
            "training_images": len(job.training.train),
            "digests": {"config": self.config_digest, "data": index.digest, "code": self.code_digest},
            "versions": environment(),
        }
        job.tracker.log(self._known)

    def introduce(self, facts: Mapping[str, Any]) -> None:
        """Log what is fitted, and with what.

        Arguments:
            facts: What may differ between attempts: parameters, steps and so on.
        """
        self._known |= facts
        self.log_history([])

    def log_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs so far.

        Arguments:
            history: One mapping per epoch, JSON values.
        """
        self.job.tracker.log({**self._known, "history": list(history)})

    def write_checkpoint(
        self,
        path: Path,
        state: Mapping[str, Tensor],
        *,
        constants: Mapping[str, float],
        encoder: Encoder | None = None,
        encoder_state: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint of the detector as it is now.

        Arguments:
            path: The file.
            state: Named tensors of the method.
            constants: Name of a grid -> the constant that calibrates it.
            encoder: The encoder, whose identity is kept.
            encoder_state: Its tensors, only if they are in no other file.
            facts: Other values that the method needs to be built again, JSON values.
            epoch: The epoch, where there are epochs.
            history: One mapping per epoch, JSON values.
            details: Further facts for the provenance of the fit, JSON values.
        """
        job, index = self.job, self.job.index
        provenance = Provenance(
            dataset=index.dataset,
            category=index.category,
            experiment_name=job.name,
            experiment=job.experiment.model_dump(mode="json"),
            index_digest=index.digest,
            config_digest=self.config_digest,
            seed=job.seed,
            epoch=epoch,
            encoder=None if encoder is None else encoder.identity,
            steps={"fit": Step(self.code_digest, self.device, self.precision, details=dict(details or {}))},
        )
        save_checkpoint(
            path,
            Checkpoint(
                experiment=job.experiment,
                input_size=job.input_size,
                state=dict(state),
                constants=dict(constants),
                provenance=provenance,
                facts={"reading": dataclasses.asdict(index.reading), "image_size": _usual_size(index), **(facts or {})},
                encoder_state=None if encoder_state is None else dict(encoder_state),
                history=[dict(record) for record in history],
            ),
        )

    def write_record(self, cost: Cost, facts: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write train.json, and log it; the checkpoint has been written.

        Arguments:
            cost: Of all attempts.
            facts: Facts about the fit, JSON values; `images` is the number of images it used.
            history: One mapping per epoch, JSON values.
        """
        seconds = {**cost.seconds, "total": cost.total}
        # Sum over phases: a GPU computes a step after it was submitted, so single phases are not right.
        fitting = sum(seconds.get(phase, 0.0) for phase in ("steps", "waiting_for_data"))
        images = facts.get("images")
        record = {
            **self._known,
            **facts,
            "history": [dict(epoch) for epoch in history],
            "seconds": seconds,
            "images_per_second": images / fitting if images and fitting else None,
            "peak_memory_bytes": cost.peak(),
            "energy_joules": cost.energy(),
            "checkpoint_bytes": self.job.outputs.checkpoint.stat().st_size,
            "attempts": cost.attempts,
        }
        write_json(self.job.outputs.record, record)
        self.job.tracker.log(record)


def _usual_size(index: Index) -> list[int]:
    """Return the median height and width of the training images, in pixels."""
    return [int(index.train[side].median()) for side in ("height", "width")]


def encoder_of(experiment: Any, feature_scales: Sequence[float] | None = None) -> Encoder:
    """Build the encoder of an experiment, on the CPU.

    Arguments:
        experiment: An `EncoderExperiment`.
        feature_scales: What to divide each scale of the features by.
    """
    return build_encoder(
        experiment.encoder,
        weights=experiment.weights,
        taps=experiment.taps,
        scales=experiment.scales,
        padding=experiment.padding,
        feature_scales=feature_scales,
        tile_size=experiment.tile_size,
        tile_overlap=experiment.tile_overlap,
    )
