"""Name the licence of an encoder's weights, as far as it is known."""

from collections.abc import Mapping
from typing import Any

from sanflow.encoders import bundled
from sanflow.encoders.timm_encoders import licence_of_tag

UNKNOWN = "unknown"


def weights_licence(identity: Mapping[str, Any]) -> str:
    """Return the licence of the weights of an encoder.

    Arguments:
        identity: Of the encoder, as a checkpoint keeps it.

    Returns:
        A name as its publisher writes it, "none needed (random weights)" or "unknown".

    Example:
        >>> weights_licence({"name": "timm/tf_efficientnet_lite0.in1k", "weights": "bundled"})
        'Apache-2.0'
    """
    kind, name = identity.get("weights"), str(identity.get("name"))
    if kind == "random":
        return "none needed (random weights)"
    if kind == "bundled":
        return bundled.LICENCE
    # A file may hold any weights, whatever network it fits.
    if kind == "pretrained" and name.startswith("timm/"):
        return licence_of_tag(name.removeprefix("timm/")) or UNKNOWN
    return UNKNOWN
