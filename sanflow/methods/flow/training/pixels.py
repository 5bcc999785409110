"""Prepare uint8 images for the encoder: on the device, in batches, without waiting.

Shapes: B images, H x W pixels, 3 channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sanflow.device import unit_images
from sanflow.encoders import Encoder
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch


def rotated(images_B3HW: Tensor, degrees: list[float]) -> Tensor:
    """Rotate each image counter-clockwise about its middle; nearest pixel, black where there was none."""
    height, width = images_B3HW.shape[-2:]
    rows = []
    for angle in map(math.radians, degrees):
        cosine, sine = math.cos(angle), math.sin(angle)
        # In grid_sample's coordinates the half width and half height are both 1.
        rows.append([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    theta_B23 = torch.tensor(rows, dtype=images_B3HW.dtype).to(images_B3HW.device, non_blocking=True)
    grid_BHW2 = F.affine_grid(theta_B23, list(images_B3HW.shape), align_corners=False)
    return F.grid_sample(images_B3HW, grid_BHW2, mode="nearest", padding_mode="zeros", align_corners=False)


def prepare(
    batch: Batch,
    anomalies: SyntheticAnomalies | None,
    encoder: Encoder,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """Return images as the encoder sees them, and where they are synthetic anomalies.

    Returns:
        images_B3HW, normalised; mask_B1HW in [0, 1], or None if the experiment has no synthetic anomalies.
    """
    images_B3HW = unit_images(batch.images_BHW3, device, dtype)
    mask_B1HW = None
    if batch.angles is not None:
        images_B3HW = rotated(images_B3HW, batch.angles)
    if anomalies is not None and batch.drawing is not None:
        foreign = None if batch.foreign_nHW3 is None else unit_images(batch.foreign_nHW3, device, dtype)
        images_B3HW, mask_B1HW = anomalies.paint(images_B3HW, foreign, batch.drawing)
    return encoder.normalise(images_B3HW), mask_B1HW
