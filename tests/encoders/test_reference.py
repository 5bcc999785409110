"""The encoders against torchvision's ResNets whose convolutions pad by reflection, the reference of the method."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from sanflow.encoders import build_encoder
from sanflow.encoders.networks import seeded_weights
from sanflow.encoders.reflect import mirrored


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for two threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reflecting(network: nn.Module) -> nn.Module:
    """Torchvision's network with an explicit reflection before every convolution larger than 1 x 1."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.kernel_size) > 1:
                (pad, _) = child.padding
                child.padding = (0, 0)
                child._reversed_padding_repeated_twice = [0, 0, 0, 0]
                setattr(module, name, nn.Sequential(nn.ReflectionPad2d(pad), child))
    return network


def trained(architecture: str) -> nn.Module:
    """A torchvision network away from its initial weights: BatchNorm shifts, scales and has seen something."""
    with seeded_weights(7):
        network = getattr(models, architecture)(weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.bias, -0.2, 0.2)
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.8, 1.5)
    return network.eval()


def layers(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs of layer1 to layer4, step by step."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    outputs = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("architecture", ["resnet18", "wide_resnet50_2"])
def test_equal_to_torchvision_padded_by_reflection(architecture: str, tmp_path) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    network = trained(architecture)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    with torch.no_grad():
        padded_by_zeros = layers(network, images)
        padded_by_reflection = layers(reflecting(network), images)
    # The larger one only once: making a random network of its size takes a second.
    names = [f"timm/{architecture}.tv_in1k", f"torchvision/{architecture}"][: 2 if architecture == "resnet18" else 1]
    digests = set()
    for name in names:
        encoder = build_encoder(name, weights=path, scales=4)
        assert encoder.identity["padding"] == "reflect"
        digests.add(encoder.identity["weights_sha256"])
        for feature, expected, zeros in zip(encoder(images), padded_by_reflection, padded_by_zeros, strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
            assert (feature - zeros).norm() > 0.05 * zeros.norm()
        if name.startswith("timm/resnet18"):
            plain = build_encoder(name, weights=path, scales=4, padding="zeros")
            assert plain.identity["padding"] == "zeros"
            for feature, expected in zip(plain(images), padded_by_zeros, strict=True):
                torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    assert len(digests) == 1, "timm and torchvision hold the same weights"


def test_only_convolutions_larger_than_one_pixel_reflect() -> None:
    encoder = build_encoder("timm/resnet50.tv_in1k", weights="random")
    shapes = {}
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.padding == (0, 0)
            # A border of 1 around 0: a reflection adds what is next to the border.
            inputs = torch.ones(1, layer.in_channels, 9, 9)
            inputs[..., 1:-1, 1:-1] = 0
            seen = []
            handle = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            layer(inputs)
            handle.remove()
            shapes[layer.kernel_size] = (seen[0].shape[-1] - 9, seen[0][0, 0, 0, 0].item())
    assert shapes == {(7, 7): (6, 0.0), (3, 3): (2, 0.0), (1, 1): (0, 1.0)}
    pools = [layer for layer in encoder.modules() if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.padding) for pool in pools] == [(3, 1)]


@pytest.mark.parametrize(("size", "side"), [(7, 3), (4, 3), (5, 0), (2, 1)])
def test_the_places_of_a_reflection(size: int, side: int) -> None:
    values = torch.rand(1, 1, size)
    assert torch.equal(values[..., mirrored(size, side, values.device)], F.pad(values, (side, side), mode="reflect"))
