"""Networks of torchvision, named `torchvision/<architecture>`, or `torchvision/<architecture>.<weights>`.

A name without weights means the first ones that torchvision lists (for ResNets IMAGENET1K_V1, the paper's);
unlike timm's default they do not change. Taps are node names of `torchvision.models.feature_extraction`.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sanflow.encoders.networks import Network, seeded_weights, unknown_name, unknown_tap
from sanflow.encoders.taps import without_in_place
from sanflow.encoders.weights import cannot_get, fetch_url, in_heads
from sanflow.errors import ConfigError

HEADS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")
"""Names of the classifiers in torchvision's networks."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    # Use the mean and standard deviation of the pretrained weights.
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _Extracted(nn.Module):
    """The part of the network that leads to the taps, as a module that gives a list."""

    def __init__(self, graph: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.graph = graph
        self.taps = list(taps)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        outputs = self.graph(images_B3HW)
        return [outputs[tap] for tap in self.taps]


def create_torchvision(model: str, seed: int) -> Network:
    """Create a network of torchvision, with random weights.

    Arguments:
        model: `<architecture>` or `<architecture>.<weights>`, such as `resnet18.IMAGENET1K_V1`.
        seed: Of the random weights.

    Raises:
        ConfigError: If torchvision has no such classification network or no such weights.
    """
    import torchvision
    from torchvision import models

    architecture, _, tag = model.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown_name("torchvision classification", architecture, known)
    every = {weights.name: weights for weights in models.get_model_weights(architecture)}
    if tag and tag not in every:
        choices = ", ".join(f"torchvision/{architecture}.{choice}" for choice in every)
        raise ConfigError(f"Expected weights of torchvision/{architecture}, but got {tag!r}. Choose from: {choices}.")
    tag = tag or next(iter(every), "")
    weights = every.get(tag)
    size = _fixed_size(architecture, weights)
    arguments = dict(ARGUMENTS.get(architecture, {}))
    if size is not None:
        arguments |= {"image_size": size[0]} if architecture.startswith("vit_") else {"input_size": size}
    with seeded_weights(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = models.get_model(architecture, weights=None, **arguments)
    without_in_place(module)
    name = f"torchvision/{architecture}" + (f".{tag}" if tag else "")
    preset = weights.transforms() if weights is not None else None
    return Network(
        module=module.eval(),
        name=name,
        architecture=architecture,
        tag=tag or None,
        version=f"torchvision {torchvision.__version__}",
        mean=getattr(preset, "mean", IMAGENET[0]),
        std=getattr(preset, "std", IMAGENET[1]),
        heads=tuple(head for head in HEADS if hasattr(module, head)),
        default_taps=partial(_default_taps, module, name),
        tap=partial(_tap, name=name),
        fetch=partial(_fetch, weights, name),
        fixed_size=size,
    )


def _fixed_size(architecture: str, weights: Any) -> tuple[int, int] | None:
    if not architecture.startswith(("vit_", "maxvit_")):
        return None
    height, width = weights.meta["min_size"] if weights is not None else (224, 224)
    return height, width


def _default_taps(module: nn.Module, name: str, scales: int) -> list[str]:
    if hasattr(module, "layer4"):
        return [f"layer{index}" for index in range(5 - scales, 5)]
    children = [key for key, _ in module.named_modules() if key.count(".") == 1 and not in_heads(key, HEADS)]
    raise ConfigError(
        f"Expected `taps` for {name}, because it has no {scales} scales of its own, but got none. "
        f"Name its layers, such as {', '.join(children[-3:])}."
    )


def _tap(module: nn.Module, taps: Sequence[str], name: str) -> _Extracted:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    nodes = get_graph_node_names(module, suppress_diff_warning=True)[1]
    modules = {".".join(node.split(".")[:depth]): None for node in nodes for depth in range(1, node.count(".") + 2)}
    for tap in taps:
        if tap not in modules:
            raise unknown_tap(tap, name, list(modules))
    graph = create_feature_extractor(module, {tap: tap for tap in taps}, suppress_diff_warning=True)
    return _Extracted(graph, taps)


def _fetch(weights: Any, name: str) -> Path:
    if weights is None:
        raise cannot_get(name, "torchvision knows no file of them", "weights of this architecture elsewhere")
    return fetch_url(weights.url, name)
