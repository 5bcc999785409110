"""BatchNorm whose sums are exact enough on a CPU in the channels-last layout.

torch's own kernel adds up all pixels of a channel one after the other there: over four images of 256 x 256 its output
is off by 1e-3 in fp32, where a sum in parts is off by 1e-7.

Shapes: B images, C channels, H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# 4 MB of float32.
BAND_ELEMENTS = 2**20


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, with its parameters, buffers and formula."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalise each channel, in training by this batch, in evaluation by the running statistics."""
        # A GPU's kernel sums in parts, and the rounding of bf16 is larger than this error.
        if not self.training or features_BCHW.is_cuda or features_BCHW.dtype == torch.bfloat16:
            return super().forward(features_BCHW)
        normalised_BCHW, mean_C, var_C = _Normalise.apply(features_BCHW, self.weight, self.bias, self.eps)
        count = features_BCHW.numel() / features_BCHW.shape[1]
        assert self.momentum is not None
        with torch.no_grad():
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean_C, self.momentum)
            self.get_buffer("running_var").lerp_(var_C * (count / (count - 1)), self.momentum)
        return normalised_BCHW


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and the biased variance of the batch."""

    @staticmethod
    def forward(
        ctx: Any, features_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C = features_BCHW.mean(dim=(0, 2, 3))
        var_C = _mean_square(features_BCHW, mean_C)
        inverse_std_C = torch.rsqrt(var_C + eps)
        ctx.save_for_backward(features_BCHW, weight_C, mean_C, inverse_std_C)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean_C, var_C)
        scale_C = inverse_std_C * weight_C
        shift_C = bias_C - mean_C * scale_C
        return torch.addcmul(_per_channel(shift_C), features_BCHW, _per_channel(scale_C)), mean_C, var_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        features_BCHW, weight_C, mean_C, inverse_std_C = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            *(grad_BCHW, features_BCHW, weight_C, None, None, mean_C, inverse_std_C),
            train=True,
            eps=ctx.eps,
            output_mask=[True, True, True],
        )
        return (*grads, None)


def _mean_square(features_BCHW: Tensor, centre_C: Tensor) -> Tensor:
    """Compute the mean of (features - centre)^2 over all but the channels, in bands of rows that fit the cache."""
    batch, channels, height, width = features_BCHW.shape
    rows = max(1, BAND_ELEMENTS // (batch * channels * width))
    sum_C = torch.zeros_like(centre_C)
    for band_BChW in features_BCHW.split(rows, dim=2):
        sum_C += (band_BChW - _per_channel(centre_C)).square_().sum(dim=(0, 2, 3))
    return sum_C / (batch * height * width)


def _per_channel(values_C: Tensor) -> Tensor:
    return values_C.view(1, -1, 1, 1)
