"""Make a network's convolutions pad by reflection, as the ResNets of both releases do.

The released weights were trained with zero padding; only the padding of the finished network changes. Pooling
keeps its own padding.
"""

from torch import nn

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
        layer.padding_mode = "reflect"
