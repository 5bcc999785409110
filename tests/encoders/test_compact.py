"""The compact encoder: folding, its file, what a wrong file says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sanflow.encoders.compact import (
    STRIDES,
    CompactEncoder,
    card_of,
    folded,
    load_compact,
    save_compact,
    shipped_weights,
)
from sanflow.errors import WeightsError
from sanflow.files import read_json, sha256_of_file


def learned(channels: tuple[int, ...] = (8, 12, 16)) -> CompactEncoder:
    """An encoder away from its initial weights: its norms have seen data."""
    torch.manual_seed(0)
    encoder = CompactEncoder(channels, batch_norm=True)
    for parameter in encoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    for _ in range(3):
        encoder(torch.randn(4, 3, 32, 32) * 2 + 1)
    return encoder.eval()


def test_grids_have_the_promised_strides_and_channels() -> None:
    features = learned()(torch.randn(2, 3, 64, 96))
    assert [tuple(map_.shape) for map_ in features] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip((8, 12, 16), STRIDES, strict=True)
    ]


def test_folding_keeps_the_function_and_drops_the_norms() -> None:
    encoder = learned().double()
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    result = folded(encoder).double()
    assert not any("norm" in name for name in result.state_dict())
    for before, after in zip(encoder(images), result(images), strict=True):
        # Folding goes through a float32 network, hence the tolerance.
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_saved_encoder_loads_as_it_was_up_to_half_precision(tmp_path: Path) -> None:
    encoder = learned()
    images = torch.randn(2, 3, 48, 48)
    save_compact(tmp_path / "a.safetensors", encoder, {"b": 1, "a": [2]})
    loaded = load_compact(tmp_path / "a.safetensors")
    assert loaded.channels == [8, 12, 16]
    assert not loaded.training
    assert card_of(tmp_path / "a.safetensors") == {"a": [2], "b": 1}
    for before, after in zip(encoder(images), loaded(images), strict=True):
        assert (before - after).abs().max() < 0.01 * before.abs().max()


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_compact(tmp_path / name, learned(), {"seed": 0, "steps": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"compact encoder's weights in .*absent.*no such file"):
        load_compact(tmp_path / "absent.safetensors")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(WeightsError, match=r"Expected a safetensors file in .*bad"):
        load_compact(tmp_path / "bad.safetensors")


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="another network's"):
        load_compact(tmp_path / "other.safetensors")


def test_the_shipped_file_is_small_matches_its_card_and_gives_features_near_unit_scale() -> None:
    path = shipped_weights()
    assert path.stat().st_size <= 1_500_000
    assert read_json(path.with_suffix(".json"))["sha256"] == sha256_of_file(path)
    encoder = load_compact(path)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert 300_000 <= parameters <= 700_000
    ramp = torch.linspace(-2, 2, 128)
    images = (ramp[:, None] * ramp[None, :]).sin().expand(1, 3, 128, 128) + 0.5 * torch.randn(
        2, 3, 128, 128, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for features in encoder(images):
            assert 0.2 < features.std() < 3
