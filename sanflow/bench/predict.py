"""How fast is a fitted detector in use? Latency of one image and images per second, in torch and in onnxruntime.

Each method is fitted on a few images of noise: speed does not depend on what they show.
"""

import functools
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from PIL import Image

from sanflow.config.strict import validated
from sanflow.data.index import build_index
from sanflow.device import device_name
from sanflow.errors import not_among
from sanflow.methods.method import FitJob, Outputs
from sanflow.methods.registry import detector_method
from sanflow.prediction.detector import LoadedDetector
from sanflow.prediction.export_onnx import (
    OnnxDetector,
    interleaved_seconds,
    load_for_export,
    onnx_bytes,
    random_images,
    require_extra,
)
from sanflow.tracking import Tracker

# The shortest fit; PatchCore keeps every patch of the few images.
SHORT_FIT: dict[str, dict[str, Any]] = {
    "sanflow": {"epochs": 1, "passes_per_epoch": 1, "warmup_epochs": 0.5, "update": "joint"},
    "padim": {},
    "patchcore": {"coreset_fraction": 1.0, "sampling": "random"},
}


def bench_predict(
    *,
    methods: list[str],
    encoder: str,
    weights: str,
    input_size: int,
    batch_size: int,
    windows: int = 5,
    training_images: int = 16,
    **settings: Any,
) -> dict[str, Any]:
    """Measure detectors on the CPU, from bytes to anomaly map and image score.

    Arguments:
        methods: Keys of `SHORT_FIT`.
        encoder: As in an experiment.
        weights: The same.
        input_size: Height and width.
        batch_size: Images at once where throughput is measured.
        windows: How many windows are timed; torch and onnxruntime take turns.
        training_images: Images of the fit.
        settings: More keys of every experiment.

    Returns:
        What was measured; JSON values.

    Raises:
        ConfigError: If a method is unknown, or the extra `onnx` is not installed.
    """
    for method in methods:
        if method not in SHORT_FIT:
            raise not_among("a method among", SHORT_FIT, method)
    require_extra()
    shared = {"encoder": encoder, "weights": weights, "input_size": input_size, **settings}
    images_BHW3 = random_images((input_size, input_size), batch_size)
    found = {}
    for method in methods:
        keys = {"method": method, **shared, **SHORT_FIT[method]}
        experiment = validated(detector_method(method).settings, keys, "What is to be timed")
        with tempfile.TemporaryDirectory() as folder:
            detector = _fitted(experiment, Path(folder), training_images)
            path = Path(folder) / "model.onnx"
            path.write_bytes(onnx_bytes(detector))
            works = {"torch": detector.score, "onnx": OnnxDetector(path).score}
            megabytes = path.stat().st_size / 1e6
        one, many = _medians(works, images_BHW3[:1], windows), _medians(works, images_BHW3, windows)
        found[method] = {
            **{f"{name}_milliseconds_of_one_image": 1000 * seconds for name, seconds in one.items()},
            **{f"{name}_images_per_second": batch_size / seconds for name, seconds in many.items()},
            "onnx_megabytes": megabytes,
        }
    return {
        "encoder": encoder,
        "input_size": input_size,
        "batch_size": batch_size,
        "device": device_name(torch.device("cpu")),
        "methods": found,
    }


def _medians(works: Mapping[str, Callable[[ndarray], Any]], images_BHW3: ndarray, windows: int) -> dict[str, float]:
    """Time detectors on a batch, in turn: for each its seconds."""
    calls = [functools.partial(work, images_BHW3) for work in works.values()]
    interleaved_seconds(calls, 1)  # the first call fills caches
    return dict(zip(works, map(statistics.median, interleaved_seconds(calls, windows)), strict=True))


def _fitted(experiment: Any, folder: Path, count: int) -> LoadedDetector:
    """Fit on images of noise, in a data set of the usual folders without test images."""
    place = folder / "data" / "noise" / "train" / "good"
    place.mkdir(parents=True)
    for number, pixels in enumerate(random_images(experiment.input_size_for("noise", "noise"), count)):
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    index = build_index("noise", "noise", folder / "data", kind="folder", test_needed=False)
    outputs = Outputs(folder / "checkpoint.pt", folder / "train.json", folder / "state")
    job = FitJob(experiment, "bench", index, 0, outputs, Tracker(), device="cpu")
    detector_method(experiment.method).fit(job)
    return load_for_export(outputs.checkpoint)
