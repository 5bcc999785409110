"""BatchNorm whose sums do not lose digits in a processor's channels-last layout.

torch's own kernel adds up all pixels of a channel one after the other there: over four images of 256 x 256 its output
is off by 1e-3 in fp32, where a sum in parts is off by 1e-7.

Shapes: B images, C channels, H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, with its parameters, buffers and formula."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalise each channel, in training by this batch, in evaluation by the running statistics."""
        # A GPU's kernel adds up in parts, and bf16 rounds coarser than what is lost here.
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
    """Features to (x - mean) / sqrt(var + eps) * weight + bias, the mean and the biased variance of the batch."""

    @staticmethod
    def forward(
        ctx: Any, features_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean_C = features_BCHW.mean(dim=(0, 2, 3))
        centred_BCHW = features_BCHW - mean_C.view(1, -1, 1, 1)
        var_C = centred_BCHW.square().mean(dim=(0, 2, 3))
        inverse_std_C = torch.rsqrt(var_C + eps)
        ctx.save_for_backward(features_BCHW, weight_C, mean_C, inverse_std_C)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean_C, var_C)
        normalised_BCHW = centred_BCHW.mul_((inverse_std_C * weight_C).view(1, -1, 1, 1))
        return normalised_BCHW.add_(bias_C.view(1, -1, 1, 1)), mean_C, var_C

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
