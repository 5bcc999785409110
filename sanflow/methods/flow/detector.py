"""The trained flows as a detector: from uint8 images to log-probabilities per scale.

Shapes: B images of N, C channels, H x W pixels, h x w cells of a scale's grid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sanflow.anomaly_maps.fusion import calibration_constants
from sanflow.anomaly_maps.scores_file import Kind
from sanflow.cores import on_own_core
from sanflow.device import autocast, choose_device, device_name, placed, unit_images, usable_precision
from sanflow.encoders import Encoder
from sanflow.methods.checkpoints import Checkpoint
from sanflow.methods.flow.model import AnomalyFlow, FlowScores
from sanflow.methods.method import Output

MOST_CALIBRATION_IMAGES = 400
CALIBRATION_BATCH = 8


class FlowDetector:
    """A trained model with its encoder.

    Arguments:
        model: In eval mode, on its device.
        encoder: The one it was trained with, on the same device.
        input_size: Height and width of the images.
        precision: Of matrix products and convolutions, as the device computes them.
        constants: Name of a scale -> the constant that calibrates it.
    """

    kind: Kind = "log_prob"

    def __init__(
        self,
        model: AnomalyFlow,
        encoder: Encoder,
        input_size: tuple[int, int],
        precision: Any,
        constants: dict[str, float],
    ) -> None:
        self.model, self.encoder = model, encoder
        self.input_size, self.precision, self.constants = input_size, precision, constants
        self.torch_device = next(model.parameters()).device
        self.device = device_name(self.torch_device)

    def __call__(self, images_BHW3: Tensor, *, extras: bool = False) -> Output:
        """Score a batch of uint8 images; see `Detector`."""
        scale = min(1, len(self.model.flows) - 1)
        device = self.torch_device
        with on_own_core(device), torch.inference_mode(), autocast(self.precision, device):
            found = self._score(unit_images(images_BHW3, device), scale if extras else None)
        output = _output_of(found)
        if extras:
            output.variance_Bhw, output.latents_NC = found.variance_Bhw, found.latents_NC
            output.latent_scale = scale_names(scale + 1)[scale]
        return output

    def score_floats(self, images_B3HW: Tensor) -> Output:
        """Score images in [0, 1] on the device, in fp32; see `ExportableDetector`."""
        return _output_of(self._score(images_B3HW))

    def _score(self, images_B3HW: Tensor, latents_of: int | None = None) -> FlowScores:
        normalised_B3HW = self.encoder.normalise(images_B3HW)
        return self.model.score(self.encoder(normalised_B3HW), normalised_B3HW, latents_of)


def _output_of(found: FlowScores) -> Output:
    return Output(dict(zip(scale_names(len(found.grids)), found.grids, strict=True)))


def load(checkpoint: Checkpoint, device: str) -> FlowDetector:
    """Build the detector of a checkpoint."""
    chosen = choose_device(device)
    model = AnomalyFlow.from_experiment(checkpoint.facts["channels"], checkpoint.experiment, seed=None)
    model.load_state_dict(checkpoint.state)
    return FlowDetector(
        placed(model.eval(), chosen),
        placed(checkpoint.build_encoder(), chosen),
        checkpoint.input_size,
        usable_precision(checkpoint.experiment.precision, chosen),
        checkpoint.constants,
    )


def measure_constants(
    model: AnomalyFlow, encoder: Encoder, images_NHW3: ndarray, input_size: tuple[int, int], precision: Any
) -> dict[str, float]:
    """Measure the constants that make a score depend on its image alone, on normal training images.

    Arguments:
        model: In training or eval mode; it is left as it was.
        encoder: On the same device.
        images_NHW3: All training images, uint8; at most 400 of them, evenly spread, are used.
        input_size: Their height and width.
        precision: Of matrix products and convolutions.

    Returns:
        Name of a scale -> the largest log p / C of its locations.
    """
    was_training = model.training
    detector = FlowDetector(model.eval(), encoder, input_size, precision, {})
    chosen = evenly_spread(len(images_NHW3), MOST_CALIBRATION_IMAGES)
    largest: list[Sequence[float]] = []
    for start in range(0, len(chosen), CALIBRATION_BATCH):
        images_BHW3 = torch.from_numpy(np.array(images_NHW3[chosen[start : start + CALIBRATION_BATCH]]))
        grids = [grid_Bhw.float().cpu().numpy() for grid_Bhw in detector(images_BHW3).grids.values()]
        largest.append(calibration_constants(grids))
    model.train(was_training)
    constants = [max(of_scale) for of_scale in zip(*largest, strict=True)]
    return dict(zip(scale_names(len(constants)), constants, strict=True))


def scale_names(n_scales: int) -> list[str]:
    """Return the names of the grids, in the order of the flows."""
    return [f"scale{scale}" for scale in range(n_scales)]


def evenly_spread(n: int, most: int) -> ndarray:
    """Return at most `most` of n places, evenly spread.

    Example:
        >>> evenly_spread(5, 3)
        array([0, 2, 4])
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
