"""Train the flows of one category with one seed; `_Training.run` reads from top to bottom.

A training that was stopped for any reason resumes from its last state and ends with the same weights, bit for bit on
one machine with one number of threads.

Shapes: B images, H x W pixels.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sanflow.device import choose_device, device_name, repeatable, usable_precision
from sanflow.errors import StorageError, TrainingError
from sanflow.methods.cost import Cost
from sanflow.methods.fit import FitFiles
from sanflow.methods.flow.detector import FlowDetector, measure_constants
from sanflow.methods.flow.schedule import learning_rate
from sanflow.methods.flow.training.kept_epochs import KeptEpochs
from sanflow.methods.flow.training.parts import build_parts
from sanflow.methods.flow.training.progress import Progress
from sanflow.methods.flow.training.state import SaveClock, State, StateFolder, StateKey
from sanflow.methods.flow.training.step import restore_optimizer, set_learning_rate, total_loss
from sanflow.methods.method import FitJob
from sanflow.methods.signals import StopSignals
from sanflow.methods.validation import PREFIX, best_epoch, is_out_of_patience, validate

logger = logging.getLogger(__name__)

# Skipped steps in a row after which training stops, and how often the device is asked for their number.
MOST_SKIPPED = 50
CHECK_EVERY = 50


def fit(job: FitJob) -> None:
    """Train until the end, or until a signal: then the state is saved and the process exits with 130 or 143.

    Raises:
        ConfigError: If there are fewer training images than a batch holds.
        TrainingError: If the loss or gradient is not finite in many steps in a row.
        SystemExit: After a signal, once the state is saved.
    """
    device = choose_device(job.device)
    with repeatable(), StopSignals() as stop:
        _Training(job, device).run(stop)


class _Training:
    """One training and its state."""

    def __init__(self, job: FitJob, device: torch.device) -> None:
        self.job, self.device = job, device
        self.precision = usable_precision(job.experiment.precision, device)
        self.cost = Cost(device)
        self.files = FitFiles(job, device_name(device), self.precision)
        key = StateKey(self.files.config_digest, job.index.digest, self.files.code_digest, job.seed)
        self.states = StateFolder(job.outputs.state, key)
        needed = job.outputs.kept is not None or job.experiment.chooses_epoch
        epochs = job.experiment.candidate_epochs if needed else ()
        self.kept = KeptEpochs(job.outputs.state, job.outputs.kept, key.short, epochs)
        self.step = 0
        self.history: list[dict[str, Any]] = []

    def run(self, stop: StopSignals) -> None:
        """Train from the last state, or the beginning, to the checkpoint."""
        job, state = self.job, self.states.load()
        with self.cost.phase("setup"):
            scales = None if state is None else state["feature_scales"]
            parts = self.parts = build_parts(job, self.device, self.precision, scales)
            if state is not None:
                self._restore(state)
        del state  # a second copy of the weights
        self.files.introduce({**self._facts(), "attempts": self.cost.attempts})

        clock = SaveClock(job.save_every_seconds)
        progress = Progress(parts.n_steps, self.step, job.experiment.batch_size)
        last = self.step if self._is_over else parts.n_steps
        with self.states, progress, contextlib.closing(parts.batches.ahead(self.step, last)) as batches:
            for batch in _timed(batches, self.cost):
                epoch, place = divmod(batch.step, parts.steps_per_epoch)
                rate = self._learning_rate(epoch, place)
                set_learning_rate(parts.optimizer, rate)

                with self.cost.phase("steps"):
                    losses = parts.learner(batch)
                    parts.means.add(losses)
                self.step = batch.step + 1

                progress.advance(losses)
                if self.step % CHECK_EVERY == 0:
                    self._stop_if_diverged()
                if place + 1 == parts.steps_per_epoch:
                    self._end_epoch(epoch + 1, rate)
                if clock.due() and not self.states.busy:
                    self._save()
                if job.on_step is not None:
                    job.on_step(self.step)
                if self._is_over:
                    break
                if stop.exit_code is not None:
                    self._leave(stop.exit_code)
        self._finish()

    @property
    def _is_over(self) -> bool:
        """Whether all steps are done, or no better epoch came for as long as `patience` allows."""
        return self.step == self.parts.n_steps or is_out_of_patience(self.history, self.job.experiment.patience)

    def _restore(self, state: State) -> None:
        parts = self.parts
        parts.model.load_state_dict(state["model"])
        if state["optimizer"] is not None:
            restore_optimizer(parts.optimizer, state["optimizer"])
        parts.guard.load(state["guard"])
        parts.means.load(state["means"], self.device)
        self.cost.load(state["cost"])
        self.step, self.history = state["step"], state["history"]

    def _save(self, *, wait: bool = False) -> bool:
        """Save what the next attempt needs; states of random generators are not needed.

        Returns:
            False among skipped steps: then the last good state is kept.
        """
        parts = self.parts
        if bool(parts.guard.consecutive):
            return False
        with self.cost.phase("saving"):
            finished = self._is_over
            state: State = {
                "step": self.step,
                "model": parts.model.state_dict(),
                "optimizer": None if finished else parts.optimizer.state_dict(),
                "guard": parts.guard.state(),
                "means": parts.means.state(),
                "history": self.history,
                "feature_scales": parts.encoder.feature_scales,
                "cost": self.cost.state(),
            }
            try:
                self.states.save(state, self.step, wait=wait)
            except StorageError as error:
                if wait:
                    raise
                logger.warning("%s The training continues meanwhile.", error)
        return True

    def _leave(self, exit_code: int) -> None:
        what = "the state is saved" if self._save(wait=True) else "its last steps were skipped, the state before stays"
        logger.warning("Stopped by a signal after step %d of %d; %s.", self.step, self.parts.n_steps, what)
        raise SystemExit(exit_code)

    def _learning_rate(self, epoch: int, place: int) -> float:
        experiment = self.job.experiment
        return learning_rate(
            epoch,
            place,
            epochs=experiment.epochs,
            batches_per_epoch=self.parts.steps_per_epoch,
            base_lr=experiment.learning_rate,
            warmup_epochs=experiment.warmup_epochs,
            final_factor=experiment.final_learning_rate_factor,
        )

    def _end_epoch(self, epoch: int, rate: float) -> None:
        """Record the epoch's means; this waits for the device, once an epoch."""
        self._stop_if_diverged()
        means = self.parts.means.read()
        self.parts.means.clear()
        record = {
            "epoch": epoch,
            "loss": total_loss(means),
            "learning_rate": rate,
            "skipped_steps": int(self.parts.guard.skipped),
            **means,
        }
        constants = self._constants() if self.kept.wants(epoch) else None
        if constants is not None and self.parts.validation is not None:
            record |= self._validate(constants)
        self.history.append(record)
        self.files.log_history(self.history)
        logger.info("Epoch %d of %d: loss %.4f.", epoch, self.job.experiment.epochs, record["loss"])
        if constants is not None:
            self._checkpoint(self.kept.file(epoch), epoch, constants)

    def _validate(self, constants: dict[str, float]) -> dict[str, float]:
        """Measure the model as it is now on held-out parts; the training is not changed."""
        parts = self.parts
        assert parts.validation is not None
        with self.cost.phase("validation"):
            detector = FlowDetector(parts.model.eval(), parts.encoder, self.job.input_size, self.precision, constants)
            found = validate(detector, parts.validation)
            parts.model.train()
        return {PREFIX + name: value for name, value in found.items()}

    def _constants(self) -> dict[str, float]:
        """Measure the constants that calibrate the model as it is now."""
        parts = self.parts
        return measure_constants(parts.model, parts.encoder, parts.images_NHW3, self.job.input_size, self.precision)

    def _stop_if_diverged(self) -> None:
        consecutive = int(self.parts.guard.consecutive)
        if consecutive >= min(MOST_SKIPPED, self.parts.steps_per_epoch):
            index = self.job.index
            raise TrainingError(
                f"Expected a finite loss and gradient, but the last {consecutive} batches of {self.job.name} on "
                f"{index.dataset}/{index.category} had updates with none, which were skipped. "
                "The state before them is kept. "
                "Set `learning_rate` lower or `gradient_clip` (such as 1.0), or check the encoder's features."
            )

    def _finish(self) -> None:
        """Save the finished state first, so that a lost checkpoint is written again without training again."""
        if self.step not in self.states.steps():
            self._save(wait=True)
        self.states.forget_others()
        experiment, checkpoint = self.job.experiment, self.job.outputs.checkpoint
        epoch = best_epoch(self.history) if experiment.chooses_epoch else experiment.epochs
        with self.cost.phase("saving"):
            if experiment.chooses_epoch:
                self.kept.put(epoch, checkpoint)
            else:
                self._checkpoint(checkpoint, epoch, self._constants())
            self.kept.publish(len(self.history))
        anomalies = self.parts.anomalies
        facts = {
            **self._facts(),
            "images": self.step * experiment.batch_size,
            "epoch": epoch,
            "skipped_steps": int(self.parts.guard.skipped),
            "anomaly_jitter": None if anomalies is None else anomalies.jitter,
            "encoder": self.parts.encoder.identity,
        }
        self.files.write_record(self.cost, facts, self.history)

    def _checkpoint(self, path: Path, epoch: int, constants: dict[str, float]) -> None:
        parts = self.parts
        validation = {key: value for key, value in self.history[-1].items() if key.startswith(PREFIX)}
        self.files.write_checkpoint(
            path,
            parts.model.state_dict(),
            constants=constants,
            encoder=parts.encoder,
            facts={"channels": parts.encoder.channels},
            epoch=epoch,
            history=self.history,
            details={"attempts": self.cost.attempts, **validation},
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "parameters": sum(parameter.numel() for parameter in self.parts.model.parameters()),
            "steps": self.parts.n_steps,
        }


def _timed(batches: Iterator[Any], cost: Cost) -> Iterator[Any]:
    """Give the batches; the time that the training waits for one is a phase of its own."""
    while True:
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        cost.add("waiting_for_data", time.perf_counter() - start)
        yield batch
