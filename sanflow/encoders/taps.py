"""Run a network up to its last tap and return the taps' outputs.

A tap is a module; layers after the last one are never computed.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from sanflow.encoders.networks import unknown_tap
from sanflow.errors import ConfigError

# Held per thread and call, so two threads may share one network.
_caught: ContextVar[dict[str, Tensor] | None] = ContextVar("caught", default=None)


class _AllCaught(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


class _Catch:
    """Forward hook of one tap. A class, not a closure, so that a network can be copied and pickled."""

    def __init__(self, tap: str, count: int) -> None:
        self.tap = tap
        self.count = count

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        caught = _caught.get()
        if caught is None:
            return
        caught.setdefault(self.tap, output)
        # An export follows the modules from outside and loses its place where one is left by an exception; it drops
        # what no output needs by itself.
        if len(caught) == self.count and not torch.compiler.is_compiling():
            raise _AllCaught


class TappedNetwork(nn.Module):
    """A network that gives the outputs of some of its modules, in a given order.

    Arguments:
        network: Any network that takes images_B3HW.
        taps: Names of its modules, each at most once.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.taps = list(taps)
        for tap in self.taps:
            network.get_submodule(tap).register_forward_hook(_Catch(tap, len(self.taps)))

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the outputs of the taps, in the order of the taps.

        Raises:
            ConfigError: If a tap never runs.
        """
        caught: dict[str, Tensor] = {}
        token = _caught.set(caught)
        try:
            self.network(images_B3HW)
        except _AllCaught:
            pass
        finally:
            _caught.reset(token)
        if never := [tap for tap in self.taps if tap not in caught]:
            raise ConfigError(
                f"Expected every tap to run when the network sees an image, but {', '.join(never)} never does. "
                "Choose other modules as `taps`."
            )
        return [caught[tap] for tap in self.taps]


def tap_modules(network: nn.Module, taps: Sequence[str], name: str) -> TappedNetwork:
    """Tap a network by the names of its modules.

    Arguments:
        network: Any network that takes images_B3HW.
        taps: Names of its modules.
        name: The encoder's name, for the message.

    Raises:
        ConfigError: If there is no such module.
    """
    modules = [key for key, _ in network.named_modules() if key]
    for tap in taps:
        if tap not in modules:
            raise unknown_tap(tap, name, modules)
    return TappedNetwork(network, taps)


def without_in_place(network: nn.Module) -> None:
    """Switch off in-place activations, because they would overwrite a tap's output."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def shapes_at_taps(network: nn.Module, height: int, width: int) -> list[tuple[int, ...]]:
    """Find the shapes of the taps' outputs for one image, without computing anything.

    Arguments:
        network: A module that gives a list of tensors.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        One shape a tap, batch dimension (1) included; () where the output is not a tensor.
    """
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shadows = {name: torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
    images_B3HW = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad():
        outputs = torch.func.functional_call(network, shadows, (images_B3HW,))
    return [tuple(output.shape) if isinstance(output, Tensor) else () for output in outputs]
