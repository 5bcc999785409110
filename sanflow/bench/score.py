"""Measure the speed of scoring: images per second of the detector, beside the plain networks in the same call."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanflow.bench.bare import CountProducts
from sanflow.bench.plain_training import PlainTraining, position_code
from sanflow.bench.timing import against_peaks, interleaved, ratio, stopwatches, synchronizer, write_profile
from sanflow.config.strict import validated
from sanflow.device import choose_device, device_name, placed, repeatable, unit_images, usable_precision
from sanflow.encoders import Encoder, build_encoder
from sanflow.methods.flow.detector import FlowDetector
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.settings import SanflowExperiment


def bench_score(
    *,
    encoder: str,
    input_size: int,
    batch_size: int,
    precision: str,
    device: str,
    windows: int = 5,
    steps: int = 1,
    reference: bool = True,
    position_channels: int = 512,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Measure scoring.

    Arguments:
        encoder: As in an experiment; its weights are random.
        input_size: Height and width.
        batch_size: Images at once.
        precision: `fp32`, `tf32` or `bf16`.
        device: `auto`, `cuda` or `cpu`.
        windows: How many windows are timed; ours and the reference's take turns.
        steps: Batches per window.
        reference: Also time the plain networks.
        position_channels: Of the position code.
        profile: Where to write a trace; None for none.

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
            "precision": precision,
            "position_channels": position_channels,
        },
        "What is to be timed",
    )
    used = usable_precision(settings.precision, chosen)
    with repeatable():
        synchronize = synchronizer(chosen)
        network = placed(build_encoder(encoder, weights="random"), chosen)
        model = placed(AnomalyFlow.from_experiment(network.channels, settings, seed=0), chosen)
        detector = FlowDetector(model.eval(), network, (input_size, input_size), used, {})
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, input_size, input_size, 3)
        images_BHW3 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

        def step() -> None:
            detector(images_BHW3)

        plain = _plain_step(settings, detector, images_BHW3) if reference else None
        seconds, plain_seconds = interleaved(step, plain, windows, steps, synchronize)
        with CountProducts() as counted:
            step()
        milliseconds = _phases(step, model, network, synchronize)
        batch_seconds = statistics.median(seconds)
        peaks, bandwidth = against_peaks(counted, batch_size, batch_seconds, used, chosen)
        weights = sum(weight.nbytes for module in (model, network) for weight in module.parameters())
        if profile is not None:
            write_profile(step, profile, chosen)
    return {
        "encoder": encoder,
        "input_size": input_size,
        "batch_size": batch_size,
        "precision": precision,
        "precision_used": used,
        "device": device_name(chosen),
        "images_per_second": batch_size / batch_seconds,
        "seconds_per_batch": seconds,
        "ratio_to_reference": ratio(seconds, plain_seconds),
        "milliseconds": milliseconds,
        **peaks,
        # Each weight must be read once a batch, whatever else moves.
        "weights_fraction_of_memory_peak": weights / batch_seconds / bandwidth,
    }


def _phases(
    step: Callable[[], None], model: AnomalyFlow, encoder: Encoder, synchronize: Callable[[], None], repeats: int = 3
) -> dict[str, float]:
    """Measure the median milliseconds of each part of a batch; wait for the device after each part."""
    parts: dict[str, list[nn.Module]] = {
        "encoder": [encoder],
        "statistics_network": [model.base],
        "flows": list(model.flows),
    }
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        start = time.perf_counter()
        with stopwatches(parts, synchronize) as spent:
            step()
            synchronize()
        spent["images_and_likelihoods"] = time.perf_counter() - start - sum(spent.values())
        for name, seconds in spent.items():
            found.setdefault(name, []).append(seconds)
    return {name: 1000 * statistics.median(seconds) for name, seconds in found.items()}


def _plain_step(experiment: SanflowExperiment, detector: FlowDetector, images_BHW3: torch.Tensor) -> Callable[[], None]:
    """Return the plain networks' work on the same batch: contiguous, fp32, positions repeated for each image."""
    plain = PlainTraining(detector.encoder.channels, experiment.position_channels, experiment.coupling_blocks)
    flows, statistics_network = (
        plain.flows.to(detector.torch_device).eval(),
        plain.network.to(detector.torch_device).eval(),
    )
    encoder = build_encoder(str(experiment.encoder), weights="random").to(detector.torch_device)

    def step() -> None:
        with torch.inference_mode():
            images_B3HW = encoder.normalise(unit_images(images_BHW3, detector.torch_device)).contiguous()
            statistics_network(images_B3HW)
            for flow, features_BCHW in zip(flows, encoder(images_B3HW), strict=True):
                batch, n_channels, height, width = features_BCHW.shape
                code_PHW = position_code(experiment.position_channels, height, width).to(detector.torch_device)
                condition_NP = code_PHW.repeat(batch, 1, 1, 1).permute(0, 2, 3, 1).flatten(0, 2)
                flow(features_BCHW.permute(0, 2, 3, 1).reshape(-1, n_channels), [condition_NP])

    return step
