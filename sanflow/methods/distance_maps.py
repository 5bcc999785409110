"""Shared by PaDiM and PatchCore: from images to frozen features, and from a grid of distances to an anomaly map.

Shapes: B images of N, C channels of a tap, h x w cells of a grid, H x W pixels of the input.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from sanflow.device import unit_images
from sanflow.encoders import Encoder
from sanflow.methods.distance_settings import DistanceExperiment, Upsampling

FIT_BATCH = {"cpu": 8, "cuda": 32}


class DistanceMaps:
    """First and last step of a method that measures distances of frozen features: encoding and making maps.

    Arguments:
        encoder: On its device.
        experiment: Crop, smoothing and upsampling.
        input_size: Height and width of the images.

    Attributes:
        seen_size: Height and width of the part of an image that the encoder sees.
    """

    def __init__(self, encoder: Encoder, experiment: DistanceExperiment, input_size: tuple[int, int]) -> None:
        self.encoder, self.experiment = encoder, experiment
        height, width = input_size
        crop = experiment.crop
        self.seen_size = (height, width) if crop is None else (crop, crop)
        self.top, self.left = (height - self.seen_size[0]) // 2, (width - self.seen_size[1]) // 2
        self.input_size = input_size

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """Encode images in [0, 1], on the encoder's device: features_BChw of each tap."""
        rows, columns = self.seen_size
        seen_B3hw = images_B3HW[:, :, self.top : self.top + rows, self.left : self.left + columns]
        return self.encoder(self.encoder.normalise(seen_B3hw))

    def features_of_all(self, images_NHW3: ndarray, device: torch.device) -> Iterator[list[Tensor]]:
        """Encode all training images batch by batch, with a progress bar on a terminal."""
        console = Console(stderr=True)
        size = FIT_BATCH[device.type]
        starts = range(0, len(images_NHW3), size)
        for start in track(starts, "features", console=console, disable=not console.is_terminal, transient=True):
            images_BHW3 = torch.from_numpy(np.array(images_NHW3[start : start + size]))
            yield self.features(unit_images(images_BHW3, device))

    def maps(self, distances_Bhw: Tensor) -> Tensor:
        """Turn grids of distances into anomaly maps (B, H, W)."""
        experiment = self.experiment
        maps_BHW = smooth_map(distances_Bhw, self.seen_size, experiment.smoothing, experiment.upsampling)
        if self.seen_size == self.input_size:
            return maps_BHW
        bottom = self.input_size[0] - self.top - self.seen_size[0]
        right = self.input_size[1] - self.left - self.seen_size[1]
        return F.pad(maps_BHW[:, None], (self.left, right, self.top, bottom), mode="replicate")[:, 0]


def smooth_map(grid_Bhw: Tensor, size: tuple[int, int], sigma: float, upsampling: Upsampling = "bilinear") -> Tensor:
    """Enlarge grids to the size of their images and smooth them with a Gaussian.

    Both steps are linear and separable, so that together they are one matrix per axis.

    Arguments:
        grid_Bhw: Distances, one a cell.
        size: (H, W) of the map.
        sigma: Standard deviation of the Gaussian in pixels of the map; 0 for none. It is cut off at 4 sigma, and the
            map is mirrored at its border, as `scipy.ndimage.gaussian_filter` does.
        upsampling: "bilinear" without aligned corners, or "nearest".

    Returns:
        Maps (B, H, W).

    Example:
        >>> smooth_map(torch.tensor([[[0.0, 1.0]]]), (1, 4), sigma=0.0)
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    rows_Hh = _enlarge_and_smooth(grid_Bhw.shape[1], size[0], sigma, upsampling).to(grid_Bhw)
    columns_Ww = _enlarge_and_smooth(grid_Bhw.shape[2], size[1], sigma, upsampling).to(grid_Bhw)
    return rows_Hh @ grid_Bhw @ columns_Ww.T


@lru_cache(maxsize=64)
def _enlarge_and_smooth(cells: int, pixels: int, sigma: float, upsampling: Upsampling) -> Tensor:
    """Return the matrix (pixels, cells) of the cells' weights for each pixel; do not write into it."""
    options: dict[str, Any] = {"mode": "nearest"}
    if upsampling == "bilinear":
        options = {"mode": "linear", "align_corners": False}
    # Not an inference tensor, even when scoring asks first: an export could not use one.
    with torch.inference_mode(False):
        identity_1cc = torch.eye(cells, dtype=torch.float64)[None]
        weights_pc = F.interpolate(identity_1cc, size=pixels, **options)[0].T.contiguous()
        if sigma == 0:
            return weights_pc
        return torch.from_numpy(gaussian_filter1d(weights_pc.numpy(), sigma, axis=0))
