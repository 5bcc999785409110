"""From bytes to what the encoder sees: on the device, in batches, nothing waits.

Shapes: B images, H x W pixels, 3 channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sanflow.device import MEMORY_FORMAT
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch


def to_device(images_BHW3: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes as (B, 3, H, W) in [0, 1]; copied without waiting where the memory is page-locked."""
    moved_B3HW = images_BHW3.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return moved_B3HW.to(dtype).div_(255)


def normalised(images_B3HW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Less the mean, divided by the standard deviation, per channel."""
    constants = torch.tensor([mean, std], dtype=images_B3HW.dtype).to(images_B3HW.device, non_blocking=True)
    return (images_B3HW - constants[0, :, None, None]) / constants[1, :, None, None]


def rotated(images_B3HW: Tensor, degrees: list[float]) -> Tensor:
    """Each image turned counter-clockwise about its middle; nearest pixel, black where there was none."""
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
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """Images as the encoder sees them, and where they are synthetic anomalies.

    Returns:
        images_B3HW, normalised; mask_B1HW in [0, 1], or None if the experiment has no synthetic anomalies.
    """
    images_B3HW = to_device(batch.images_BHW3, device, dtype)
    mask_B1HW = None
    if batch.angles is not None:
        images_B3HW = rotated(images_B3HW, batch.angles)
    if anomalies is not None and batch.drawing is not None:
        foreign = None if batch.foreign_nHW3 is None else to_device(batch.foreign_nHW3, device, dtype)
        images_B3HW, mask_B1HW = anomalies.paint(images_B3HW, foreign, batch.drawing)
    return normalised(images_B3HW, mean, std).contiguous(memory_format=MEMORY_FORMAT), mask_B1HW
