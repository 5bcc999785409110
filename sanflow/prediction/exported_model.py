"""A detector as one graph of tensor operations: from float images to anomaly map and image score.

The detector computes its own grids; what follows is `sanflow.anomaly_maps.maps.fused` in torch.

Shapes: B images, H x W pixels of the input, h x w cells of a scale's grid, L scales.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sanflow.anomaly_maps.fusion import TAIL_BELOW, TAIL_SLOPE, neighbours, resize
from sanflow.anomaly_maps.maps import resized
from sanflow.errors import ExportError
from sanflow.methods.method import Detector, ExportableDetector


class ExportedModel(nn.Module):
    """A detector with its fusion.

    Arguments:
        detector: On the CPU.

    Raises:
        ExportError: If the detector cannot be exported.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        if not isinstance(detector, ExportableDetector):
            raise ExportError(
                f"Expected a detector whose `score_floats` is a graph of tensor operations, but {type(detector)} has "
                "none. Give it that method (sanflow/methods/method.py), or use `sanflow predict`."
            )
        self.detector = detector
        # What is computed once and kept (position codes, smoothing) must be there before a graph is made.
        with torch.no_grad():
            grids = detector.score_floats(torch.zeros(1, 3, *detector.input_size)).grids
        sizes = {name: (grid_Bhw.shape[1], grid_Bhw.shape[2]) for name, grid_Bhw in grids.items()}
        self.fusion: nn.Module
        if detector.kind == "anomaly_map":
            self.fusion = Resizing(sizes["map"], detector.input_size)
        else:
            self.fusion = CalibratedFusion(sizes, detector.constants, detector.input_size)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Score images.

        Arguments:
            images_B3HW: float32 in [0, 1], of the detector's input size.

        Returns:
            Maps (B, H, W) and image scores (B,), higher for more anomalous; of the types that `fused` gives.
        """
        output = self.detector.score_floats(images_B3HW)
        maps_BHW = self.fusion(list(output.grids.values()))
        own = output.image_scores
        return maps_BHW, maps_BHW.amax((1, 2)) if own is None else own


class Resizing(nn.Module):
    """Finished maps at another size, see `resized`; it is linear, so one matrix per axis."""

    def __init__(self, grid_size: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.same = grid_size == size
        height, width = (_resizing(cells, pixels) for cells, pixels in zip(grid_size, size, strict=True))
        self.register_buffer("rows_Hh", height)
        self.register_buffer("columns_wW", width.T.contiguous())

    def forward(self, grids: Sequence[Tensor]) -> Tensor:
        """Resize the maps, (B, H, W)."""
        (maps_Bhw,) = grids
        return maps_Bhw if self.same else self.get_buffer("rows_Hh") @ maps_Bhw @ self.get_buffer("columns_wW")


class CalibratedFusion(nn.Module):
    """Log-probabilities per scale to one map in float64, see `sanflow.anomaly_maps.fusion.calibrated`.

    Arguments:
        sizes: Name of a scale -> (h, w) of its grid.
        constants: Name of a scale -> the constant that calibrates it.
        size: (H, W) of the map.
    """

    def __init__(
        self, sizes: Mapping[str, tuple[int, int]], constants: Mapping[str, float], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.constants = [constants[name] for name in sizes]
        self.scales = nn.ModuleList(_Scale(grid_size, size) for grid_size in sizes.values())

    def forward(self, grids: Sequence[Tensor]) -> Tensor:
        """Fuse grids (B, h, w) to maps (B, H, W)."""
        log_grids = [
            (grid_Bhw.double() - constant).clamp(max=0.0)
            for grid_Bhw, constant in zip(grids, self.constants, strict=True)
        ]
        scales = cast(Iterable[_Scale], self.scales)
        parts = list(zip(scales, log_grids, strict=True))
        maps_BHW = torch.stack([scale.resized(-torch.expm1(log_Bhw)) for scale, log_Bhw in parts]).sum(0)
        terms = torch.cat([scale.log_terms(log_Bhw) for scale, log_Bhw in parts])
        largest_BHW = terms.amax(0)
        log_sum_BHW = largest_BHW + (terms - largest_BHW).exp().sum(0).log()
        end = len(parts) - TAIL_BELOW
        tail_BHW = end + (TAIL_BELOW - log_sum_BHW.exp()) + TAIL_SLOPE * (math.log(TAIL_BELOW) - log_sum_BHW)
        return torch.where(maps_BHW > end, tail_BHW, maps_BHW)


class _Scale(nn.Module):
    """Bilinear interpolation of one scale's grid, of values and of logarithms."""

    def __init__(self, grid_size: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        for axis, cells, pixels in zip(("rows", "columns"), grid_size, size, strict=True):
            self.register_buffer(axis, torch.from_numpy(resize(np.eye(cells)[None], (pixels, cells))[0]))
            near = neighbours(cells, pixels)
            with np.errstate(divide="ignore"):  # a weight of 0 is a logarithm of -inf
                logs = np.log(np.stack([weight for _, weight in near]))
            self.register_buffer(f"near_{axis}", torch.from_numpy(np.stack([cell for cell, _ in near])))
            self.register_buffer(f"log_{axis}", torch.from_numpy(logs))

    def resized(self, grid_Bhw: Tensor) -> Tensor:
        """Resize the grid to the size of the map, (B, H, W)."""
        return self.get_buffer("rows") @ grid_Bhw @ self.get_buffer("columns").T

    def log_terms(self, log_Bhw: Tensor) -> Tensor:
        """Compute the logarithms of a pixel's four neighbours times their weights, (4, B, H, W)."""
        terms = []
        for cell_H, log_H in zip(self.get_buffer("near_rows"), self.get_buffer("log_rows"), strict=True):
            rows_BHw = log_Bhw.index_select(1, cell_H) + log_H[:, None]
            for cell_W, log_W in zip(self.get_buffer("near_columns"), self.get_buffer("log_columns"), strict=True):
                terms.append(rows_BHw.index_select(2, cell_W) + log_W)
        return torch.stack(terms)


def _resizing(cells: int, pixels: int) -> Tensor:
    """Return the matrix (pixels, cells) of `resized` along one axis."""
    return torch.from_numpy(np.array(resized(np.eye(cells, dtype=np.float32), (pixels, cells))))
