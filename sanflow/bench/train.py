"""Measure the speed of training: images per second of the loop's own parts, beside the plain training.

Random images and random weights: speed does not depend on either.
"""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sanflow.bench.bare import CountProducts
from sanflow.bench.plain_training import PlainTraining
from sanflow.bench.timing import against_peaks, interleaved, ratio, stopwatches, synchronizer, write_profile
from sanflow.config.strict import validated
from sanflow.device import choose_device, device_name, placed, repeatable, usable_precision
from sanflow.encoders import Encoder, build_encoder
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.settings import SanflowExperiment
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch, Batches
from sanflow.methods.flow.training.learner import Learner
from sanflow.methods.flow.training.replay import uses_cuda_graphs
from sanflow.methods.flow.training.step import Guard, Stepper, make_optimizer, set_learning_rate

N_IMAGES = 16
# Bytes that Adam moves for each weight, once a batch: it reads weight, gradient and two moments, and writes three.
ADAM_BYTES = 28


def bench_train(
    *,
    encoder: str,
    input_size: int,
    batch_size: int,
    precision: str,
    update: str,
    device: str,
    windows: int = 5,
    steps: int = 1,
    reference: bool = True,
    bare: bool = True,
    position_channels: int = 512,
    cuda_graphs: bool = True,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Measure training steps.

    Arguments:
        encoder: As in an experiment; its weights are random.
        input_size: Height and width.
        batch_size: Images per step.
        precision: `fp32`, `tf32` or `bf16`.
        update: `per_scale` or `joint`.
        device: `auto`, `cuda` or `cpu`.
        windows: How many windows are timed; ours and the reference's alternate.
        steps: Steps per window.
        reference: Also time the plain training.
        bare: Also time the step's matrix products and convolutions alone.
        position_channels: Of the position code.
        cuda_graphs: Replay a step on a GPU as a CUDA graph, as training does.
        profile: Where to write a trace for a browser's trace viewer; None for none.

    Returns:
        What was measured; JSON values.
    """
    chosen = choose_device(device)
    settings = validated(
        SanflowExperiment,
        {
            "method": "sanflow",
            "encoder": encoder,
            "weights": "random",
            "input_size": input_size,
            "batch_size": batch_size,
            "precision": precision,
            "update": update,
            "position_channels": position_channels,
        },
        "What is to be timed",
    )
    with repeatable():
        synchronize = synchronizer(chosen)
        work = TrainingWork.of(settings, chosen, cuda_graphs)
        plain = PlainProcess(settings, work.encoder.channels, chosen) if reference else None
        seconds, plain_seconds = interleaved(work.step, plain, windows, steps, synchronize)
        if plain is not None:
            plain.close()
        found = _summary(settings, work, seconds, plain_seconds)
        phases = work.phases(synchronize)
        found["milliseconds"] = {name: 1000 * value for name, value in phases.items()}
        with CountProducts() as counted:
            work.step(one_by_one=True)
        step_seconds = statistics.median(seconds)
        peaks, bandwidth = against_peaks(counted, batch_size, step_seconds, work.precision, chosen)
        adam = ADAM_BYTES * found["parameters"]
        found |= peaks | {"optimizer_fraction_of_memory_peak": adam / phases["optimizer"] / bandwidth}
        if bare:
            found["bare_milliseconds"] = 1000 * counted.bare_seconds(3, synchronize)
            found["bare_ratio"] = 1000 * step_seconds / found["bare_milliseconds"]
        if profile is not None:
            write_profile(work.step, profile, chosen)
    return found


def _summary(
    settings: SanflowExperiment, work: "TrainingWork", seconds: list[float], plain_seconds: list[float] | None
) -> dict[str, Any]:
    step_seconds = statistics.median(seconds)
    found: dict[str, Any] = {
        "encoder": settings.encoder,
        "input_size": settings.input_size,
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "precision_used": work.precision,
        "update": settings.update,
        "device": device_name(work.device),
        "cuda_graphs": work.stepper.cuda_graphs,
        "parameters": sum(parameter.numel() for parameter in work.model.parameters()),
        "images_per_second": settings.batch_size / step_seconds,
        "seconds_per_step": seconds,
        "ratio_to_reference": ratio(seconds, plain_seconds),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(work.device) if work.device.type == "cuda" else None,
    }
    if plain_seconds is not None:
        found["reference_images_per_second"] = settings.batch_size / statistics.median(plain_seconds)
        found["reference_seconds_per_step"] = plain_seconds
    return found


@dataclass
class TrainingWork:
    """The loop's own parts on random images.

    Attributes:
        n_steps: Steps done.
    """

    encoder: Encoder
    model: AnomalyFlow
    stepper: Stepper
    learner: Learner
    batches: Batches
    device: torch.device
    precision: Any
    n_steps: int = 0

    @classmethod
    def of(cls, experiment: SanflowExperiment, device: torch.device, cuda_graphs: bool = True) -> "TrainingWork":
        """Build the parts as `training.loop` builds them; CUDA graphs can be left out, for comparison."""
        size = experiment.input_size_for("", "")
        encoder = placed(build_encoder(str(experiment.encoder), weights="random"), device)
        model = AnomalyFlow.from_experiment(encoder.channels, experiment, seed=0)
        placed(model, device).train()
        optimizer = make_optimizer(model)
        set_learning_rate(optimizer, experiment.learning_rate)
        precision = usable_precision(experiment.precision, device)
        cuda_graphs = cuda_graphs and uses_cuda_graphs(device)
        stepper = Stepper(model, optimizer, Guard(device), experiment.update, precision, cuda_graphs=cuda_graphs)
        anomalies = SyntheticAnomalies(size, N_IMAGES, seed=0)
        random = np.random.RandomState(0)
        images, foreign = (
            random.randint(0, 256, size=(N_IMAGES, *shape, 3)).astype(np.uint8)
            for shape in (size, anomalies.foreign_size)
        )
        batches = Batches(
            images,
            foreign,
            batch_size=experiment.batch_size,
            seed=0,
            anomalies=anomalies,
            pin=device.type == "cuda",
        )
        return cls(encoder, model, stepper, Learner(encoder, anomalies, stepper), batches, device, precision)

    def step(self, one_by_one: bool = False) -> None:
        """Train one batch, from bytes to new weights; its operations one by one also where they would be replayed."""
        (self.learner.one_by_one if one_by_one else self.learner)(self._next())

    def _next(self) -> Batch:
        self.n_steps += 1
        return self.batches.batch(self.n_steps - 1)

    def phases(self, synchronize: Callable[[], None], repeats: int = 3) -> dict[str, float]:
        """Measure the median seconds of each phase of a step; wait for the device after each phase."""
        found: dict[str, list[float]] = {}
        for _ in range(repeats):
            parts: dict[str, list[nn.Module]] = {
                "statistics_network": [self.model.base],
                "flows": list(self.model.flows),
            }
            with stopwatches(parts, synchronize, self.stepper.optimizer) as spent:
                start = time.perf_counter()
                images_B3HW, mask_B1HW = self.learner.images(self._next())
                synchronize()
                spent["images"] = time.perf_counter() - start
                start = time.perf_counter()
                features = self.learner.features(images_B3HW)
                synchronize()
                spent["encoder"] = time.perf_counter() - start
                start = time.perf_counter()
                self.stepper(self.n_steps, features, images_B3HW, mask_B1HW)
                synchronize()
                forward = sum(spent[name] for name in ("statistics_network", "flows", "optimizer"))
                spent["losses_and_backward"] = time.perf_counter() - start - forward
            for name, seconds in spent.items():
                found.setdefault(name, []).append(seconds)
        return {name: statistics.median(seconds) for name, seconds in found.items()}


class PlainProcess:
    """The plain training in a separate process, where our settings of torch and memory do not make it faster.

    A call runs one step and returns when the step is done.

    Arguments:
        experiment: The encoder, sizes and channels.
        channels: Of the encoder.
        device: Where it runs.
    """

    def __init__(self, experiment: SanflowExperiment, channels: list[int], device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        settings = (experiment.model_dump(mode="json"), channels, str(device), torch.get_num_threads())
        self._process = context.Process(target=_serve_plain, args=(theirs, *settings), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self) -> None:
        self._ours.send("step")
        self._ours.recv()

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()


def _serve_plain(pipe: Any, settings: dict[str, Any], channels: list[int], device_name: str, threads: int) -> None:
    """Run one step of the plain training for each message, contiguous and in fp32, in the other process."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    experiment, device = SanflowExperiment.model_validate(settings), torch.device(device_name)
    synchronize = synchronizer(device)
    plain = PlainTraining(channels, experiment.position_channels, experiment.coupling_blocks)
    plain.flows.to(device)
    plain.network.to(device)
    encoder = build_encoder(str(experiment.encoder), weights="random").to(device)
    generator = torch.Generator().manual_seed(0)
    shape = (experiment.batch_size, 3, *experiment.input_size_for("", ""))
    images_B3HW = torch.randn(shape, generator=generator).to(device)
    mask_B1HW = torch.zeros_like(images_B3HW[:, :1])
    mask_B1HW[::2, :, : shape[2] // 4, : shape[3] // 4] = 1
    with contextlib.suppress(EOFError):
        while pipe.recv():
            plain.step(encoder(images_B3HW), images_B3HW, mask_B1HW)
            synchronize()
            pipe.send("done")
