"""From grids of distances to smooth maps: scipy's filter on torch's enlargement."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from sanflow.methods.distance_maps import smooth_map


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(32, 32), (40, 21)])
def test_maps_equal_enlarging_then_filtering(upsampling, size):
    grid_Bhw = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    enlarged_BHW = F.interpolate(grid_Bhw[:, None], size=size, mode=upsampling)[:, 0]
    expected = np.stack([gaussian_filter(map_HW, 4.0) for map_HW in enlarged_BHW.numpy()])
    found = smooth_map(grid_Bhw, size, 4.0, upsampling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32


def test_a_constant_stays_constant():
    torch.testing.assert_close(smooth_map(torch.full((1, 6, 6), 3.0), (24, 24), 4.0), torch.full((1, 24, 24), 3.0))
