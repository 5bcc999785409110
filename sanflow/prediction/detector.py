"""A fitted detector, ready for images: score, p-value and anomaly map.

Shapes: B images, H x W the input size of the detector.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from PIL import Image

from sanflow.anomaly_maps.maps import fused
from sanflow.data.decode import FILTERS, Reading, decode_image
from sanflow.device import repeatable
from sanflow.errors import DataError
from sanflow.evaluation.conformal import p_values
from sanflow.methods.checkpoints import Checkpoint, load_checkpoint
from sanflow.methods.method import Detector
from sanflow.methods.registry import detector_method

RESAMPLING = "lanczos"  # as test images are read


@dataclass(frozen=True)
class Prediction:
    """The result of a detector for one image.

    Arguments:
        score: Higher is more anomalous.
        p_value: Share of good parts with at least this score, see `sanflow.evaluation.conformal`; None where the
            detector has no held-out parts.
        map_HW: Anomaly map at the input size.
    """

    score: float
    p_value: float | None
    map_HW: ndarray


@dataclass(frozen=True)
class Batch:
    """Predictions of several images.

    Arguments:
        scores_B: Image scores, float64.
        grids: Name of a scale -> (B, h, w) float32, from which a map of any size is made.
        maps_BHW: Anomaly maps at the input size.
    """

    scores_B: ndarray
    grids: dict[str, ndarray]
    maps_BHW: ndarray


class LoadedDetector:
    """A detector with what its checkpoint holds: how to read images, and the scores of good parts.

    Arguments:
        detector: On its device.
        checkpoint: It was made from.
    """

    def __init__(self, detector: Detector, checkpoint: Checkpoint) -> None:
        self.detector, self.checkpoint = detector, checkpoint
        self.reading = Reading(**checkpoint.facts.get("reading", {}))
        self.input_size = detector.input_size

    @property
    def held_out(self) -> ndarray | None:
        """Scores of the good parts that calibrate it, (N,); None if there are none."""
        scores = None if self.checkpoint.held_out is None else self.checkpoint.held_out["scores"]
        return None if scores is None else np.asarray(scores, np.float64)

    @property
    def held_out_parts(self) -> ndarray | None:
        """Names of the parts that these scores are of, (N,); None: each of another one."""
        names = None if self.checkpoint.held_out is None else self.checkpoint.held_out.get("parts")
        return None if names is None else np.asarray(names, str)

    def __call__(self, image: "str | Path | Image.Image | ndarray") -> Prediction:
        """Score one image.

        Arguments:
            image: A path, a Pillow image, or an array (H, W) or (H, W, 3) of uint8 or uint16, of any size.

        Raises:
            DataError: If it cannot be read.
        """
        batch = self.score(self.read(image)[None])
        held_out = self.held_out
        p_value = None if held_out is None else float(p_values(batch.scores_B, held_out, self.held_out_parts)[0])
        return Prediction(float(batch.scores_B[0]), p_value, batch.maps_BHW[0])

    def read(self, image: "str | Path | Image.Image | ndarray") -> ndarray:
        """Read an image as the test images of its training were read: (H, W, 3) uint8 of the input size."""
        height, width = self.input_size
        rgb = self.decode(image)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), FILTERS[RESAMPLING])
        return np.asarray(rgb)

    def decode(self, image: "str | Path | Image.Image | ndarray") -> Image.Image:
        """Decode an image to upright RGB, at its own size."""
        if isinstance(image, str | os.PathLike):
            return decode_image(Path(image), reading=self.reading)
        if isinstance(image, np.ndarray):
            return _from_array(image, self.reading)
        return image.convert("RGB")

    def score(self, images_BHW3: ndarray) -> Batch:
        """Score images of the input size, uint8."""
        with repeatable(seconds_matter=False):
            output = self.detector(torch.from_numpy(np.array(images_BHW3)))
        grids = {name: grid_Bhw.float().cpu().numpy() for name, grid_Bhw in output.grids.items()}
        maps_BHW = self.maps(grids, self.input_size)
        own = output.image_scores
        scores_B = maps_BHW.max(axis=(1, 2)) if own is None else own.float().cpu().numpy()
        return Batch(scores_B.astype(np.float64), grids, maps_BHW)

    def maps(self, grids: dict[str, ndarray], size: tuple[int, int]) -> ndarray:
        """Make anomaly maps of any size (H, W) from the grids of images."""
        return fused(self.detector.kind, grids, self.detector.constants, size)


def load_detector(path: str | os.PathLike[str], device: str = "auto") -> LoadedDetector:
    """Load a fitted detector.

    Arguments:
        path: checkpoint.pt of a run.
        device: `auto`, `cuda` or `cpu`.

    Raises:
        DataError: If there is no such file.
        IntegrityError: If it is damaged or of another version.
        WeightsError: If the weights of its encoder cannot be obtained.
    """
    return detector_of(load_checkpoint(path), device)


def detector_of(checkpoint: Checkpoint, device: str) -> LoadedDetector:
    """Build the detector of a checkpoint; see `load_detector`."""
    method = detector_method(checkpoint.experiment.method)
    with repeatable(seconds_matter=False):
        return LoadedDetector(method.load(checkpoint, device), checkpoint)


def _from_array(values: ndarray, reading: Reading) -> Image.Image:
    """Make an image from numbers, as if it were read from a file."""
    if values.ndim not in {2, 3} or (values.ndim == 3 and values.shape[2] != 3):
        raise DataError(f"Expected an array (H, W) or (H, W, 3), but got shape {values.shape}.")
    if values.dtype == np.uint16:
        white = 65535 if reading.bits is None else 2**reading.bits - 1
        values = (np.minimum(values, white).astype(np.int64) * 255 + white // 2) // white
    elif values.dtype != np.uint8:
        raise DataError(f"Expected an array of uint8 or uint16, but got {values.dtype}. Scale it to 8 bits first.")
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def calibrate(detector: LoadedDetector, images: Any) -> dict[str, Any]:
    """Score good parts that the fit did not see.

    Arguments:
        detector: The fitted detector.
        images: Batches (B, H, W, 3) of uint8, read as test images are.

    Returns:
        The entries of a checkpoint: `scores` of the images and `map_maxima`, the maxima of their maps.
    """
    scores, maxima = [], []
    for images_BHW3 in images:
        batch = detector.score(images_BHW3)
        scores += batch.scores_B.tolist()
        maxima += batch.maps_BHW.max(axis=(1, 2)).astype(float).tolist()
    return {"scores": scores, "map_maxima": maxima}
