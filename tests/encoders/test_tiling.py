"""Tiles: where they are, what joined features equal, how far they may differ, and what is refused."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sanflow.encoders import Encoder, build_encoder
from sanflow.encoders.layouts import Layout
from sanflow.encoders.tiling import Place, Tiling
from sanflow.errors import ConfigError

LITE = "timm/tf_efficientnet_lite0.in1k"
RESNET = "timm/resnet18.tv_in1k"


def images(height: int, width: int, count: int = 2) -> Tensor:
    """Smooth random images: of noise alone, the encoders make little that depends on more than a few pixels."""
    coarse = torch.randn(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")


def largest_difference(tiled: Tensor, whole: Tensor) -> float:
    """Of any feature, over the features' standard deviation."""
    assert tiled.shape == whole.shape
    return ((tiled - whole).abs().max() / whole.std()).item()


def test_places_by_hand() -> None:
    # 40 cells are left after the first tile, and a step of 14 cells leaves at least 2 cells of overlap: three steps.
    starts, seams = [0, 208, 416, 640], [0, 224, 432, 656, 896]
    assert Tiling(256, 32).places(896, 16) == [
        Place(start, *part) for start, part in zip(starts, pairwise(seams), strict=True)
    ]
    assert Tiling(64, 16).places(64, 8) == [Place(0, 0, 64)]
    assert Tiling(64, 56).places(72, 8) == [Place(0, 0, 32), Place(8, 32, 72)]


@pytest.mark.parametrize("cell", [1, 4])
def test_laws_of_places(cell: int) -> None:
    for size in range(cell, 12 * cell, cell):
        for overlap in range(0, size, cell):
            for pixels in range(size, 40 * cell, cell):
                case = (size, overlap, pixels)
                places = Tiling(size, overlap).places(pixels, cell)
                assert len(places) == 1 + -(-(pixels - size) // (size - overlap)), case
                assert [place.start % cell for place in places] == [0] * len(places), case
                assert (places[0].start, places[-1].start + size) == (0, pixels), case
                assert (places[0].first, places[-1].end) == (0, pixels), case
                for place, following in pairwise(places):
                    shared = place.start + size - following.start
                    assert shared >= overlap, case
                    assert place.end == following.first, case
                    # The seam is in the middle of what both cover, to within a cell.
                    assert shared / 2 - cell < place.end - following.start <= shared / 2, case


class Patches(nn.Module):
    """Two pointwise scales: each cell depends on its own pixels alone. Notes how many images it sees at once."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3, 4, 4, generator=generator))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        self.seen.append(tuple(images_B3HW.shape))
        fine = nn.functional.conv2d(images_B3HW, self.weight, stride=4).relu()
        return [nn.functional.avg_pool2d(fine, 2), fine]


def pointwise(tiling: Tiling | None) -> Encoder:
    layouts = [Layout("first", 6, 8), Layout("first", 6, 4)]
    return Encoder(Patches(), layouts, mean=[0.0] * 3, std=[1.0] * 3, identity={"name": "patches"}, tiling=tiling)


@pytest.mark.parametrize(("size", "overlap"), [(16, 8), (24, 16), (40, 0), (48, 40)])
def test_pointwise_features_are_equal(size: int, overlap: int) -> None:
    whole, tiled = pointwise(None), pointwise(Tiling(size, overlap))
    pixels = images(48, 104)
    for one, other in zip(tiled(pixels), whole(pixels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert tiled.map_sizes(48, 104) == whole.map_sizes(48, 104) == [(6, 13), (12, 26)]


def test_the_network_never_sees_more_than_one_tile_of_each_image() -> None:
    tiled = pointwise(Tiling(16, 8))
    tiled.network.seen.clear()  # type: ignore[union-attr,operator]
    tiled(images(48, 104, count=3))
    assert tiled.network.seen == [(3, 3, 16, 16)] * 5 * 12


def test_features_are_divided_and_identified_as_without_tiles() -> None:
    assert {**pointwise(None).identity, "tile_size": 16, "tile_overlap": 8} == pointwise(Tiling(16, 8)).identity
    tiled = pointwise(Tiling(16, 8))
    pixels = images(48, 56)
    undivided = tiled(pixels)
    tiled.set_feature_scales([2.0, 4.0])
    for one, other, scale in zip(tiled(pixels), undivided, (2.0, 4.0), strict=True):
        assert torch.equal(one, other / scale)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_with_an_overlap_of_the_receptive_field_a_convolutional_network_is_equal(padding: str) -> None:
    # A cell of layer1 sees 7 + 2 * 2 + 4 * 2 * 4 = 43 pixels, 21 or 22 to each side: less than half of the overlap.
    settings = {"weights": "random", "taps": ["layer1"], "padding": padding}
    pixels = images(96, 160)
    (whole,) = build_encoder(RESNET, **settings)(pixels)
    (tiled,) = build_encoder(RESNET, **settings, tile_size=80, tile_overlap=48)(pixels)
    assert largest_difference(tiled, whole) < 1e-5
    (narrow,) = build_encoder(RESNET, **settings, tile_size=80, tile_overlap=32)(pixels)
    assert 1e-5 < largest_difference(narrow, whole) < 1


def test_a_network_of_one_size_sees_each_tile_as_an_image() -> None:
    cait = {"name": "timm/cait_xxs24_224.fb_dist_in1k", "weights": "random", "taps": ["blocks.0"]}
    pixels = images(448, 224, count=1)
    (whole,) = build_encoder(**cait, tile_size=224, tile_overlap=0)(pixels)
    alone = build_encoder(**cait)
    for half in (0, 1):
        (expected,) = alone(pixels[:, :, 224 * half : 224 * (half + 1)])
        torch.testing.assert_close(whole[:, :, 14 * half : 14 * (half + 1)], expected, rtol=1e-5, atol=1e-5)


def test_messages_about_images() -> None:
    tiled = pointwise(Tiling(48, 8))
    for use in (lambda *size: tiled(images(*size)), tiled.map_sizes):
        with pytest.raises(ConfigError, match=r"at least `tile_size` \(48\) pixels a side, but got 40 x 96\. Set"):
            use(40, 96)
        with pytest.raises(ConfigError, match=r"width divisible by 8, .* but got 100 x 96\. Near sizes are 96 x 96"):
            use(100, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_size": 72, "tile_overlap": 32}, r"divisible by 16, .* but got 72 and 32\. Near numbers are 64 and 32"),
        ({"tile_size": 64, "tile_overlap": 25}, r"divisible by 16, .* but got 64 and 25\. Near numbers are 64 and 32"),
        (
            {"name": "torchvision/squeezenet1_0", "taps": ["features.5"], "tile_size": 64},
            "a map of 16 x 16 cells for a tile of 64 pixels at stride 4, but the encoder gives 14 x 14",
        ),
        (
            {"name": "timm/cait_xxs24_224.fb_dist_in1k", "taps": ["blocks.0"], "tile_size": 112},
            r"Expected tiles of 224 x 224 .* but got 112 x 112\. Set `tile_size: 224`",
        ),
        (
            {"name": RESNET, "taps": ["layer3"], "padding": "reflect", "tile_size": 16},
            "Expected tiles of more than 16 pixels .* Choose a larger `tile_size`",
        ),
    ],
)
def test_messages_about_encoders(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(**{"name": LITE, "weights": "random", "taps": ["blocks.2", "blocks.4"], **arguments})
