"""Build an encoder from its name: which network, which weights, which padding, which taps."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from sanflow.encoders.bundled import bundled_package, with_bundled_weights
from sanflow.encoders.encoder import Encoder
from sanflow.encoders.layouts import Layout, layout_of
from sanflow.encoders.names import LISTED_ENCODERS, RESNETS_PADDED_BY_REFLECTION
from sanflow.encoders.networks import Network
from sanflow.encoders.reflect import pad_by_reflection
from sanflow.encoders.taps import shapes_at_taps
from sanflow.encoders.tiling import Tiling
from sanflow.encoders.timm_encoders import create_timm
from sanflow.encoders.torchvision_encoders import create_torchvision
from sanflow.encoders.weights import fit_weights, in_heads, read_weights, weights_digest
from sanflow.errors import ConfigError
from sanflow.files import sha256_of_file

Padding = Literal["reflect", "zeros"]

# An image twice as wide as high shows which axis is which; 448 is divisible by every common patch size and stride.
PROBE_SIZE = (448, 896)


def build_encoder(
    name: str,
    *,
    weights: str | os.PathLike[str] = "pretrained",
    taps: Sequence[str] | None = None,
    scales: int = 3,
    padding: Padding | None = None,
    feature_scales: Sequence[float] | None = None,
    tile_size: int | None = None,
    tile_overlap: int = 0,
    seed: int = 0,
) -> Encoder:
    """Build a frozen encoder.

    Torch's global random state does not change.

    Arguments:
        name: `timm/<architecture>.<tag>` or `torchvision/<architecture>`.
        weights: `pretrained`, `bundled`, `random`, or the path of a .safetensors or .pth file.
        taps: Layers whose outputs are the features, in the order of the flows; the encoder's own if None.
        scales: How many of the encoder's own taps, the deepest ones; without effect where `taps` is given.
        padding: `reflect` for the ResNets of the paper if None, else `zeros`: the network as it is.
        feature_scales: What to divide each scale by, from `measure_feature_scales`.
        tile_size: Side in pixels of the tiles in which the network sees an image; None: it sees the whole image.
        tile_overlap: Pixels by which neighbouring tiles overlap at least.
        seed: Of random weights.

    Returns:
        The encoder, on the CPU.

    Raises:
        ConfigError: If the name, a tap, the padding, the number of scales or the tiles do not fit.
        WeightsError: If the weights cannot be obtained or do not fit the network.

    Example:
        >>> encoder = build_encoder("timm/resnet18.tv_in1k", weights="random")
        >>> encoder.channels, encoder.strides, encoder.identity["padding"]
        ([128, 256, 512], [8, 16, 32], 'reflect')
    """
    if taps is None and not 1 <= scales <= 4:
        raise ConfigError(f"Expected 1 to 4 scales, but got {scales}. Set `scales` or name the layers in `taps`.")
    network = _create(name, weights, seed)
    chosen = network.default_taps(scales) if taps is None else _checked(taps, network)
    loaded = _load(network, weights, seed)
    padding = padding or ("reflect" if network.architecture in RESNETS_PADDED_BY_REFLECTION else "zeros")
    if padding == "reflect":
        pad_by_reflection(network.module, network.name)
    # Some timm networks are made in training mode, where a BatchNorm refuses a single pixel.
    tapped = network.tap(network.module.eval(), chosen)
    layouts = _layouts(network, tapped, chosen)
    identity = {
        "name": network.name,
        "architecture": network.architecture,
        "tag": network.tag,
        "taps": chosen,
        "channels": [layout.channels for layout in layouts],
        "strides": [layout.stride for layout in layouts],
        "padding": padding,
        "mean": [float(value) for value in network.mean],
        "std": [float(value) for value in network.std],
        "in_release": _in_release(network),
        "library": network.version,
        **loaded,
    }
    return Encoder(
        tapped,
        layouts,
        mean=network.mean,
        std=network.std,
        identity=identity,
        fixed_size=network.fixed_size,
        feature_scales=feature_scales,
        tiling=None if tile_size is None else Tiling(tile_size, tile_overlap),
    )


def _create(name: str, weights: str | os.PathLike[str], seed: int) -> Network:
    library, _, model = name.partition("/")
    if library == "timm" and model:
        network = create_timm(model, seed, random=weights == "random")
    elif library == "torchvision" and model:
        network = create_torchvision(model, seed)
    else:
        raise ConfigError(f"Expected an encoder as timm/<name>.<tag> or torchvision/<name>, but got {name!r}.")
    return with_bundled_weights(network) if weights == "bundled" else network


def _in_release(network: Network) -> bool:
    """Return whether the released code has this network; torchvision's first ResNets are timm's with tag tv_in1k."""
    tag = "tv_in1k" if network.tag == "IMAGENET1K_V1" else network.tag
    listed = LISTED_ENCODERS.get(f"timm/{network.architecture}.{tag}")
    return listed is not None and listed.in_release


def _checked(taps: Sequence[str], network: Network) -> list[str]:
    if not taps or len(set(taps)) != len(taps):
        raise ConfigError(f"Expected `taps` to name at least one layer, each once, but got {list(taps)}.")
    if in_head := [tap for tap in taps if in_heads(tap, network.heads)]:
        raise ConfigError(
            f"Expected `taps` before the classifier of {network.name}, but {', '.join(in_head)} belongs to it, and its "
            "weights are not loaded. Choose earlier layers."
        )
    return list(taps)


def _load(network: Network, weights: str | os.PathLike[str], seed: int) -> dict[str, Any]:
    """Load the weights into the network, and return what identifies them."""
    if weights == "random":
        facts: dict[str, Any] = {"weights": "random", "seed": seed}
    else:
        path = network.fetch() if weights in ("pretrained", "bundled") else weights
        source = f"{network.name} in {path}"
        fitted = fit_weights(
            network.module, read_weights(path), heads=network.heads, source=source, convert=network.convert
        )
        kind = weights if weights in ("pretrained", "bundled") else "file"
        facts = {"weights": kind, "file_sha256": sha256_of_file(path), **fitted}
        if weights == "bundled":
            facts["package"] = bundled_package()
    return {**facts, "weights_sha256": weights_digest(network.module.state_dict(), network.heads)}


def _layouts(network: Network, tapped: nn.Module, taps: Sequence[str]) -> list[Layout]:
    size = network.fixed_size or PROBE_SIZE
    shapes = shapes_at_taps(tapped, *size)
    return [layout_of(shape, size, tap, network.channels_last) for shape, tap in zip(shapes, taps, strict=True)]
