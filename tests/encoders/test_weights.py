"""Weights of encoders: files of both kinds, strictness, digests, the way to pretrained ones, and every message."""

import hashlib
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from sanflow.encoders import build_encoder, read_weights, weights_digest
from sanflow.encoders.networks import seeded_weights
from sanflow.encoders.weights import fit_weights
from sanflow.errors import WeightsError

RESNET = "timm/resnet18.tv_in1k"
MOBILENET = "timm/mobilenetv3_small_100.lamb_in1k"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for two threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 with its classifier, as a file of pretrained weights has them."""
    with seeded_weights(11):
        return timm.create_model("resnet18", zero_init_last=False).state_dict()


@pytest.fixture
def online(monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_every_file_kind_gives_the_same_features(state, tmp_path) -> None:
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state, "epoch": 90}, tmp_path / "training.pt")
    torch.save({"model": state}, tmp_path / "model.bin")
    save_file(state, tmp_path / "safe.safetensors")
    without_head = {key: value for key, value in state.items() if not key.startswith("fc.")}
    without_counters = {key: value for key, value in without_head.items() if not key.endswith("num_batches_tracked")}
    save_file(without_counters, tmp_path / "bare.safetensors")
    identities = {path.name: build_encoder(RESNET, weights=path).identity for path in tmp_path.iterdir()}
    assert len({identity["weights_sha256"] for identity in identities.values()}) == 1
    assert identities["plain.pth"]["ignored"] == ["fc.bias", "fc.weight"]
    assert identities["bare.safetensors"]["ignored"] == []
    assert all(identity["weights"] == "file" for identity in identities.values())
    assert not any(identity["converted"] for identity in identities.values())
    expected = hashlib.sha256((tmp_path / "plain.pth").read_bytes()).hexdigest()
    assert identities["plain.pth"]["file_sha256"] == expected
    encoder = build_encoder(RESNET, weights=tmp_path / "plain.pth")
    own = encoder.network.network.state_dict()  # type: ignore[union-attr,operator]
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_a_file_of_another_layout_goes_through_the_library(tmp_path) -> None:
    name = "timm/convnext_atto.d2_in1k"
    original = build_encoder(name, weights="random", seed=2)
    theirs = {f"backbone.{key}": value for key, value in original.network.network.state_dict().items()}  # type: ignore
    save_file(theirs, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"missing .* unexpected"):
        build_encoder(name, weights=tmp_path / "weights.safetensors")
    # Facebook's own layout calls the first convolution downsample_layers.0.0; timm knows how to read it.
    vit = "timm/deit_tiny_patch16_224.fb_in1k"
    weights = build_encoder(vit, weights="random", taps=["blocks.1"]).network.network.state_dict()  # type: ignore
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].flatten(1)
    torch.save({"model": weights}, tmp_path / "flat.pth")
    encoder = build_encoder(vit, weights=tmp_path / "flat.pth", taps=["blocks.1"])
    assert encoder.identity["converted"] is True


def test_digest_counts_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0).double(), "b": torch.tensor(1)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(1)},
        {"a": torch.arange(4.0) + 1, "b": torch.tensor(1)},
        {"a": torch.arange(4.0)},
    ]
    assert len({weights_digest(state) for state in [base, *others]}) == 6
    assert weights_digest(dict(reversed(base.items()))) == weights_digest(base)
    unaligned = {"a": torch.arange(8.0).reshape(4, 2).t()[0] / 2, "b": torch.tensor(1)}
    assert weights_digest(unaligned) == weights_digest(base)
    counted = {**base, "bn.num_batches_tracked": torch.tensor(3), "fc.weight": torch.ones(1)}
    assert weights_digest(counted, ["fc"]) == weights_digest(base)
    # A module whose name only begins like the classifier's is no part of it.
    assert weights_digest({**base, "fc_norm.weight": torch.ones(1)}, ["fc"]) != weights_digest(base)


def test_pretrained_comes_from_the_hub(state, tmp_path, monkeypatch, online) -> None:
    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, filename: str, local_files_only: bool) -> str:
        asked.append((repository, filename, local_files_only))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    identity = build_encoder(RESNET).identity
    assert identity["weights"] == "pretrained"
    assert identity["weights_sha256"] == weights_digest(state, ["fc"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build_encoder(RESNET)
    repository = "timm/resnet18.tv_in1k"
    assert asked == [(repository, "model.safetensors", False), (repository, "model.safetensors", True)]


def test_pretrained_falls_back_to_the_older_file(state, tmp_path, monkeypatch, online) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")

    def download(repository: str, filename: str, local_files_only: bool) -> str:
        if filename != "pytorch_model.bin":
            raise EntryNotFoundError("no such entry")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert build_encoder(RESNET).identity["weights_sha256"] == weights_digest(state, ["fc"])


def test_pretrained_of_torchvision_comes_from_its_cache(state, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    identity = build_encoder("torchvision/resnet18").identity
    assert identity["weights_sha256"] == weights_digest(state, ["fc"])
    assert identity["tag"] == "IMAGENET1K_V1"


def test_torchvision_download_is_checked_by_its_digest(tmp_path, monkeypatch, online) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url: str, path: str, digest: str, progress: bool) -> None:
        asked.append((url.rsplit("/", 1)[-1], Path(path), digest))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(WeightsError, match=r"torchvision/resnet18.IMAGENET1K_V1, but the download failed .*no network"):
        build_encoder("torchvision/resnet18")
    name = "resnet18-f37072fd.pth"
    assert asked == [(name, tmp_path / "checkpoints" / name, "f37072fd")]


def failing(error: Exception):
    def download(*arguments, **options):
        raise error

    return download


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("no connection"), r"the download failed \(no connection\)"),
        (EntryNotFoundError("nothing there"), "its repository holds no file of weights"),
        (TimeoutError("too slow"), r"the download failed \(too slow\)"),
    ],
)
def test_message_when_the_hub_fails(error, reason, monkeypatch, online) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
    remedy = r"hf download timm/resnet18.tv_in1k model.safetensors`; then copy the file here and set `weights: <file>`"
    with pytest.raises(WeightsError, match=f"pretrained weights of {RESNET}, but {reason}.*{remedy}"):
        build_encoder(RESNET)


def test_message_when_offline(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(LocalEntryNotFoundError("not cached")))
    with pytest.raises(WeightsError, match="but HF_HUB_OFFLINE is set and the cache does not hold them"):
        build_encoder(RESNET)
    with pytest.raises(WeightsError, match=r"but HF_HUB_OFFLINE is set and .*resnet18-f37072fd.pth does not exist"):
        build_encoder("torchvision/resnet18")


def test_message_when_the_library_knows_no_file() -> None:
    with pytest.raises(WeightsError, match="timm knows no file of them"):
        build_encoder("timm/mixer_s32_224.untrained", taps=["blocks.1"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.npz", b"", r"pretrained, bundled, random or a file ending in .pth, .pt, .bin, .safetensors, but got"),
        ("weights.pth", None, "Expected a file of weights at .*, but there is none"),
        ("weights.pth", b"Not Found", r"nothing else, but reading it failed: it is no file of torch.* b'Not Found'"),
        ("weights.pth", b"<!DOCTYPE html><html>", "it is a web page that was saved instead of the weights"),
        ("weights.pt", b'\n<?xml version="1.0"?><Error>', "it is a web page that was saved instead of the weights"),
        ("weights.safetensors", b"  <html>", "it is a web page that was saved instead of the weights"),
        ("weights.bin", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS; `git lfs pull`"),
        ("weights.pth", b"PK\x03\x04cut", "reading it failed: PytorchStreamReader failed"),
        ("weights.pth", b"", "reading it failed"),
        ("weights.safetensors", b"not safe", "reading it failed"),
    ],
)
def test_messages_about_files(name, content, message, tmp_path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "weights_only" not in str(caught.value)


class Evil:
    """Runs code when it is unpickled, unless the reader refuses."""

    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "but it holds a Tensor"),
        ({"epoch": 3, "weight": torch.ones(1)}, "but it holds also epoch"),
        ({}, "but it holds nothing"),
        ({"weight": Evil()}, "it holds other objects than tensors, and reading those could run code of its author"),
    ],
)
def test_messages_about_contents(content, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "weights.pth")
    assert not Path("evil").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", ""])
def test_prefixes_of_wrapped_networks_are_removed_and_recorded(prefix, state, tmp_path) -> None:
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "weights.pth")
    identity = build_encoder(RESNET, weights=tmp_path / "weights.pth").identity
    assert identity.get("prefix", "") == prefix
    assert identity["weights_sha256"] == weights_digest(state, ["fc"])


@pytest.mark.parametrize(
    ("own", "names"),
    [("module", ["module.weight", "module.bias"]), ("layer", ["module.layer.weight", "bias"])],
)
def test_a_prefix_is_kept_where_it_is_a_name(own, names) -> None:
    """The network has a part of this name itself, or only some of the tensors have it."""
    network = torch.nn.ModuleDict({own: torch.nn.BatchNorm1d(2, track_running_stats=False)})
    given = {name: torch.full((2,), 7.0) for name in names}
    if own == "module":
        assert "prefix" not in fit_weights(network, given, heads=(), source="a test")
        assert network[own].weight.tolist() == [7, 7]
    else:
        with pytest.raises(WeightsError, match=r"1 unexpected|2 unexpected"):
            fit_weights(network, given, heads=(), source="a test")


def test_message_about_names_and_shapes(state, tmp_path) -> None:
    changed = {key: value for key, value in state.items() if not key.startswith("layer1.0.bn")}
    changed["layer9.weight"] = torch.ones(1)
    changed["conv1.weight"] = torch.ones(64, 1, 7, 7)
    save_file(changed, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_encoder(RESNET, weights=tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "timm/resnet18.tv_in1k in " in message
    assert "8 missing (layer1.0.bn1.weight, " in message
    assert " and 2 more)" in message
    assert "1 unexpected (layer9.weight)" in message
    assert "1 of another shape (conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7))" in message
    with pytest.raises(WeightsError, match="they do not fit"):
        build_encoder(MOBILENET, weights=tmp_path / "weights.safetensors")


def test_a_failing_converter_leaves_the_plain_message() -> None:
    def convert(state, module):
        raise KeyError("q_proj")

    with pytest.raises(WeightsError, match=r"1 missing \(bias\); 1 unexpected \(b\)"):
        fit_weights(
            torch.nn.BatchNorm1d(2, track_running_stats=False),
            {"weight": torch.ones(2), "b": torch.ones(2)},
            heads=(),
            source="a test",
            convert=convert,
        )
