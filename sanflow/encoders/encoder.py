"""The frozen feature extractor that the rest of sanflow uses.

Suffixes: B images, C channels of a scale, H and W image height and width, h and w map height and width.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sanflow.device import MEMORY_FORMAT
from sanflow.encoders.layouts import Layout
from sanflow.encoders.taps import shapes_at_taps
from sanflow.encoders.tiling import Tiling
from sanflow.errors import ConfigError


class Encoder(nn.Module):
    """A frozen network that turns images into feature maps, one a scale, in the order of the flows.

    It is always in eval mode and never takes part in a gradient. Built by `build_encoder`.

    Arguments:
        network: A module that gives the taps' outputs as a list.
        layouts: Layout of each tap's output.
        mean: Subtracted from the images' three channels, which are in [0, 1].
        std: They are divided by this afterwards.
        identity: Facts that decide the features: name, tag, taps, padding, digest of the weights and so on.
        fixed_size: The one height and width it takes, if it takes only one.
        feature_scales: Number by which each scale is divided, or None.
        tiling: How images are cut into the tiles that the network sees; None: it sees whole images.

    Attributes:
        channels: Channels of each scale.
        strides: Image pixels per map location of each scale.
        feature_scales: Number by which each scale is divided, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        layouts: Sequence[Layout],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        identity: dict[str, Any],
        fixed_size: tuple[int, int] | None = None,
        feature_scales: Sequence[float] | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layouts = tuple(layouts)
        self.channels = [layout.channels for layout in layouts]
        self.strides = [layout.stride for layout in layouts]
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.fixed_size = fixed_size
        self.tiling = tiling
        self._identity = identity
        self.set_feature_scales(feature_scales)
        self.requires_grad_(False)
        self.train(False)
        if tiling is not None:
            tiling.require_encoder(self._sizes_at_once, self.strides)

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that decide the features, as plain values for the checkpoint and the provenance."""
        tiles = {} if self.tiling is None else {"tile_size": self.tiling.size, "tile_overlap": self.tiling.overlap}
        return {**self._identity, "feature_scales": self.feature_scales, **tiles}

    def set_feature_scales(self, feature_scales: Sequence[float] | None) -> None:
        """Divide each scale by a number from now on; None for the features as they are.

        Arguments:
            feature_scales: One positive number a scale, such as `measure_feature_scales` gives.

        Raises:
            ConfigError: If their number or a value does not fit.
        """
        self.feature_scales: list[float] | None = None
        if feature_scales is not None:
            values = [float(value) for value in feature_scales]
            if len(values) != len(self.channels) or not all(0 < value < float("inf") for value in values):
                raise ConfigError(
                    f"Expected {len(self.channels)} positive feature scales, one a scale of {self._identity['name']}, "
                    f"but got {values}. Measure them again with `measure_feature_scales`."
                )
            self.feature_scales = values

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode for any argument, because a frozen network has no other."""
        return super().train(False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """Normalise images in [0, 1] by the network's mean and standard deviation, in the fastest memory layout."""
        constants = torch.tensor([self.mean, self.std], dtype=images_B3HW.dtype)
        mean_3, std_3 = constants.to(images_B3HW.device, non_blocking=True)
        return ((images_B3HW - mean_3[:, None, None]) / std_3[:, None, None]).contiguous(memory_format=MEMORY_FORMAT)

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Compute the features of normalised images.

        Arguments:
            images_B3HW: From `normalise`.

        Returns:
            One tensor features_BChw a scale, in the order of the flows.

        Raises:
            ConfigError: If the network cannot take images of this size.
        """
        if self.tiling is None:
            features = self._seen_at_once(images_B3HW)
        else:
            features = self.tiling.features(images_B3HW, self._seen_at_once, self.strides)
        if self.feature_scales is None:
            return features
        return [features_BChw / scale for features_BChw, scale in zip(features, self.feature_scales, strict=True)]

    def _seen_at_once(self, images_B3HW: Tensor) -> list[Tensor]:
        """Compute the features of whole images, or of one tile of each."""
        height, width = images_B3HW.shape[2:]
        self._require_size(height, width)
        outputs = self.network(images_B3HW)
        return [layout.to_map(output, (height, width)) for layout, output in zip(self.layouts, outputs, strict=True)]

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Find height and width of each scale's map for images of a size, without computing the features.

        Raises:
            ConfigError: If the network cannot take images of this size.
        """
        if self.tiling is None:
            return self._sizes_at_once(height, width)
        self.tiling.require_images(height, width, self.strides)
        return [(height // stride, width // stride) for stride in self.strides]

    def _sizes_at_once(self, height: int, width: int) -> list[tuple[int, int]]:
        """Find the sizes of the maps for whole images, or for tiles, of a size."""
        self._require_size(height, width)
        sizes = []
        for layout, shape in zip(self.layouts, shapes_at_taps(self.network, height, width), strict=True):
            if layout.kind == "tokens":
                sizes.append((height // layout.stride, width // layout.stride))
            else:
                sizes.append((shape[2], shape[3]) if layout.kind == "first" else (shape[1], shape[2]))
        return sizes

    def _require_size(self, height: int, width: int) -> None:
        name = self._identity["name"]
        what, key = ("images", "input_size") if self.tiling is None else ("tiles", "tile_size")
        if self.fixed_size is not None and (height, width) != self.fixed_size:
            rows, columns = self.fixed_size
            value = f"[{rows}, {columns}]" if self.tiling is None else max(self.fixed_size)
            raise ConfigError(
                f"Expected {what} of {rows} x {columns} for {name}, which takes no other size, but got {height} x "
                f"{width}. Set `{key}: {value}` or choose another encoder."
            )
        patch = max((layout.stride for layout in self.layouts if layout.kind == "tokens"), default=1)
        if height % patch or width % patch:
            raise ConfigError(
                f"Expected image height and width divisible by {patch}, the patch size of {name}, "
                f"but got {height} x {width}. Choose such an `input_size`."
            )
        deepest = max(self.strides)
        # A map of one cell cannot be padded by reflection.
        if self._identity.get("padding") == "reflect" and min(height, width) <= deepest:
            raise ConfigError(
                f"Expected {what} of more than {deepest} pixels for {name}, which pads by reflection at stride "
                f"{deepest}, but got {height} x {width}. Choose a larger `{key}` or `padding: zeros`."
            )
