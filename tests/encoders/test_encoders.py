"""Laws that hold for every encoder: shapes, order, frozen, deterministic, and every message about its use."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sanflow.device import MEMORY_FORMAT, placed
from sanflow.encoders import LISTED_ENCODERS, Encoder, build_encoder, measure_feature_scales
from sanflow.encoders.layouts import Layout, layout_of
from sanflow.encoders.networks import seeded_weights
from sanflow.encoders.reflect import pad_by_reflection
from sanflow.encoders.taps import TappedNetwork
from sanflow.errors import ConfigError, DataError

RESNET = "timm/resnet18.tv_in1k"
VIT = "timm/vit_tiny_patch16_224.augreg_in21k"
SLOW = ("wide_resnet101_2", "efficientnet_b5", "vit_base", "deit_base", "cait_m48")

# Channels and strides as the release has them, or as our completion gives them, at the default three scales.
EXPECTED = {
    "timm/resnet18.tv_in1k": ([128, 256, 512], [8, 16, 32], True),
    "timm/resnet34.tv_in1k": ([128, 256, 512], [8, 16, 32], True),
    "timm/wide_resnet50_2.tv_in1k": ([512, 1024, 2048], [8, 16, 32], True),
    "timm/wide_resnet101_2.tv_in1k": ([512, 1024, 2048], [8, 16, 32], True),
    "timm/tf_efficientnet_b5.ra_in1k": ([64, 176, 304], [8, 16, 32], True),
    "timm/resnet50.tv_in1k": ([512, 1024, 2048], [8, 16, 32], False),
    "timm/resnext50_32x4d.tv_in1k": ([512, 1024, 2048], [8, 16, 32], False),
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": ([768] * 3, [16] * 3, False),
    "timm/vit_base_patch16_384.augreg_in21k_ft_in1k": ([768] * 3, [16] * 3, False),
    "timm/deit_base_distilled_patch16_384.fb_in1k": ([768] * 3, [16] * 3, False),
    "timm/cait_m48_448.fb_dist_in1k": ([768] * 3, [16] * 3, False),
    "timm/mobilenetv3_small_100.lamb_in1k": ([24, 48, 576], [8, 16, 32], False),
    "timm/mobilenetv3_large_100.ra_in1k": ([40, 112, 960], [8, 16, 32], False),
    "timm/tf_efficientnet_lite0.in1k": ([40, 112, 320], [8, 16, 32], False),
}
WALK = [
    pytest.param(name, marks=pytest.mark.slow if any(part in name for part in SLOW) else []) for name in LISTED_ENCODERS
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for two threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(height: int = 64, width: int = 96, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    """Shared by the tests that do not change it."""
    return build_encoder(RESNET, weights="random")


def test_every_encoder_with_taps_of_its_own_is_tested() -> None:
    assert set(LISTED_ENCODERS) == set(EXPECTED)


@pytest.mark.parametrize("name", WALK)
def test_listed_encoder(name: str) -> None:
    channels, strides, in_release = EXPECTED[name]
    state = torch.get_rng_state()
    encoder = build_encoder(name, weights="random", seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
    assert (encoder.channels, encoder.strides) == (channels, strides)
    assert encoder.identity["in_release"] is in_release
    assert encoder.identity["name"] == name
    assert encoder.identity["taps"] == list(LISTED_ENCODERS[name].taps[-3:])
    assert encoder.identity["padding"] == ("reflect" if "resn" in name else "zeros")

    height, width = encoder.fixed_size or (64, 96)
    images = image(height, width).requires_grad_()
    encoder.train()
    features = encoder(images)
    sizes = [(height // stride, width // stride) for stride in strides]
    assert [tuple(feature.shape) for feature in features] == [(1, c, *s) for c, s in zip(channels, sizes, strict=True)]
    assert encoder.map_sizes(height, width) == sizes
    assert all(torch.isfinite(feature).all() and feature.std() > 0 for feature in features)
    assert not any(feature.requires_grad for feature in features)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    if encoder.fixed_size is None:
        again = encoder(images)
        assert all(torch.equal(first, second) for first, second in zip(features, again, strict=True))


def test_scales_are_the_deepest_and_in_order(resnet: Encoder) -> None:
    images = image()
    four = build_encoder(RESNET, weights="random", scales=4)
    assert four.channels == [64, 128, 256, 512]
    assert four.strides == [4, 8, 16, 32]
    for scales in (1, 2, 3):
        encoder = build_encoder(RESNET, weights="random", scales=scales)
        assert encoder.identity["taps"] == ["layer1", "layer2", "layer3", "layer4"][-scales:]
        for feature, of_four in zip(encoder(images), four(images)[-scales:], strict=True):
            assert torch.equal(feature, of_four)


def test_last_taps_of_the_efficientnet_come_before_the_shortcut_of_a_stage() -> None:
    encoder = build_encoder("timm/tf_efficientnet_b0.in1k", weights="random", taps=["blocks.2.1.bn3"])
    block = encoder.network.network.blocks[2][1]  # type: ignore[union-attr,index]
    outputs = []
    block.register_forward_hook(lambda module, inputs, output: outputs.append((inputs[0], output)))
    encoder.network.network(image())  # type: ignore[operator]
    (entering, leaving), (feature,) = outputs[0], encoder(image())
    torch.testing.assert_close(leaving - entering, feature, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_taps_of_the_efficientnet_b5_are_in_the_last_blocks() -> None:
    encoder = build_encoder("timm/tf_efficientnet_b5.ra_in1k", weights="random")
    depths = [len(stage) for stage in encoder.network.network.blocks]  # type: ignore[union-attr,arg-type]
    assert encoder.identity["taps"] == [f"blocks.{stage}.{depths[stage] - 1}.bn3" for stage in (2, 4, 5)]


def test_random_weights_follow_the_seed() -> None:
    first, same, other = (build_encoder(RESNET, weights="random", seed=seed) for seed in (1, 1, 2))
    assert first.identity == same.identity
    assert first.identity["weights_sha256"] != other.identity["weights_sha256"]
    assert (first.identity["weights"], first.identity["seed"]) == ("random", 1)
    assert all(torch.equal(one, two) for one, two in zip(first(image()), same(image()), strict=True))


def test_random_resnet_uses_both_branches_of_every_block(resnet: Encoder) -> None:
    norms = [module for name, module in resnet.named_modules() if name.endswith("bn2")]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)  # type: ignore[union-attr]


def test_layers_after_the_last_tap_are_not_computed() -> None:
    encoder = build_encoder(RESNET, weights="random", taps=["layer1", "layer2"])
    ran = []
    for name in ("layer2", "layer3", "layer4", "global_pool"):
        module = encoder.network.network.get_submodule(name)  # type: ignore[union-attr,operator]
        module.register_forward_pre_hook(lambda module, inputs, name=name: ran.append(name))
    encoder(image())
    assert ran == ["layer2"]
    graph = build_encoder("torchvision/resnet18", weights="random", taps=["layer2"]).network
    kept = {name.split(".")[1] for name, _ in graph.named_parameters()}
    assert kept == {"conv1", "bn1", "layer1", "layer2"}


def test_a_tap_before_an_in_place_activation_keeps_its_sign() -> None:
    for name in (RESNET, "torchvision/resnet18"):
        (feature,) = build_encoder(name, weights="random", taps=["layer1.0.bn1"])(image())
        assert (feature < 0).any(), name


def test_tokens_become_maps_without_class_tokens() -> None:
    taps = ["blocks.3", "blocks.1"]
    encoder = build_encoder(VIT, weights="random", taps=taps)
    network = encoder.network.network
    expected = network.forward_intermediates(  # type: ignore[union-attr,operator]
        image(96, 160), indices=[1, 3], norm=False, output_fmt="NCHW", intermediates_only=True
    )
    deep, shallow = encoder(image(96, 160))
    assert deep.shape == (1, 192, 6, 10)
    assert torch.equal(shallow, expected[0])
    assert torch.equal(deep, expected[1])


@pytest.mark.parametrize("name", ["timm/convnext_atto.d2_in1k", "timm/swin_tiny_patch4_window7_224.ms_in1k"])
def test_other_timm_models_equal_features_only(name: str) -> None:
    import timm

    encoder = build_encoder(name, weights="random", seed=5)
    arguments = {"strict_img_size": False} if "swin" in name else {}
    with seeded_weights(5):
        reference = timm.create_model(
            name[5:], num_classes=0, features_only=True, out_indices=(-3, -2, -1), **arguments
        ).eval()
    with torch.no_grad():
        expected = reference(image(64, 96))
    for feature, other in zip(encoder(image(64, 96)), expected, strict=True):
        reordered = other.permute(0, 3, 1, 2) if "swin" in name else other
        torch.testing.assert_close(feature, reordered, rtol=1e-5, atol=1e-6)


def test_torchvision_by_nodes() -> None:
    swin = build_encoder("torchvision/swin_t", weights="random", taps=["features.3", "features.5"])
    assert (swin.channels, swin.strides) == ([192, 384], [8, 16])
    assert [tuple(feature.shape) for feature in swin(image())] == [(1, 192, 8, 12), (1, 384, 4, 6)]
    inner = build_encoder("torchvision/resnet18", weights="random", taps=["layer2.0.add", "layer3"])
    assert inner.channels == [128, 256]
    assert (inner(image())[0] < 0).any()
    assert inner.identity["name"] == "torchvision/resnet18.IMAGENET1K_V1"
    assert inner.identity["in_release"] is True
    assert inner.identity["padding"] == "reflect"


def test_squeezenet_with_real_weights(shared) -> None:
    taps = ["features.5", "features.10", "features.12"]
    path = shared / "weights" / "squeezenet1_0-imagenet.pth"
    encoder = build_encoder("torchvision/squeezenet1_0", weights=path, taps=taps)
    assert (encoder.channels, encoder.strides) == ([256, 512, 512], [4, 8, 16])
    assert encoder.identity["ignored"] == ["classifier.1.bias", "classifier.1.weight"]
    assert encoder.identity["weights"] == "file"
    features = encoder(image(127, 190, count=2))
    assert [tuple(feature.shape[2:]) for feature in features] == encoder.map_sizes(127, 190)
    encoder.set_feature_scales(measure_feature_scales(encoder, [image(127, 190, count=2)]))
    assert [round(feature.std(correction=0).item(), 3) for feature in encoder(image(127, 190, count=2))] == [1, 1, 1]


def test_bfloat16_and_channels_last(resnet: Encoder) -> None:
    exact = resnet(image())
    last = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    for feature, expected in zip(last(image().to(memory_format=torch.channels_last)), exact, strict=True):
        assert feature.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for feature, expected in zip(resnet(image()), exact, strict=True):
            assert feature.dtype == torch.bfloat16
            assert (feature - expected).norm() < 0.03 * expected.norm()


def test_copies_pickles_and_threads(resnet: Encoder) -> None:
    expected = resnet(image())
    for twin in (copy.deepcopy(resnet), pickle.loads(pickle.dumps(resnet))):
        assert all(torch.equal(one, two) for one, two in zip(twin(image()), expected, strict=True))
    with ThreadPoolExecutor(4) as pool:
        alone = [resnet(image(seed=seed)) for seed in range(8)]
        together = list(pool.map(lambda seed: resnet(image(seed=seed)), range(8)))
    for one, two in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_feature_scales_are_the_standard_deviations() -> None:
    encoder = build_encoder(RESNET, weights="random")
    images = image(count=6)
    expected = [feature.double().std(correction=0).item() for feature in encoder(images)]
    measured = measure_feature_scales(encoder, [images[:4], images[4:]])
    assert measured == pytest.approx(expected, rel=1e-6)
    divided = build_encoder(RESNET, weights="random", feature_scales=measured)
    assert divided.identity["feature_scales"] == measured
    for feature, raw, scale in zip(divided(images), encoder(images), measured, strict=True):
        torch.testing.assert_close(feature, raw / scale)
    assert measure_feature_scales(divided, [images]) == pytest.approx(expected, rel=1e-6)
    assert divided.feature_scales == measured


class Doubled(nn.Module):
    """A network of one convolution with some outputs that are no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 3, padding=1)
        self.both = nn.Identity()
        self.unused = nn.Identity()

    def forward(self, images):
        return self.both((self.maps(images), images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "timm/wide_resnet50_2"},
            r"the name timm/wide_resnet50_2 without a tag, .*racm_in1k, .*timm/wide_resnet50_2.tv_in1k",
        ),
        ({"name": "timm/resnet18.tv_in2k"}, r"got tag 'tv_in2k'\. Choose from: .*timm/resnet18.tv_in1k"),
        ({"name": "timm/resnet81.tv_in1k"}, r"name of a timm model, but got 'resnet81'\. Near names: .*resnet"),
        ({"name": "torchvision/resnet81"}, r"name of a torchvision classification model.*Near names: .*resnet"),
        ({"name": "torchvision/zzzz"}, r"got 'zzzz'\. It has \d+ others"),
        ({"name": "torchvision/resnet18.V9"}, r"got 'V9'\. Choose from: torchvision/resnet18.IMAGENET1K_V1"),
        ({"name": "resnet18"}, r"timm/<name>.<tag> or torchvision/<name>, but got 'resnet18'"),
        ({"name": "sanflow/other"}, r"but got 'sanflow/other'"),
        ({"scales": 5}, "Expected 1 to 4 scales, but got 5"),
        ({"scales": 0}, "Expected 1 to 4 scales, but got 0"),
        ({"taps": []}, r"at least one layer, each once, but got \[\]"),
        ({"taps": ["layer2", "layer2"]}, "each once, but got"),
        ({"taps": ["layer5"]}, r"has none called 'layer5'\. Near names: .*layer"),
        ({"taps": ["fc"]}, "before the classifier of timm/resnet18.tv_in1k, but fc belongs to it"),
        ({"taps": ["global_pool"]}, r"'global_pool' to give a map .* a tensor of shape \(1, 512\)"),
        ({"name": "torchvision/resnet18", "taps": ["layer5"]}, r"has none called 'layer5'\. Near names: .*layer"),
        ({"name": "torchvision/squeezenet1_0"}, r"no 3 scales of its own, .*features"),
        ({"name": VIT}, r"Expected `taps` for timm/vit_tiny.* blocks\.11"),
        ({"name": VIT, "taps": ["blocks.1"], "padding": "reflect"}, "but none pads at all. Set `padding: zeros`"),
        (
            {"name": "timm/tf_mobilenetv3_small_100.in1k", "padding": "reflect"},
            r"but \d+ pad in a way of their own",
        ),
        ({"feature_scales": [1.0, 2.0]}, r"Expected 3 positive feature scales.*but got \[1.0, 2.0\]"),
        ({"feature_scales": [1.0, 2.0, 0.0]}, "positive feature scales"),
    ],
)
def test_messages_when_building(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(**{"name": RESNET, "weights": "random", **arguments})


def test_a_squeeze_that_ends_in_a_batch_norm_is_built() -> None:
    assert build_encoder("timm/skresnet18.ra_in1k", weights="random").strides == [8, 16, 32]


def test_weights_of_five_dimensions_are_placed() -> None:
    """torch's own `to(memory_format=channels_last)` stops at them."""
    encoder = build_encoder("timm/lambda_resnet26t.c1_in1k", weights="random", scales=1)
    assert any(weight.dim() == 5 for weight in encoder.parameters())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (before,) = encoder(images)
    (after,) = placed(encoder, torch.device("cpu"))(images.contiguous(memory_format=MEMORY_FORMAT))
    convolutions = [weight for weight in encoder.parameters() if weight.dim() == 4]
    assert all(weight.is_contiguous(memory_format=MEMORY_FORMAT) for weight in convolutions)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_messages_about_image_sizes() -> None:
    vit = build_encoder(VIT, weights="random", taps=["blocks.1"])
    with pytest.raises(ConfigError, match=r"divisible by 16, the patch size of .*, but got 64 x 100"):
        vit(image(64, 100))
    cait = build_encoder("timm/cait_xxs24_224.fb_dist_in1k", weights="random", taps=["blocks.1"])
    assert cait(image(224, 224))[0].shape == (1, 192, 14, 14)
    for use in (cait, lambda images: cait.map_sizes(*images.shape[2:])):
        with pytest.raises(
            ConfigError, match=r"Expected images of 224 x 224 .* 64 x 96\. Set `input_size: \[224, 224\]`"
        ):
            use(image())


def test_an_image_too_small_to_reflect_is_refused(resnet: Encoder) -> None:
    with pytest.raises(ConfigError, match=r"more than 32 pixels for .*, but got 32 x 96\. Choose a larger"):
        resnet(image(32, 96))
    with pytest.raises(ConfigError, match="pads by reflection at stride 32"):
        resnet.map_sizes(64, 32)
    assert [feature.shape[-1] for feature in resnet(image(33, 33))] == [5, 3, 2]
    zeros = build_encoder(RESNET, weights="random", padding="zeros")
    assert zeros(image(32, 32))[-1].shape == (1, 512, 1, 1)


def test_messages_about_taps_and_layouts() -> None:
    with pytest.raises(ConfigError, match="but unused never does"):
        TappedNetwork(Doubled(), ["maps", "unused"])(image())
    with pytest.raises(ConfigError, match=r"'both' to give a map .* gives no single tensor"):
        layout_of((), (64, 128), "both")
    with pytest.raises(ConfigError, match="none pads at all"):
        pad_by_reflection(nn.Conv2d(3, 3, 3), "a network")


def test_layouts_from_shapes() -> None:
    assert layout_of((1, 64, 56, 112), (448, 896), "a") == Layout("first", 64, 8)
    assert layout_of((1, 56, 112, 64), (448, 896), "a") == Layout("last", 64, 8)
    assert layout_of((1, 56, 112, 112), (448, 896), "a", channels_last=True) == Layout("last", 112, 8)
    assert layout_of((1, 28 * 56 + 2, 768), (448, 896), "a") == Layout("tokens", 768, 16)
    assert layout_of((1, 14 * 14 + 1, 768), (224, 224), "a") == Layout("tokens", 768, 16)
    # Without padding the map is a little smaller than 448 / 16 by 896 / 16.
    assert layout_of((1, 512, 27, 55), (448, 896), "a") == Layout("first", 512, 16)


def test_messages_when_measuring(resnet: Encoder) -> None:
    with pytest.raises(DataError, match="at least one training image"):
        measure_feature_scales(resnet, [])
    with pytest.raises(DataError, match="features that vary and are finite"):
        measure_feature_scales(resnet, [torch.full((1, 3, 64, 64), float("nan"))])


def test_only_the_last_use_of_a_network_outside_is_free_of_taps(resnet: Encoder) -> None:
    """The tapped network itself still runs to its end when it is called directly."""
    assert resnet.network.network(image()).shape == (1, 512)  # type: ignore[operator]
