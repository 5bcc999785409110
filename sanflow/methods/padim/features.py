"""Bring the taps of an encoder to their finest grid and keep some of their channels.

Shapes: B images, C channels of a tap, h x w cells of its grid, P cells of the finest grid, D chosen dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sanflow.errors import ConfigError

# Of the paper, by the channels of the taps: ResNet-18's and WideResNet-50-2's first three stages.
PAPER_DIMENSIONS: dict[tuple[int, ...], int] = {(64, 128, 256): 100, (256, 512, 1024): 550}
OTHER_DIMENSIONS = 100


def choose_dimensions(channels: Sequence[int], dimensions: int | None, seed: int) -> Tensor:
    """Choose channels of the concatenated taps at random.

    Arguments:
        channels: Channels of each tap.
        dimensions: How many to choose. None: 100 for ResNet-18 and 550 for WideResNet-50-2 as in the paper, for other
            encoders 100, or all where there are fewer.
        seed: The global generator is neither read nor moved.

    Returns:
        (D,) int64 indices in ascending order.

    Raises:
        ConfigError: If there are fewer channels.
    """
    total = sum(channels)
    if dimensions is None:
        dimensions = PAPER_DIMENSIONS.get(tuple(channels), min(OTHER_DIMENSIONS, total))
    if dimensions > total:
        raise ConfigError(
            f"Expected `dimensions` of at most {total}, the channels of all taps together "
            f"({' + '.join(map(str, channels))}), but got {dimensions}. Set a smaller number, or leave it out."
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:dimensions].sort().values


def finest_grid(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return height and width of the largest of some grids."""
    return max(sizes, key=lambda size: size[0] * size[1])


def chosen_by_tap(chosen_D: Tensor, channels: Sequence[int]) -> list[Tensor]:
    """Split the chosen channels by tap.

    Arguments:
        chosen_D: Ascending indices into the concatenated channels.
        channels: Channels of each tap.

    Returns:
        For each tap the indices into its own channels.

    Example:
        >>> chosen_by_tap(torch.tensor([0, 3, 5]), [4, 2])
        [tensor([0, 3]), tensor([1])]
    """
    ends = [sum(channels[: tap + 1]) for tap in range(len(channels))]
    return [
        chosen_D[(chosen_D >= end - count) & (chosen_D < end)] - (end - count)
        for count, end in zip(channels, ends, strict=True)
    ]


def features_at_positions(features: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """Concatenate the taps on the finest grid, coarser cells repeated, and keep the chosen channels.

    Arguments:
        features: One tensor features_BChw a tap.
        chosen: For each tap the channels to keep, see `chosen_by_tap`.

    Returns:
        features_PBD, the positions row by row.
    """
    height, width = finest_grid([(tap.shape[2], tap.shape[3]) for tap in features])
    parts = []
    for features_BChw, of_tap in zip(features, chosen, strict=True):
        rows, columns = features_BChw.shape[2:]
        cells_qBD = features_BChw[:, of_tap].flatten(2).permute(2, 0, 1)
        if (rows, columns) != (height, width):
            cell_of_row = torch.arange(height, device=cells_qBD.device) * rows // height
            cell_of_column = torch.arange(width, device=cells_qBD.device) * columns // width
            cells_qBD = cells_qBD.contiguous()[(cell_of_row[:, None] * columns + cell_of_column).flatten()]
        parts.append(cells_qBD)
    return torch.cat(parts, dim=2)
