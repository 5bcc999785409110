"""Make a network's convolutions pad by reflection, as the ResNets of both releases do.

The released weights were trained with zero padding; only the padding of the finished network changes. Pooling
keeps its own padding.

Shapes: B images, C channels, H x W pixels.
"""

from functools import cache, partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanflow.errors import ConfigError


def pad_by_reflection(network: nn.Module, name: str) -> None:
    """Let every convolution larger than 1 x 1 pad its input by reflection instead of zeros, in place.

    Arguments:
        network: Any network of plain convolutions.
        name: The encoder's name, for the message.

    Raises:
        ConfigError: If no convolution pads, or one pads in a way of its own (TensorFlow's "same").
    """
    spatial = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1]
    # A subclass may pad inside its own forward, where `padding_mode` has no effect.
    own_way = [layer for layer in spatial if type(layer) is not nn.Conv2d or isinstance(layer.padding, str)]
    padded = [layer for layer in spatial if any(side != 0 for side in layer.padding)]
    if own_way or not padded:
        found = f"{len(own_way)} pad in a way of their own" if own_way else "none pads at all"
        raise ConfigError(
            f"Expected every convolution of {name} to pad with zeros so that it can pad by reflection, but {found}. "
            "Set `padding: zeros` for this encoder."
        )
    for layer in padded:
        layer.register_forward_pre_hook(partial(_pad_input, padding=cast(tuple[int, int], layer.padding)))
        layer.padding = (0, 0)


def reflected(features_BCHW: Tensor, padding: tuple[int, int]) -> Tensor:
    """Pad by reflection.

    Arguments:
        features_BCHW: Of more rows and columns than are added on a side.
        padding: Rows and columns to add on each side.
    """
    rows, columns = padding
    if not features_BCHW.is_cuda:
        return F.pad(features_BCHW, (columns, columns, rows, rows), mode="reflect")
    # torch's kernel for GPUs knows the contiguous layout only, so that it comes with two copies to another layout.
    height, width = features_BCHW.shape[-2:]
    row_H, column_W = (mirrored(size, side, features_BCHW.device) for size, side in ((height, rows), (width, columns)))
    return features_BCHW.permute(0, 2, 3, 1)[:, row_H[:, None], column_W].permute(0, 3, 1, 2)


def _pad_input(_: nn.Module, inputs: tuple[Tensor], padding: tuple[int, int]) -> Tensor:
    return reflected(inputs[0], padding)


# Without a limit, because a CUDA graph reads them for as long as it is replayed. A process has a handful of sizes.
@cache
def mirrored(size: int, side: int, device: torch.device) -> Tensor:
    """Return which of `size` places each place of a padded axis shows, shape (size + 2 * side,)."""
    # Not an inference tensor, even when scoring asks first: autograd could not use one in a later training.
    with torch.inference_mode(False):
        places = torch.arange(-side, size + side).abs()
        return ((size - 1) - (size - 1 - places).abs()).to(device)
