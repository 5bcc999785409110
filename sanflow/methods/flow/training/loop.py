"""The training of one model on one category with one seed; reads from top to bottom.

Shapes: B images, H x W pixels.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanflow.config import Experiment
from sanflow.data.images import ImageCache, load_images
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
from sanflow.encoders import Encoder, build_encoder, measure_feature_scales
from sanflow.errors import ConfigError, IntegrityError, StorageError, TrainingError
from sanflow.files import write_json
from sanflow.methods.checkpoints import save_checkpoint
from sanflow.methods.cost import Cost
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.schedule import learning_rate
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batches
from sanflow.methods.flow.training.pixels import normalised, prepare, to_device
from sanflow.methods.flow.training.progress import Progress
from sanflow.methods.flow.training.state import SaveClock, State, StateFolder, StateKey
from sanflow.methods.flow.training.step import Guard, Means, Stepper, make_optimizer, set_learning_rate, total_loss
from sanflow.methods.signals import StopSignals
from sanflow.provenance import code_digest, environment, environment_tags, training_digest
from sanflow.tracking import Tracker

logger = logging.getLogger(__name__)

# Skipped steps in a row after which training stops, and how often the device is asked for their number.
MOST_SKIPPED = 50
CHECK_EVERY = 50


@dataclass(frozen=True)
class Outputs:
    """Where a training writes.

    Arguments:
        checkpoint: The trained model.
        record: train.json: history and cost.
        state: Folder of the saved states; no rule's output.
        kept: Folder of the epochs that `keep_every` keeps; None if there are none.
    """

    checkpoint: Path
    record: Path
    state: Path
    kept: Path | None = None


def train(
    experiment: Experiment,
    index: Index,
    outputs: Outputs,
    tracker: Tracker,
    *,
    name: str,
    seed: int,
    device: str = "auto",
    cache: ImageCache | None = None,
    save_every_seconds: float = 300.0,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Train until the end, or until a signal: then the state is saved and the process exits with 130 or 143.

    A training that was stopped, in whatever way, goes on from its last state and ends with the same weights, bit for
    bit on one machine with one number of threads.

    Arguments:
        experiment: What to train.
        index: The category; only its training images are opened.
        outputs: Where to write.
        tracker: Told of parameters and of each epoch.
        name: Key of the experiment in the benchmark.
        seed: Of weights, order and anomalies.
        device: `auto`, `cuda` or `cpu`.
        cache: The image cache; None decodes into memory.
        save_every_seconds: Shortest time between two saves of the state.
        on_step: Called after each step with the number of steps done; for tests.

    Raises:
        ConfigError: If there are fewer training images than a batch holds.
        TrainingError: If step after step has a loss or gradient that is not finite.
        SystemExit: After a signal, once the state is saved.
    """
    chosen_device = choose_device(device)
    with repeatable(), StopSignals() as stop:
        _Training(experiment, index, outputs, tracker, name, seed, chosen_device, cache).run(
            stop, save_every_seconds, on_step
        )


class _Training:
    """The parts of one training, and what is done with them."""

    def __init__(
        self,
        experiment: Experiment,
        index: Index,
        outputs: Outputs,
        tracker: Tracker,
        name: str,
        seed: int,
        device: torch.device,
        cache: ImageCache | None,
    ) -> None:
        self.experiment, self.index, self.outputs, self.tracker = experiment, index, outputs, tracker
        self.name, self.seed, self.device = name, seed, device
        self.cache = cache
        self.size = experiment.input_size_for(index.category)
        self.precision = usable_precision(experiment.precision, device)
        self.cost = Cost(device)
        self.key = StateKey(
            training_digest(experiment.training_settings(index.category)), index.digest, code_digest("train"), seed
        )
        self.states = StateFolder(outputs.state, self.key)
        self.step = 0
        self.history: list[dict[str, Any]] = []

    def run(self, stop: StopSignals, save_every_seconds: float, on_step: Callable[[int], None] | None) -> None:
        """From the last state, or the beginning, to the checkpoint."""
        state = self.states.load()
        with self.cost.phase("setup"):
            self._build(state)
        del state  # a second copy of the weights
        self._introduce()

        clock, progress = SaveClock(save_every_seconds), Progress(self.n_steps, self.step, self.experiment.batch_size)
        with self.states, progress, contextlib.closing(self.batches.ahead(self.step, self.n_steps)) as batches:
            for batch in _timed(batches, self.cost):
                epoch, place = divmod(batch.step, self.steps_per_epoch)
                rate = self._learning_rate(epoch, place)
                set_learning_rate(self.optimizer, rate)

                with self.cost.phase("steps"):
                    images_B3HW, mask_B1HW = prepare(
                        batch,
                        self.anomalies,
                        self.encoder.mean,
                        self.encoder.std,
                        device=self.device,
                    )
                    with autocast(self.precision, self.device):
                        features = self.encoder(images_B3HW)
                    told = self.stepper(batch.step, features, images_B3HW, mask_B1HW)
                    self.means.add(told)
                self.step = batch.step + 1

                progress.advance(told)
                if self.step % CHECK_EVERY == 0:
                    self._stop_if_diverged()
                if place + 1 == self.steps_per_epoch:
                    self._end_epoch(epoch + 1, rate)
                if clock.due() and not self.states.busy:
                    self._save()
                if on_step is not None:
                    on_step(self.step)
                if stop.exit_code is not None and self.step < self.n_steps:
                    self._leave(stop.exit_code)
        self._finish()

    def _build(self, state: State | None) -> None:
        """Make all parts; from the state what was trained, all else anew."""
        experiment = self.experiment
        self.encoder = self._encoder(state)
        images_NHW3 = load_images(self.index, "train", self.size, cache=self.cache)
        if len(images_NHW3) < experiment.batch_size:
            raise ConfigError(
                f"Expected at least as many training images as a batch holds ({experiment.batch_size}), but "
                f"{self.index.dataset}/{self.index.category} has {len(images_NHW3)}. Set `batch_size` lower."
            )
        self.anomalies, foreign_NHW3 = None, None
        if experiment.synthetic_anomalies:
            self.anomalies = SyntheticAnomalies(self.size, len(images_NHW3), self.seed)
            foreign_NHW3 = load_images(self.index, "train", self.anomalies.foreign_size, cache=self.cache)
        self.batches = Batches(
            images_NHW3,
            foreign_NHW3,
            batch_size=experiment.batch_size,
            seed=self.seed,
            anomalies=self.anomalies,
            rotation_degrees=experiment.rotation_degrees,
            pin=self.device.type == "cuda",
        )
        if experiment.locations_per_step is not None:
            self._require_chunks(experiment.locations_per_step)
        self.steps_per_epoch = self.batches.per_pass * experiment.passes_per_epoch
        self.n_steps = self.steps_per_epoch * experiment.epochs
        if experiment.normalize_features and state is None:
            self.encoder.set_feature_scales(measure_feature_scales(self.encoder, self._plain_images(images_NHW3)))

        self.model = AnomalyFlow.from_experiment(self.encoder.channels, experiment, self.seed)
        placed(self.model, self.device).train()
        self.optimizer = make_optimizer(self.model)
        self.guard, self.means = Guard(self.device), Means()
        self.stepper = Stepper(
            self.model,
            self.optimizer,
            self.guard,
            experiment.update,
            self.precision,
            experiment.gradient_clip,
            experiment.locations_per_step,
            self.seed,
        )
        if state is not None:
            self._restore(state)

    def _encoder(self, state: State | None) -> Encoder:
        experiment = self.experiment
        encoder = build_encoder(
            str(experiment.encoder),
            weights=experiment.weights,
            taps=experiment.taps,
            scales=experiment.scales,
            padding=experiment.padding,
            feature_scales=None if state is None else state["feature_scales"],
        )
        return placed(encoder, self.device)

    def _require_chunks(self, chunk: int) -> None:
        """No scale may have fewer locations than a step takes: it would never be trained."""
        batch = self.experiment.batch_size
        for number, (height, width) in enumerate(self.encoder.map_sizes(*self.size)):
            if batch * height * width < chunk:
                raise ConfigError(
                    f"Expected at least `locations_per_step` ({chunk}) locations per batch at each scale, but scale "
                    f"{number} has {batch} x {height} x {width}. Set `batch_size` to at least "
                    f"{-(-chunk // (height * width))}, a larger `input_size`, or fewer `locations_per_step`."
                )

    def _plain_images(self, images_NHW3: Any) -> Iterator[Tensor]:
        for start in range(0, len(images_NHW3), 8):
            images_B3HW = to_device(torch.from_numpy(images_NHW3[start : start + 8].copy()), self.device)
            yield normalised(images_B3HW, self.encoder.mean, self.encoder.std).contiguous(memory_format=MEMORY_FORMAT)

    def _restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load(state["guard"])
        self.means.load(state["means"], self.device)
        self.cost.load(state["cost"])
        self.step, self.history = state["step"], state["history"]

    def _save(self, *, wait: bool = False) -> bool:
        """Save what the next attempt needs; random numbers follow from seed and step, so they are not among it.

        Returns:
            False in the middle of skipped steps: then the last good state stays.
        """
        if bool(self.guard.consecutive):
            return False
        with self.cost.phase("saving"):
            finished = self.step == self.n_steps
            state: State = {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": None if finished else self.optimizer.state_dict(),
                "guard": self.guard.state(),
                "means": self.means.state(),
                "history": self.history,
                "feature_scales": self.encoder.feature_scales,
                "cost": self.cost.state(),
            }
            try:
                self.states.save(state, self.step, wait=wait)
            except StorageError as error:
                if wait:
                    raise
                logger.warning("%s The training goes on meanwhile.", error)
        return True

    def _leave(self, exit_code: int) -> None:
        what = "the state is saved" if self._save(wait=True) else "its last steps were skipped, the state before stays"
        logger.warning("Stopped by a signal after step %d of %d; %s.", self.step, self.n_steps, what)
        raise SystemExit(exit_code)

    def _learning_rate(self, epoch: int, place: int) -> float:
        return learning_rate(
            epoch,
            place,
            epochs=self.experiment.epochs,
            batches_per_epoch=self.steps_per_epoch,
            base_lr=self.experiment.learning_rate,
            warmup_epochs=self.experiment.warmup_epochs,
            final_factor=self.experiment.final_learning_rate_factor,
        )

    def _end_epoch(self, epoch: int, rate: float) -> None:
        """Write down the epoch's means; this waits for the device, once an epoch."""
        self._stop_if_diverged()
        means = self.means.read()
        self.means.clear()
        record = {
            "epoch": epoch,
            "loss": total_loss(means),
            "learning_rate": rate,
            "skipped_steps": int(self.guard.skipped),
            **means,
        }
        self.history.append(record)
        self.tracker.log_metrics({f"train/{key}": value for key, value in record.items() if key != "epoch"}, step=epoch)
        logger.info("Epoch %d of %d: loss %.4f.", epoch, self.experiment.epochs, record["loss"])
        if self.outputs.kept is not None and epoch in self.experiment.kept_epochs:
            self._checkpoint(self._kept_file(epoch), epoch)

    def _stop_if_diverged(self) -> None:
        consecutive = int(self.guard.consecutive)
        if consecutive >= min(MOST_SKIPPED, self.steps_per_epoch):
            raise TrainingError(
                f"Expected a finite loss and gradient, but the last {consecutive} batches of {self.name} on "
                f"{self.index.dataset}/{self.index.category} had updates with none, which were skipped. "
                "The state before them is kept. "
                "Set `learning_rate` lower or `gradient_clip` (1.0, say), or check the encoder's features."
            )

    def _finish(self) -> None:
        """Save the finished state first, so that a lost checkpoint is written again without training again."""
        if self._has_new_steps:
            self._save(wait=True)
        self.states.forget_others()
        with self.cost.phase("saving"):
            self._checkpoint(self.outputs.checkpoint, self.experiment.epochs)
            for epoch in self.experiment.kept_epochs if self.outputs.kept is not None else []:
                self._publish_kept(epoch)
        record = self._record()
        write_json(self.outputs.record, record)
        self.tracker.log_artifact(self.outputs.record)
        costs = {f"seconds_{phase}": seconds for phase, seconds in record["seconds"].items()}
        costs |= {
            name: record[name] for name in ("images_per_second", "peak_memory_bytes", "energy_joules", "attempts")
        }
        told = {f"cost/{name}": float(value) for name, value in costs.items() if value is not None}
        self.tracker.log_metrics(told, step=self.experiment.epochs)

    @property
    def _has_new_steps(self) -> bool:
        return not any(step == self.n_steps for step in self.states.steps())

    def _kept_file(self, epoch: int) -> Path:
        # In the state's folder, for Snakemake empties the declared one before each attempt.
        return self.outputs.state / "kept" / f"{self.key.short}.epoch{epoch:02d}.pt"

    def _publish_kept(self, epoch: int) -> None:
        source = self._kept_file(epoch)
        if not source.exists():
            raise IntegrityError(
                f"Expected epoch {epoch}, which `keep_every` keeps, at {source}, but it is gone. Delete the folder "
                f"{self.outputs.state} and train again."
            )
        assert self.outputs.kept is not None
        self.outputs.kept.mkdir(parents=True, exist_ok=True)
        target = self.outputs.kept / f"epoch{epoch:02d}.pt"
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)

    def _checkpoint(self, path: Path, epoch: int) -> None:
        save_checkpoint(
            path,
            self.model,
            self.experiment,
            self.encoder.identity,
            channels=self.encoder.channels,
            seed=self.seed,
            input_size=self.size,
            feature_scales=self.encoder.feature_scales,
            history=self.history,
            provenance={
                "dataset": self.index.dataset,
                "category": self.index.category,
                "experiment_name": self.name,
                "epoch": epoch,
                "index_digest": self.key.data,
                "config_digest": self.key.config,
                "code_digest": self.key.code,
                "versions": environment(),
                "device": device_name(self.device),
                "precision": self.precision,
                "attempts": self.cost.attempts,
            },
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "precision": self.precision,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "training_images": len(self.index.train),
            "steps": self.n_steps,
        }

    def _introduce(self) -> None:
        """Tell the tracker what is trained, and with what."""
        self.tracker.log_params(
            {
                "dataset": self.index.dataset,
                "category": self.index.category,
                "experiment": self.name,
                "seed": self.seed,
                "settings": self.experiment.training_settings(self.index.category),
            }
        )
        self.tracker.log_tags(
            {
                **environment_tags(),
                **self._facts(),
                "code_digest": self.key.code,
                "config_digest": self.key.config,
                "data_digest": self.key.data,
                "attempt": self.cost.attempts,
            }
        )
        root = str(self.index.root)
        self.tracker.log_dataset(f"{self.index.dataset}/{self.index.category}", self.index.digest, root, "train")

    def _record(self) -> dict[str, Any]:
        """Content of train.json."""
        seconds = {**self.cost.seconds, "total": self.cost.total}
        # As wall time sees it: a step is handed to a GPU before it is done, so only sums over phases tell the truth.
        training = sum(seconds.get(phase, 0.0) for phase in ("steps", "waiting_for_data"))
        images = self.n_steps * self.experiment.batch_size
        return {
            "history": self.history,
            **self._facts(),
            "seconds": seconds,
            "images_per_second": images / training if training else None,
            "peak_memory_bytes": self.cost.peak(),
            "energy_joules": self.cost.energy(),
            "attempts": self.cost.attempts,
            "skipped_steps": int(self.guard.skipped),
            "anomaly_jitter": None if self.anomalies is None else self.anomalies.jitter,
            "digests": {"config": self.key.config, "data": self.key.data, "code": self.key.code},
            "encoder": self.encoder.identity,
            "versions": environment(),
        }


def _timed(batches: Iterator[Any], cost: Cost) -> Iterator[Any]:
    """The batches; the time the training waits for one is a phase of its own."""
    while True:
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        cost.add("waiting_for_data", time.perf_counter() - start)
        yield batch
