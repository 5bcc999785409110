r"""Compute a whole flow and its gradient in few operations, where calls take about as much time as arithmetic.

That is so for a chunk of 64 locations on a CPU, and on a GPU. The formulas are those of `CouplingBlock`; the gradients
are written by hand. A test compares both with autograd.

Inside, channels come first: the parts that a block's channels are split into are then contiguous, and a permutation
copies whole rows.

Shapes: L blocks, N locations, M positions that N is a multiple of, C channels, F and S in the first and the second part
of them, P of the position code, H hidden units of a subnet, O = 2 S outputs of it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from sanflow.methods.flow.coupling_flow import CouplingBlock

CLAMP = 1.9
# The subnet's output is scaled down, so that a fresh block is close to its global affine map.
COUPLING_SCALE = 0.1


def whole_flow(blocks: Sequence["CouplingBlock"], x_NC: Tensor, condition_MP: Tensor) -> tuple[Tensor, Tensor]:
    """Compute latents z_NC and log|det dz/dx| of shape (N,), with a gradient of first order.

    Arguments:
        blocks: Of one flow, in order.
        x_NC: Features.
        condition_MP: Condition of each location; or of the first M locations if it repeats from image to image.
    """
    device = x_NC.device.type
    # As in `CouplingBlock`, autocast's half precision is for the subnets alone.
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_NC.dtype
    parameters = zip(*(_parameters(block) for block in blocks), strict=True)
    return _WholeFlow.apply(blocks, products, x_NC, condition_MP, *(weight for kind in parameters for weight in kind))


def _parameters(block: "CouplingBlock") -> tuple[Tensor, ...]:
    subnet = block.subnet
    return (
        *(block.global_scale, block.global_offset, subnet.features_weight, subnet.condition_weight),
        *(subnet.hidden_bias, subnet.output_weight, subnet.output_bias),
    )


class _WholeFlow(torch.autograd.Function):
    """Parameters come kind by kind, each kind in the order of the blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        blocks: Sequence["CouplingBlock"],
        products: torch.dtype,
        x_NC: Tensor,
        condition_MP: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        n_blocks, (n_rows, channels) = len(blocks), x_NC.shape
        scales, offsets = parameters[:n_blocks], parameters[n_blocks : 2 * n_blocks]
        of_subnets = _cast(parameters[2 * n_blocks :], products)
        features_weights, condition_weights, hidden_biases, output_weights, output_biases = (
            of_subnets[first : first + n_blocks] for first in range(0, len(of_subnets), n_blocks)
        )
        condition_PM = condition_MP.T.to(products)
        split, repeats = blocks[0].splits[0], len(condition_MP) != n_rows
        raw_LC1, offset_LC1 = torch.stack(scales)[..., None], torch.stack(offsets)[..., None]
        scale_LC1 = 0.1 * F.softplus(raw_LC1, beta=0.5)

        first_parts, hidden = [], []
        # One more for the latents.
        input_LCN = x_NC.new_empty(n_blocks + 1, channels, n_rows)
        input_LCN[0] = x_NC.T
        tanh_LSN = x_NC.new_empty(n_blocks, channels - split, n_rows)
        exp_LSN, coupled_LSN = torch.empty_like(tanh_LSN), torch.empty_like(tanh_LSN)
        for i, block in enumerate(blocks):
            x1, x2 = input_LCN[i, :split], input_LCN[i, split:]
            first_parts.append(x1.to(products))
            of_condition_HM = torch.addmm(hidden_biases[i][:, None], condition_weights[i], condition_PM)
            if repeats:
                hidden_HN = features_weights[i] @ first_parts[i]
                hidden_HN.unflatten(1, (-1, len(condition_MP))).add_(of_condition_HM[:, None]).relu_()
            else:
                hidden_HN = of_condition_HM.addmm_(features_weights[i], first_parts[i]).relu_()
            hidden.append(hidden_HN)
            scaled_ON = torch.addmm(
                output_biases[i][:, None], output_weights[i], hidden_HN, beta=COUPLING_SCALE, alpha=COUPLING_SCALE
            )
            raw_s, t = scaled_ON.to(x_NC.dtype).chunk(2)
            torch.tanh(raw_s, out=tanh_LSN[i])
            torch.exp(CLAMP * tanh_LSN[i], out=exp_LSN[i])
            torch.addcmul(t, x2, exp_LSN[i], out=coupled_LSN[i])
            affine_CN = torch.empty_like(input_LCN[i])
            for part, where in ((x1, slice(split)), (coupled_LSN[i], slice(split, None))):
                torch.addcmul(offset_LC1[i, where], part, scale_LC1[i, where], out=affine_CN[where])
            block.mixing.mix_into(input_LCN[i + 1], affine_CN)
        ctx.blocks, ctx.split, ctx.repeats = blocks, split, repeats
        ctx.save_for_backward(
            *(raw_LC1, scale_LC1, condition_PM, input_LCN, coupled_LSN, tanh_LSN, exp_LSN),
            *(*first_parts, *hidden, *features_weights, *condition_weights, *output_weights),
        )
        return input_LCN[-1].T, CLAMP * tanh_LSN.sum(dim=(0, 1)) + scale_LC1.log().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NC: Tensor, grad_N: Tensor) -> tuple[Any, ...]:
        raw_LC1, scale_LC1, condition_PM, input_LCN, coupled_LSN, tanh_LSN, exp_LSN, *lists = ctx.saved_tensors
        n_blocks, split = len(ctx.blocks), ctx.split
        first_parts, hidden, features_weights, condition_weights, output_weights = (
            lists[first : first + n_blocks] for first in range(0, len(lists), n_blocks)
        )
        precision, grad_CN = grad_NC.dtype, grad_NC.T
        of_affine_LCN = torch.empty_like(input_LCN[:-1])
        of_output_LON = hidden[0].new_empty(n_blocks, 2 * coupled_LSN.shape[1], len(grad_NC))
        of_hidden_LHN = hidden[0].new_empty(n_blocks, *hidden[0].shape)
        of_features_weights, of_condition_weights, of_output_weights = ([grad_NC] * n_blocks for _ in range(3))
        of_condition_PM = torch.zeros_like(condition_PM) if ctx.needs_input_grad[3] else None
        # What lies between the subnet's output and s: s = CLAMP tanh(COUPLING_SCALE output).
        of_log_det_N = (CLAMP * COUPLING_SCALE) * grad_N
        for i in reversed(range(n_blocks)):
            # A mixing is orthogonal, so that its gradient is its inverse.
            ctx.blocks[i].mixing.mix_into(of_affine_LCN[i], grad_CN, inverse=True)
            of_coupled_CN = of_affine_LCN[i] * scale_LC1[i]
            of_t = of_coupled_CN[split:]
            grad_CN = torch.empty_like(of_coupled_CN)
            of_x2 = torch.mul(of_t, exp_LSN[i], out=grad_CN[split:])
            of_s = torch.addcmul(of_log_det_N, of_x2, input_LCN[i, split:], value=CLAMP * COUPLING_SCALE)
            of_raw_s, of_raw_t = of_output_LON[i].chunk(2)
            torch.ops.aten.tanh_backward.grad_input(of_s, tanh_LSN[i], grad_input=of_raw_s)
            torch.mul(of_t, COUPLING_SCALE, out=of_raw_t)
            of_relu_HN = output_weights[i].T @ of_output_LON[i]
            of_hidden_HN = of_hidden_LHN[i]
            torch.ops.aten.threshold_backward.grad_input(of_relu_HN, hidden[i], 0, grad_input=of_hidden_HN)
            of_hidden_HM = of_hidden_HN
            if ctx.repeats:
                of_hidden_HM = of_hidden_HN.unflatten(1, (-1, condition_PM.shape[1])).sum(dim=1)
            of_features_weights[i] = _product(of_hidden_HN, first_parts[i].T, precision)
            of_condition_weights[i] = _product(of_hidden_HM, condition_PM.T, precision)
            of_output_weights[i] = _product(of_output_LON[i], hidden[i].T, precision)
            if of_condition_PM is not None:
                of_condition_PM.addmm_(condition_weights[i].T, of_hidden_HM)
            if i or ctx.needs_input_grad[2]:
                of_x1 = _product(features_weights[i].T, of_hidden_HN, precision)
                torch.add(of_coupled_CN[:split], of_x1, out=grad_CN[:split])
        # The first part passes the coupling unchanged.
        of_first_LFN, of_second_LSN = of_affine_LCN.tensor_split([split], dim=1)
        of_scale_LC = torch.cat(
            [(of_first_LFN * input_LCN[:-1, :split]).sum(dim=2), (of_second_LSN * coupled_LSN).sum(dim=2)], dim=1
        )
        of_scale_LC.add_(grad_N.sum() / scale_LC1[..., 0])
        # The derivative of 0.1 softplus(g; beta = 0.5).
        of_raw_LC = of_scale_LC.mul_(torch.sigmoid(0.5 * raw_LC1[..., 0])).mul_(0.1)
        return (
            *(None, None, grad_CN.T if ctx.needs_input_grad[2] else None),
            None if of_condition_PM is None else of_condition_PM.T.to(precision),
            *of_raw_LC.unbind(),
            *of_affine_LCN.sum(dim=2).unbind(),
            *of_features_weights,
            *of_condition_weights,
            *of_hidden_LHN.sum(dim=2, dtype=precision).unbind(),
            *of_output_weights,
            *of_output_LON.sum(dim=2, dtype=precision).unbind(),
        )


def _cast(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the weights in another type, made in few kernels."""
    if weights[0].dtype == dtype:
        return list(weights)
    cast = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(cast, list(weights))
    return cast


def _product(left: Tensor, right: Tensor, precision: torch.dtype) -> Tensor:
    """Return left @ right in `precision`, on a GPU as one kernel."""
    if left.is_cuda and left.dtype != precision:
        return torch.mm(left, right, out_dtype=precision)
    return (left @ right).to(precision)
