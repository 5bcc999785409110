"""A network with the facts that its library gives, before weights, padding and taps are chosen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from sanflow.errors import ConfigError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A network with random weights and without taps, and the facts about it.

    Arguments:
        module: The network; its classifier may be missing.
        name: The encoder's full name, the tag written out.
        architecture: The library's name of it without the tag.
        tag: Which pretrained weights are meant; None where the library has none.
        version: Name and version of the library.
        mean: Image mean of the pretrained weights.
        std: Image standard deviation of the pretrained weights.
        heads: Modules of the classifier, which no feature needs: their weights are never loaded.
        default_taps: Gives the taps for a number of scales, or raises `ConfigError`.
        tap: Turns the module and its taps into a module that gives a list of outputs.
        fetch: Gives the path of the pretrained weights' file, from the cache or the network.
        convert: Converts a weight file of another layout to the module's, where the library can.
        fixed_size: The one image height and width it takes, if only one.
        channels_last: Whether its maps are (B, h, w, C).
    """

    module: nn.Module
    name: str
    architecture: str
    tag: str | None
    version: str
    mean: Sequence[float]
    std: Sequence[float]
    heads: tuple[str, ...]
    default_taps: Callable[[int], list[str]]
    tap: Callable[[nn.Module, Sequence[str]], nn.Module]
    fetch: Callable[[], Path]
    convert: Callable[[State, nn.Module], State] | None = None
    fixed_size: tuple[int, int] | None = None
    channels_last: bool = False


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw the weights made inside from `seed`, and restore torch's global random state afterwards.

    Only the CPU's generator is used, because networks are built there; CUDA's generators do not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


def unknown_tap(tap: str, name: str, modules: Sequence[str]) -> ConfigError:
    """Make the error for a tap that a network does not have, with the nearest names it has."""
    near = get_close_matches(tap, modules, n=5, cutoff=0.3) or list(modules[-5:])
    return ConfigError(
        f"Expected `taps` to be layers of {name}, but it has none called {tap!r}. Near names: {', '.join(near)}."
    )


def unknown_name(kind: str, wanted: str, known: Sequence[str]) -> ConfigError:
    """Make the error for an architecture that a library does not have, with the nearest names it has."""
    near = get_close_matches(wanted, known, n=5, cutoff=0.3)
    hint = f"Near names: {', '.join(near)}." if near else f"It has {len(known)} others."
    return ConfigError(f"Expected the name of a {kind} model, but got {wanted!r}. {hint}")


def last_taps(taps: Sequence[str], name: str, scales: int) -> list[str]:
    """Return the last `scales` of an encoder's own taps.

    Raises:
        ConfigError: If it has fewer.
    """
    if scales > len(taps):
        raise ConfigError(
            f"Expected at most {len(taps)} scales for {name}, but got {scales}. Name the layers in `taps` instead."
        )
    return list(taps[-scales:])
