"""Cut images into overlapping tiles, and join the features of the tiles to those of the images.

A cell of the joined map comes from one tile only, and each seam is in the middle of an overlap: near the edge of a
tile, features depend on the encoder's padding, and a mean of two tiles would keep a part of that. Tiles begin at whole
cells of every scale, so their cells are those of the image.

Suffixes: B images, C channels of a scale, H and W image height and width, h and w map height and width, T side of a
tile, t side of its map.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sanflow.errors import ConfigError


class Place(NamedTuple):
    """The place of a tile along one axis of an image, in pixels.

    Arguments:
        start: First pixel of the tile.
        first: First pixel whose features it gives.
        end: Pixel after the last one whose features it gives.
    """

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Tiling:
    """Square tiles of one size.

    Arguments:
        size: Side in pixels.
        overlap: Pixels by which neighbouring tiles overlap at least.
    """

    size: int
    overlap: int

    def places(self, pixels: int, cell: int) -> list[Place]:
        """Place tiles along one axis of an image, as few as possible and evenly spread.

        Arguments:
            pixels: Of the image along the axis; like `size` and `overlap` divisible by `cell`.
            cell: Tiles begin and give features at multiples of so many pixels.

        Example:
            >>> Tiling(64, 16).places(160, 8)
            [Place(start=0, first=0, end=56), Place(start=48, first=56, end=104), Place(start=96, first=104, end=160)]
        """
        cells, step = (pixels - self.size) // cell, (self.size - self.overlap) // cell
        gaps = -(-cells // step)
        starts = [index * cells // max(gaps, 1) * cell for index in range(gaps + 1)]
        seams = [(start + following + self.size) // 2 // cell * cell for start, following in pairwise(starts)]
        return [Place(start, *part) for start, part in zip(starts, pairwise([0, *seams, pixels]), strict=True)]

    def features(
        self, images_B3HW: Tensor, encode: Callable[[Tensor], list[Tensor]], strides: Sequence[int]
    ) -> list[Tensor]:
        """Compute the features of images tile by tile.

        Arguments:
            images_B3HW: Images.
            encode: Gives features_BCtt of each scale for tiles_B3TT. It is called with one tile of each image at a
                time, so that its memory does not grow with the images' size; in an exported graph with all of them.
            strides: Image pixels per map location of each scale.

        Returns:
            One tensor features_BChw of the whole images a scale.

        Raises:
            ConfigError: If such images cannot be cut into such tiles.
        """
        height, width = images_B3HW.shape[2:]
        self.require_images(height, width, strides)
        rows, columns = (self.places(pixels, math.lcm(*strides)) for pixels in (height, width))
        tiles = (
            images_B3HW[:, :, row.start : row.start + self.size, column.start : column.start + self.size]
            for row in rows
            for column in columns
        )
        # A graph with one call of the network for each tile would take minutes to export.
        encoded = _at_once(encode, list(tiles)) if torch.compiler.is_compiling() else map(encode, tiles)
        bands = []
        for row in rows:
            parts = [
                [
                    features_BCtt[:, :, _cells(row, stride), _cells(column, stride)]
                    for features_BCtt, stride in zip(features, strides, strict=True)
                ]
                for column, features in zip(columns, encoded, strict=False)
            ]
            bands.append([torch.cat(of_scale, dim=3) for of_scale in zip(*parts, strict=True)])
        return [torch.cat(of_scale, dim=2) for of_scale in zip(*bands, strict=True)]

    def require_images(self, height: int, width: int, strides: Sequence[int]) -> None:
        """Refuse images that cannot be cut into such tiles.

        Arguments:
            height: Of the images in pixels.
            width: Of the images in pixels.
            strides: Image pixels per map location of each scale.

        Raises:
            ConfigError: If a tile is larger than an image, or the image has parts of cells.
        """
        if self.size > min(height, width):
            raise ConfigError(
                f"Expected images of at least `tile_size` ({self.size}) pixels a side, but got {height} x {width}. Set "
                "`tile_size` lower, or leave it out."
            )
        cell = math.lcm(*strides)
        if height % cell or width % cell:
            raise ConfigError(
                f"Expected images of a height and width divisible by {cell}, the encoder's stride, so that cells of "
                f"tiles are cells of the image, but got {height} x {width}. Near sizes are {_near(height, cell)} x "
                f"{_near(width, cell)}; or leave `tile_size` out."
            )

    def require_encoder(self, map_sizes: Callable[[int, int], list[tuple[int, int]]], strides: Sequence[int]) -> None:
        """Refuse an encoder whose maps of tiles do not fit together.

        Arguments:
            map_sizes: Gives height and width of each scale's map for images of a height and width.
            strides: Image pixels per map location of each scale.

        Raises:
            ConfigError: If tiles have parts of cells, or maps have other sizes than the strides say.
        """
        cell = math.lcm(*strides)
        if self.size % cell or self.overlap % cell:
            raise ConfigError(
                f"Expected `tile_size` and `tile_overlap` divisible by {cell}, the encoder's stride, so that cells of "
                f"tiles are cells of the image, but got {self.size} and {self.overlap}. Near numbers are "
                f"{_near(self.size, cell)} and {_near(self.overlap, cell)}."
            )
        for found, stride in zip(map_sizes(self.size, self.size), strides, strict=True):
            cells = self.size // stride
            if found != (cells, cells):
                raise ConfigError(
                    f"Expected a map of {cells} x {cells} cells for a tile of {self.size} pixels at stride {stride}, "
                    f"but the encoder gives {found[0]} x {found[1]}, because it does not pad all of its layers: such "
                    "maps do not fit together. Leave `tile_size` out, or choose other `taps` or another encoder."
                )


def _at_once(encode: Callable[[Tensor], list[Tensor]], tiles: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Encode all tiles in one call; give the features of each scale, tile by tile."""
    scales = [features_NCtt.unflatten(0, (len(tiles), -1)) for features_NCtt in encode(torch.cat(tiles))]
    return zip(*scales, strict=True)


def _cells(place: Place, stride: int) -> slice:
    """Return the cells of a tile's map whose features it gives."""
    return slice((place.first - place.start) // stride, (place.end - place.start) // stride)


def _near(pixels: int, cell: int) -> int:
    return round(pixels / cell) * cell
