"""The encoders with listed taps: those that the release names, and the one whose weights are bundled.

The release names architectures, not weights; each tag here is the choice of this project. `in_release` says
whether the released code runs with that encoder; where it does not, the taps are this project's choice.
"""

from dataclasses import dataclass

RESNETS_PADDED_BY_REFLECTION = frozenset(
    {"resnet18", "resnet34", "resnet50", "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d"}
)
"""Architectures, in timm's and torchvision's spelling alike, that the release runs with reflection padding."""


@dataclass(frozen=True)
class ListedEncoder:
    """One encoder with taps of its own.

    Arguments:
        name: The name that `build_encoder` takes, with the tag of the weights.
        taps: Modules whose outputs are the features, in the order of the flows; with n scales the last n count.
        channels: Channels at each tap.
        strides: Image pixels per map location at each tap.
        in_release: Whether the released code runs with it.
        note: A remark on it.
    """

    name: str
    taps: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_release: bool
    note: str = ""


def _resnet(name: str, channels: tuple[int, ...], in_release: bool) -> ListedEncoder:
    return ListedEncoder(
        name,
        ("layer1", "layer2", "layer3", "layer4"),
        channels,
        (4, 8, 16, 32),
        in_release,
        note="padded by reflection",
    )


_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)

_LISTED = (
    _resnet("timm/resnet18.tv_in1k", _BASIC, in_release=True),
    _resnet("timm/resnet34.tv_in1k", _BASIC, in_release=True),
    _resnet("timm/wide_resnet50_2.tv_in1k", _BOTTLENECK, in_release=True),
    _resnet("timm/wide_resnet101_2.tv_in1k", _BOTTLENECK, in_release=True),
    ListedEncoder(
        "timm/tf_efficientnet_b5.ra_in1k",
        ("blocks.1.4.bn3", "blocks.2.4.bn3", "blocks.4.6.bn3", "blocks.5.8.bn3"),
        (40, 64, 176, 304),
        (4, 8, 16, 32),
        in_release=True,
        note="taps are the BatchNorm before the shortcut of a stage's last block",
    ),
    _resnet("timm/resnet50.tv_in1k", _BOTTLENECK, in_release=False),
    _resnet("timm/resnext50_32x4d.tv_in1k", _BOTTLENECK, in_release=False),
    ListedEncoder(
        "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        ("blocks.10", "blocks.9", "blocks.8"),
        (768,) * 3,
        (16,) * 3,
        in_release=False,
    ),
    ListedEncoder(
        "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        ("blocks.10", "blocks.9", "blocks.8"),
        (768,) * 3,
        (16,) * 3,
        in_release=False,
    ),
    ListedEncoder(
        "timm/deit_base_distilled_patch16_384.fb_in1k",
        ("blocks.10", "blocks.6", "blocks.2"),
        (768,) * 3,
        (16,) * 3,
        in_release=False,
    ),
    ListedEncoder(
        "timm/cait_m48_448.fb_dist_in1k",
        ("blocks.47", "blocks.31", "blocks.15"),
        (768,) * 3,
        (16,) * 3,
        in_release=False,
        note="takes 448 x 448 only",
    ),
    ListedEncoder(
        "timm/mobilenetv3_small_100.lamb_in1k",
        ("blocks.0", "blocks.1", "blocks.3", "blocks.5"),
        (16, 24, 48, 576),
        (4, 8, 16, 32),
        in_release=False,
    ),
    ListedEncoder(
        "timm/mobilenetv3_large_100.ra_in1k",
        ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
        (24, 40, 112, 960),
        (4, 8, 16, 32),
        in_release=False,
    ),
    ListedEncoder(
        "timm/tf_efficientnet_lite0.in1k",
        ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
        (24, 40, 112, 320),
        (4, 8, 16, 32),
        in_release=False,
        note="not named by the release; `weights: bundled` needs no download",
    ),
)

LISTED_ENCODERS: dict[str, ListedEncoder] = {listed.name: listed for listed in _LISTED}
"""Every encoder that the release names, and the bundled one, by its name here."""
