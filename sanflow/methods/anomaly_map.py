"""Turn a grid of distances into an anomaly map: enlarged to the image, then smoothed.

Both steps are linear and separable, so that together they are one matrix per axis.

Shapes: B images, h x w cells of the grid, H x W pixels of the map.
"""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

Upsampling = Literal["bilinear", "nearest"]


def smooth_map(grid_Bhw: Tensor, size: tuple[int, int], sigma: float, upsampling: Upsampling = "bilinear") -> Tensor:
    """Enlarge grids to the size of their images and smooth them with a Gaussian.

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
    """Matrix (pixels, cells) whose rows are the weights of the cells for one pixel; do not write into it."""
    identity_1cc = torch.eye(cells, dtype=torch.float64)[None]
    if upsampling == "nearest":
        enlarged_1cp = F.interpolate(identity_1cc, size=pixels, mode="nearest")
    else:
        enlarged_1cp = F.interpolate(identity_1cc, size=pixels, mode="linear", align_corners=False)
    weights_pc = enlarged_1cp[0].T.contiguous()
    if sigma == 0:
        return weights_pc
    return torch.from_numpy(gaussian_filter1d(weights_pc.numpy(), sigma, axis=0))
