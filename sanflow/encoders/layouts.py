"""Turn a network's output into a feature map: channels first, channels last or a row of tokens.

Suffixes: B images, C channels, h and w map height and width, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from torch import Tensor

from sanflow.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """The layout of one tap's output.

    Arguments:
        kind: `first` (B, C, h, w), `last` (B, h, w, C) or `tokens` (B, N, C), class tokens before the map's.
        channels: C.
        stride: Image pixels per map location.
    """

    kind: Literal["first", "last", "tokens"]
    channels: int
    stride: int

    def to_map(self, output: Tensor, image_size: Sequence[int]) -> Tensor:
        """Turn the tap's output into features_BChw; class and distillation tokens are dropped.

        Arguments:
            output: The tap's output in its own layout.
            image_size: Height and width of the images in pixels.
        """
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        height, width = (pixels // self.stride for pixels in image_size)
        tokens_BNC = output[:, output.shape[1] - height * width :]
        return tokens_BNC.transpose(1, 2).unflatten(2, (height, width))


def layout_of(shape: Sequence[int], image_size: Sequence[int], tap: str, channels_last: bool = False) -> Layout:
    """Tell the layout of a tap from the shape of its output for an image of known size.

    Arguments:
        shape: Shape of the output for one image.
        image_size: Height and width of that image; the width is a multiple of the height.
        tap: The tap's name, for the message.
        channels_last: Whether the network says that its maps are (B, h, w, C).

    Raises:
        ConfigError: If the output is no map of the image.
    """
    height, width = image_size
    ratio = width // height
    if len(shape) == 4 and not channels_last and _fits(shape[2], shape[3], ratio):
        return Layout("first", shape[1], _stride(image_size, shape[2], shape[3]))
    if len(shape) == 4 and _fits(shape[1], shape[2], ratio):
        return Layout("last", shape[3], _stride(image_size, shape[1], shape[2]))
    if len(shape) == 3:
        map_height = isqrt((shape[1]) // ratio)
        n_locations = map_height**2 * ratio
        # With more extra tokens than any transformer has, this is no map.
        if n_locations > 0 and shape[1] - n_locations <= 16 and height % map_height == 0:
            return Layout("tokens", shape[2], height // map_height)
    raise ConfigError(
        f"Expected tap {tap!r} to give a map of the image, but for a {height} x {width} image it gives "
        f"{f'a tensor of shape {tuple(shape)}' if shape else 'no single tensor'}. Choose another module as tap."
    )


def _fits(map_height: int, map_width: int, ratio: int) -> bool:
    # Without padding, maps lose a few locations a side, the same number in height and width.
    return 1 < map_height <= map_width and abs(map_width - ratio * map_height) <= 8 * (ratio - 1)


def _stride(image_size: Sequence[int], map_height: int, map_width: int) -> int:
    height, width = image_size
    if width > height and map_width > map_height:
        return round((width - height) / (map_width - map_height))
    return round(height / map_height)
