r"""The conditional normalizing flow of one scale: it maps feature vectors with their positions to latent vectors.

`ConditionalFlow` is FrEIA's `SequenceINN` with our own block, `CouplingBlock`. It computes the same as FrEIA 0.2's
`AllInOneBlock` (whichever FrEIA is installed), with its permutation as an index instead of a dense matrix.

Shapes: N locations (all grid cells of a batch, images first), M positions that N is a multiple of (the cells of one
image, or N itself), C channels of the features, P of the position code, D = C - C // 2 + P inputs of the subnet.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from FrEIA.framework import SequenceINN
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn

from sanflow.device import autocast
from sanflow.methods.flow.whole_flow import CLAMP, COUPLING_SCALE, whole_flow

Permutation = Literal["index", "rotation"]

# The pre-activation whose global scale, 0.1 softplus(g; beta = 0.5), is 1.
INITIAL_GLOBAL_SCALE = 2 * math.log(math.expm1(5.0))


def position_code(channels: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    r"""Compute the fixed 2-D sine and cosine code of every grid cell, the condition of the flow.

    The first half of the channels encodes the column, the second half the row; channels 2k and 2k + 1 of a half are
    sine and cosine of the position times exp(-2k ln(10^4) / (P / 2)).

    Arguments:
        channels: P, divisible by 4.
        height: Rows of the grid.
        width: Columns of the grid.
        device: Device of the code.

    Returns:
        Code of shape (P, height, width) in [-1, 1], float32.

    Raises:
        ValueError: If `channels` is not a positive multiple of 4.

    Example:
        >>> position_code(4, 1, 2)[:, 0, 1]
        tensor([0.8415, 0.5403, 0.0000, 1.0000])
    """
    if channels <= 0 or channels % 4:
        raise ValueError(f"Expected position channels divisible by 4, but got {channels}; take 128 or 512.")
    half = channels // 2
    frequency_k = torch.exp(torch.arange(0.0, half, 2) * -(math.log(1e4) / half))
    code_PHW = torch.zeros(channels, height, width)
    column_kW = frequency_k[:, None] * torch.arange(0.0, width)
    row_kH = frequency_k[:, None] * torch.arange(0.0, height)
    code_PHW[0:half:2] = column_kW.sin()[:, None, :]
    code_PHW[1:half:2] = column_kW.cos()[:, None, :]
    code_PHW[half::2] = row_kH.sin()[:, :, None]
    code_PHW[half + 1 :: 2] = row_kH.cos()[:, :, None]
    return code_PHW.to(device)


# Without a limit, because a CUDA graph reads them for as long as it is replayed. A process has a handful of grids.
@cache
def position_condition(channels: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the position code of a grid as a condition (height * width, P); it is shared, do not write into it."""
    # Not an inference tensor, even when scoring asks first: autograd could not use one in a later training.
    with torch.inference_mode(False):
        return position_code(channels, height, width, device).to(dtype).flatten(1).T.contiguous()


class ConditionalFlow(nn.Module):
    """Invertible map from features to latents, given a condition; a chain of coupling blocks.

    Arguments:
        channels: C, channels of the features, at least 2.
        condition_channels: P, channels of the condition.
        blocks: Number of coupling blocks.
        permutation: Fixed mixing of the channels after each block, a random "index" or a random "rotation".
        seed: Of the initial weights and permutations; the global generator is neither read nor moved. None: draw none,
            because a state will be loaded.

    Example:
        >>> flow = ConditionalFlow(channels=6, condition_channels=4, blocks=2)
        >>> x_NC, condition_NP = torch.zeros(3, 6), torch.zeros(3, 4)
        >>> z_NC, log_det_N = flow(x_NC, condition_NP)
        >>> z_NC.shape, log_det_N.shape
        (torch.Size([3, 6]), torch.Size([3]))
    """

    def __init__(
        self,
        channels: int,
        condition_channels: int,
        blocks: int = 8,
        permutation: Permutation = "index",
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.channels, self.condition_channels = channels, condition_channels
        self.blocks = SequenceINN(channels)
        for _ in range(blocks):
            self.blocks.append(
                CouplingBlock, cond=0, cond_shape=(condition_channels,), permutation=permutation, generator=generator
            )

    @property
    def _blocks(self) -> list["CouplingBlock"]:
        return list(self.blocks.module_list)

    def forward(self, x_NC: Tensor, condition_MP: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to latents.

        Arguments:
            x_NC: Features, one row per location.
            condition_MP: Condition of each location; or of the first M locations if it repeats from image to image.

        Returns:
            Latents z_NC and log|det dz/dx| of shape (N,), both at least float32.

        Raises:
            ValueError: If the shapes do not fit.
        """
        self._check(x_NC, condition_MP)
        # On a CPU the calls take about as long as the arithmetic in small chunks only, on a GPU everywhere.
        if torch.is_grad_enabled() and (x_NC.is_cuda or _are_chunks(x_NC, condition_MP)):
            return whole_flow(self._blocks, x_NC, condition_MP)
        return self.blocks(x_NC, [condition_MP])

    def inverse(self, z_NC: Tensor, condition_MP: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents to features; return x_NC and log|det dx/dz| of shape (N,)."""
        self._check(z_NC, condition_MP)
        return self.blocks(z_NC, [condition_MP], rev=True)

    def _check(self, x_NC: Tensor, condition_MP: Tensor) -> None:
        if x_NC.ndim != 2 or x_NC.shape[1] != self.channels:
            raise ValueError(f"Expected features of shape (N, {self.channels}), but got {tuple(x_NC.shape)}.")
        if condition_MP.ndim != 2 or condition_MP.shape[1] != self.condition_channels:
            raise ValueError(
                f"Expected a condition of shape (M, {self.condition_channels}), but got {tuple(condition_MP.shape)}."
            )
        if x_NC.shape[0] % max(condition_MP.shape[0], 1):
            raise ValueError(
                f"Expected one condition for each of the {x_NC.shape[0]} locations or for each cell of one image, "
                f"but got {condition_MP.shape[0]}, which does not divide it."
            )


def _are_chunks(x_NC: Tensor, condition_MP: Tensor) -> bool:
    """Return whether each location has its own condition, outside autocast's half precision."""
    # The lengths last: an export, which has no gradients, would take them for fixed.
    return not torch.is_autocast_enabled(x_NC.device.type) and len(x_NC) == len(condition_MP)


class CouplingBlock(InvertibleModule):
    r"""Conditional affine coupling, then a global affine map, then a fixed mixing of the channels.

    With x = (x1, x2): (a, t) = 0.1 subnet(x1, condition), s = 1.9 tanh(a), x2 <- x2 exp(s) + t; then per channel
    x <- 0.1 softplus(g; beta = 0.5) x + offset; then the permutation. log|det| = sum(s) + sum(ln scale).

    Source:
        FrEIA 0.2's `AllInOneBlock` (SOFTPLUS), as on the package index: https://github.com/vislearn/FrEIA
    """

    def __init__(
        self,
        dims_in: list[tuple[int, ...]],
        dims_c: list[tuple[int, ...]],
        permutation: Permutation,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels, condition_channels = dims_in[0][0], dims_c[0][0]
        if channels < 2:
            raise ValueError(f"Expected at least 2 channels to split, but got {channels}.")
        self.splits = [channels - channels // 2, channels // 2]
        self.global_scale = nn.Parameter(torch.full((channels,), INITIAL_GLOBAL_SCALE))
        self.global_offset = nn.Parameter(torch.zeros(channels))
        self.subnet = Subnet(self.splits[0], condition_channels, 2 * self.splits[1], generator)
        self.mixing: IndexPermutation | Rotation
        if permutation == "index":
            self.mixing = IndexPermutation(channels, generator)
        elif permutation == "rotation":
            self.mixing = Rotation(channels, generator)
        else:
            raise ValueError(f"Expected permutation 'index' or 'rotation', but got {permutation!r}.")

    def forward(
        self, x: tuple[Tensor], c: list[Tensor], rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        """Apply the block, or its inverse if `rev`; the log-determinant is that of the chosen direction."""
        scale_C = 0.1 * F.softplus(self.global_scale, beta=0.5)
        x_NC = x[0]
        if rev:
            x_NC = (self.mixing.inverse(x_NC) - self.global_offset) / scale_C
        x1, x2 = x_NC.split(self.splits, dim=1)
        # Only the subnet runs in autocast's half precision; the likelihood keeps the features' precision.
        coefficients = COUPLING_SCALE * self.subnet(x1, c[0]).to(x_NC.dtype)
        s, t = coefficients.chunk(2, dim=1)
        s = CLAMP * s.tanh()
        log_det_N = s.sum(dim=1) + scale_C.log().sum()
        if rev:
            return (torch.cat([x1, (x2 - t) * (-s).exp()], dim=1),), -log_det_N
        x_NC = torch.cat([x1, torch.addcmul(t, x2, s.exp())], dim=1)
        return (self.mixing(torch.addcmul(self.global_offset, x_NC, scale_C)),), log_det_N

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the shape of the input, which is also that of the output."""
        return input_dims


class Subnet(nn.Module):
    """Linear(D, 2 D) - ReLU - Linear(2 D, outputs) on the features' first part and the condition.

    The first layer is W_x x + W_p p: since p is the same for every image, W_p p is computed once for the M positions
    and added to every image, which saves most of that layer's work.
    """

    def __init__(self, channels: int, condition_channels: int, outputs: int, generator: torch.Generator | None) -> None:
        super().__init__()
        inputs = channels + condition_channels
        self.features_weight = nn.Parameter(torch.empty(2 * inputs, channels))
        self.condition_weight = nn.Parameter(torch.empty(2 * inputs, condition_channels))
        self.hidden_bias = nn.Parameter(torch.empty(2 * inputs))
        self.output_weight = nn.Parameter(torch.empty(outputs, 2 * inputs))
        self.output_bias = nn.Parameter(torch.empty(outputs))
        if generator is None:
            return
        # torch's default of nn.Linear(D, 2 D) and nn.Linear(2 D, outputs).
        for parameter, fan_in in [
            (self.features_weight, inputs),
            (self.condition_weight, inputs),
            (self.hidden_bias, inputs),
            (self.output_weight, 2 * inputs),
            (self.output_bias, 2 * inputs),
        ]:
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)

    def forward(self, x_NC: Tensor, condition_MP: Tensor) -> Tensor:
        """Compute the coupling coefficients, shape (N, outputs)."""
        of_condition_MH = F.linear(condition_MP, self.condition_weight, self.hidden_bias)
        x_BMC = x_NC.unflatten(0, (-1, condition_MP.shape[0]))
        # In place: the hidden layer is the largest tensor there is, and no gradient reads what is written over.
        hidden_BMH = F.linear(x_BMC, self.features_weight).add_(of_condition_MH).relu_()
        return F.linear(hidden_BMH, self.output_weight, self.output_bias).flatten(0, 1)


class IndexPermutation(nn.Module):
    """Fixed random order of the channels, applied by index; volume-preserving."""

    order: Tensor
    inverse_order: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None) -> None:
        super().__init__()
        order = torch.arange(channels) if generator is None else torch.randperm(channels, generator=generator)
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", self.order.argsort(), persistent=False)
        self.register_load_state_dict_post_hook(IndexPermutation._invert)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Permute the channels: channel i of the result is channel order[i] of x."""
        return _Gather.apply(x_NC, self.order, self.inverse_order)

    def inverse(self, x_NC: Tensor) -> Tensor:
        """Undo `forward`."""
        return _Gather.apply(x_NC, self.inverse_order, self.order)

    def mix_into(self, out_CN: Tensor, x_CN: Tensor, inverse: bool = False) -> None:
        """Write the result of `forward`, or of `inverse`, channels first and without a gradient."""
        torch.index_select(x_CN, 0, self.inverse_order if inverse else self.order, out=out_CN)

    @staticmethod
    def _invert(module: "IndexPermutation", _: Any) -> None:
        module.inverse_order = module.order.argsort()


class _Gather(torch.autograd.Function):
    """x[:, order], whose gradient is a gather too; torch's own would scatter with atomic additions."""

    @staticmethod
    def forward(x_NC: Tensor, order: Tensor, inverse_order: Tensor) -> Tensor:
        return x_NC.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, inverse_order = ctx.saved_tensors
        return _Gather.apply(gradients[0], inverse_order, order), None, None


class Rotation(nn.Module):
    """Fixed random rotation of the channels, FrEIA's `permute_soft`; volume-preserving.

    Uniform over the rotations: the Q of a Gaussian matrix's QR decomposition with the signs of R's diagonal moved
    into it (Mezzadri, How to generate random matrices from the classical compact groups, 2007), determinant +1.
    """

    matrix: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None) -> None:
        super().__init__()
        if generator is None:
            self.register_buffer("matrix", torch.eye(channels))
            return
        gaussian = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(gaussian)
        q = q * r.diagonal().sign()
        if torch.linalg.slogdet(q).sign < 0:
            q[:, 0].neg_()
        self.register_buffer("matrix", q.float())

    def forward(self, x_NC: Tensor) -> Tensor:
        """Rotate."""
        return self._multiply(x_NC, self.matrix)

    def inverse(self, x_NC: Tensor) -> Tensor:
        """Rotate back."""
        return self._multiply(x_NC, self.matrix.T)

    def mix_into(self, out_CN: Tensor, x_CN: Tensor, inverse: bool = False) -> None:
        """Write the result of `forward`, or of `inverse`, channels first and without a gradient."""
        with autocast("fp32", x_CN.device):
            torch.mm(self.matrix.T if inverse else self.matrix, x_CN, out=out_CN)

    def _multiply(self, x_NC: Tensor, matrix: Tensor) -> Tensor:
        # Full precision under autocast as well: in half precision or TF32 it would not be invertible any more.
        with autocast("fp32", x_NC.device):
            return F.linear(x_NC, matrix)
