"""Write a detector as one ONNX file, and check it in onnxruntime against torch.

The file computes in fp32 and fuses in float64, whatever `precision` the detector was fitted with.

Shapes: N images, B of a batch, H x W the input size.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from sanflow.data.registry import load_registry
from sanflow.encoders.licences import weights_licence
from sanflow.errors import ConfigError, ExportError
from sanflow.evaluation.conformal import number_of_parts, threshold
from sanflow.files import atomic_path, storage_errors
from sanflow.methods.checkpoints import load_checkpoint
from sanflow.prediction.detector import RESAMPLING, LoadedDetector, detector_of
from sanflow.prediction.exported_model import ExportedModel

EXTRA = ("onnx", "onnxscript", "onnxruntime")
# A protobuf message ends at 2 GiB; the graph around the tensors gets the rest.
LARGEST_BYTES = 2**31 - 2**24
TOLERANCE = 1e-3
LEVEL = 0.05
RANDOM_IMAGES = 8
TIMED_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How an exported file compares to torch on the same images.

    Arguments:
        images: How many.
        largest_difference: Of any pixel, over the range of torch's maps.
        torch_images_per_second: From bytes to map and score.
        onnx_images_per_second: The same.
    """

    images: int
    largest_difference: float
    torch_images_per_second: float
    onnx_images_per_second: float


class OnnxDetector:
    """An exported file in onnxruntime, on the CPU, with as many threads as torch has.

    Arguments:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(self, images_BHW3: ndarray) -> tuple[ndarray, ndarray]:
        """Score uint8 images: maps (B, H, W) and scores (B,)."""
        images_B3HW = np.ascontiguousarray(images_BHW3.transpose(0, 3, 1, 2), np.float32) / 255
        maps_BHW, scores_B = self.session.run(["map", "score"], {"images": images_B3HW})
        return maps_BHW, scores_B


def load_for_export(path: Path) -> LoadedDetector:
    """Load a fitted detector on the CPU, in fp32.

    Raises:
        ConfigError: If a package of the extra is not installed.
        DataError: If there is no such file.
        IntegrityError: If it is damaged or of another version.
    """
    require_extra()
    checkpoint = load_checkpoint(path)
    if hasattr(checkpoint.experiment, "precision"):
        experiment = checkpoint.experiment.model_copy(update={"precision": "fp32"})
        checkpoint = dataclasses.replace(checkpoint, experiment=experiment)
    return detector_of(checkpoint, "cpu")


def require_extra() -> None:
    """Refuse to go on without the packages of the extra `onnx`.

    Raises:
        ConfigError: If one of them is not installed.
    """
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"Expected the packages {', '.join(EXTRA)} for ONNX, but {name} cannot be imported ({error}). Install "
                "them with `pip install 'sanflow[onnx]'`."
            ) from error


def export_onnx(detector: LoadedDetector, output: Path, images_NHW3: ndarray, batch_size: int = 8) -> Agreement:
    """Write a detector as an ONNX file; the file appears only if it agrees with torch.

    Arguments:
        detector: From `load_for_export`.
        output: The file to write.
        images_NHW3: uint8, of the input size, to compare on.
        batch_size: Images at once in the comparison.

    Raises:
        ExportError: If the detector is no graph, is too large for the format, or the file computes something else.
        StorageError: If the disk is full.
    """
    content = onnx_bytes(detector)
    with storage_errors(output), atomic_path(output) as temporary:
        temporary.write_bytes(content)
        agreement = compare(detector, OnnxDetector(temporary), images_NHW3, batch_size)
        # A NaN is no agreement.
        if not agreement.largest_difference <= TOLERANCE:
            raise ExportError(
                f"Expected anomaly maps within {TOLERANCE:g} of torch's, relative to their range, but the largest "
                f"difference is {agreement.largest_difference:.2g}; nothing was written. Try other images with "
                "`--check`; if it stays, please report it with the versions of torch, onnxscript and onnxruntime."
            )
    return agreement


def onnx_bytes(detector: LoadedDetector) -> bytes:
    """Make the content of the ONNX file.

    Raises:
        ExportError: If the detector is no graph or is too large for the format.
    """
    model = ExportedModel(detector.detector).eval()
    example_B3HW = torch.zeros(2, 3, *detector.input_size)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (example_B3HW,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["images"],
            output_names=["map", "score"],
            verbose=False,
        )
    assert program is not None
    tensors = [value.const_value for value in program.model.graph.initializers.values()]
    n_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if n_bytes > LARGEST_BYTES:
        raise ExportError(
            f"Expected a detector of at most {LARGEST_BYTES / 1e9:.2f} GB, the most that one ONNX file holds, but this "
            f"one has {n_bytes / 1e9:.2f} GB. Fit a smaller one: fewer `dimensions` (PaDiM), a lower "
            "`coreset_fraction` (PatchCore), a smaller encoder or `input_size`."
        )
    proto = program.model_proto
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            "Expected a detector that scores any number of images, but its graph is fixed to one number. In its "
            "`score_floats`, take numbers of images from shapes, not from len(), and do not branch on them."
        )
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        # The exporter notes the paths of the source code here.
        del node.metadata_props[:]
    for key, value in metadata(detector).items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's notes for its developers while open."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def metadata(detector: LoadedDetector) -> dict[str, str]:
    """Describe what the file needs and what it is; values are text or JSON."""
    checkpoint, provenance = detector.checkpoint, detector.checkpoint.provenance
    height, width = detector.input_size
    entry = load_registry().get(provenance.dataset)
    described: dict[str, Any] = {
        "input": {
            "name": "images",
            "layout": "B3HW",
            "channels": "RGB",
            "type": "float32",
            "range": [0.0, 1.0],
            "size": [height, width],
            "normalisation": "inside the file",
        },
        "reading": {
            "decoding": "upright, 8 bits a channel; grey repeated, alpha dropped",
            "bits_of_16": detector.reading.bits,
            "resampling": f"{RESAMPLING} to the input size, whatever the aspect ratio; then divided by 255",
            "usual_size": checkpoint.facts.get("image_size"),
        },
        "outputs": {
            "map": "(B, H, W) at the input size; higher is more anomalous",
            "score": "(B,); higher is more anomalous",
        },
        "held_out": held_out_summary(detector),
    }
    return {
        "format": "sanflow onnx 1",
        "method": checkpoint.experiment.method,
        "experiment": provenance.experiment_name,
        "dataset": provenance.dataset,
        "category": provenance.category,
        "checkpoint_digest": checkpoint.digest,
        "licence_of_encoder_weights": weights_licence(provenance.encoder or {}),
        "licence_of_data": "not registered: the user's own data" if entry is None else entry.licence,
        "sanflow": importlib.metadata.version("sanflow"),
        **{name: json.dumps(value) for name, value in described.items()},
    }


def held_out_summary(detector: LoadedDetector) -> dict[str, Any] | None:
    """Summarise the scores of the held-out good parts; None if there are none.

    Returns:
        `parts`, `smallest`, `median`, `largest`, and `threshold` at `false_alarm_rate`: a part is anomalous where its
        score exceeds it. The threshold is None where there are too few parts for that rate.
    """
    scores_N, parts_N = detector.held_out, detector.held_out_parts
    if scores_N is None:
        return None
    try:
        found = threshold(LEVEL, scores_N, parts_N)
    except ConfigError:  # too few parts
        found = None
    return {
        "parts": number_of_parts(scores_N, parts_N),
        "smallest": float(scores_N.min()),
        "median": float(np.median(scores_N)),
        "largest": float(scores_N.max()),
        "false_alarm_rate": LEVEL,
        "threshold": found,
    }


def compare(detector: LoadedDetector, exported: OnnxDetector, images_NHW3: ndarray, batch_size: int) -> Agreement:
    """Compare maps and speed of an exported file with those of torch.

    Arguments:
        detector: On the CPU.
        exported: The file.
        images_NHW3: uint8, of the input size.
        batch_size: Images at once.
    """
    batches = [images_NHW3[first : first + batch_size] for first in range(0, len(images_NHW3), batch_size)]
    lowest, highest, largest = np.inf, -np.inf, 0.0
    for images_BHW3 in batches:
        expected, (maps_BHW, scores_B) = detector.score(images_BHW3), exported.score(images_BHW3)
        lowest, highest = min(lowest, expected.maps_BHW.min()), max(highest, expected.maps_BHW.max())
        differences = np.abs(maps_BHW - expected.maps_BHW).max(), np.abs(scores_B - expected.scores_B).max()
        largest = float(np.max([largest, *differences]))
    seconds = interleaved_seconds(
        [
            lambda: [detector.score(images_BHW3) for images_BHW3 in batches],
            lambda: [exported.score(images_BHW3) for images_BHW3 in batches],
        ],
        TIMED_PASSES,
    )
    by_torch, by_onnx = (len(images_NHW3) / statistics.median(passes) for passes in seconds)
    scale = float(highest - lowest)
    return Agreement(len(images_NHW3), largest / scale if scale else largest, by_torch, by_onnx)


def interleaved_seconds(works: Sequence[Callable[[], Any]], passes: int) -> list[list[float]]:
    """Time pieces of work that take turns, so that all meet the same load: for each its seconds, pass by pass."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(passes):
        for work, taken in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return seconds


def random_images(size: tuple[int, int], count: int = RANDOM_IMAGES) -> ndarray:
    """Draw images of noise, (N, H, W, 3) uint8; the same ones each time."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
