"""Checkpoints: what goes in comes out, and a damaged file never passes for a whole one."""

import dataclasses
import errno
import pickle
import random

import pytest
import torch

from sanflow.encoders import build_encoder
from sanflow.errors import DataError, IntegrityError, StorageError, WeightsError
from sanflow.methods import checkpoints
from sanflow.methods.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from sanflow.methods.flow.detector import load
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.settings import SanflowExperiment
from sanflow.provenance import Provenance, Step

EXPERIMENT = SanflowExperiment(
    method="sanflow",
    encoder="timm/resnet18.tv_in1k",
    weights="random",
    taps=["layer1"],
    position_channels=8,
    coupling_blocks=1,
    input_size=(32, 48),
)


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("timm/resnet18.tv_in1k", weights="random", taps=["layer1"], feature_scales=[0.5], seed=3)


@pytest.fixture
def model(encoder) -> AnomalyFlow:
    return AnomalyFlow.from_experiment(encoder.channels, EXPERIMENT, seed=7).eval()


def provenance_of(encoder):
    facts = {
        "dataset": "mine",
        "category": "tile",
        "experiment_name": "small",
        "experiment": {},
        "index_digest": "i",
        "config_digest": "c",
        "seed": 7,
        "encoder": encoder.identity,
        "steps": {"fit": Step("code", "cpu", "fp32", {"torch": "2"})},
    }
    return Provenance(**facts)


def save(path, model, encoder, **changes) -> str:
    parts = {
        "input_size": (32, 48),
        "state": model.state_dict(),
        "constants": {"scale0": -1.5},
        "provenance": provenance_of(encoder),
        "facts": {"channels": encoder.channels},
        "history": [{"epoch": 1, "loss": 0.5}],
    }
    return save_checkpoint(path, Checkpoint(EXPERIMENT, **(parts | changes)))


def test_round_trip(model, encoder, tmp_path):
    digest = save(tmp_path / "checkpoint.pt", model, encoder)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint.experiment == EXPERIMENT
    assert checkpoint.digest == digest
    assert (checkpoint.facts, checkpoint.input_size) == ({"channels": [64]}, (32, 48))
    assert checkpoint.history == [{"epoch": 1, "loss": 0.5}]
    assert checkpoint.provenance == provenance_of(encoder)
    assert checkpoint.encoder_state is None

    images = torch.randint(0, 256, (1, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = load(checkpoint, "cpu")
    assert detector.constants == {"scale0": -1.5}
    assert not detector.model.training
    images_B3HW = encoder.normalise(images.permute(0, 3, 1, 2) / 255)
    expected = model.score(encoder(images_B3HW), images_B3HW).grids[0]
    torch.testing.assert_close(detector(images).grids["scale0"], expected)


def test_content_is_plain_and_has_no_encoder(model, encoder, tmp_path):
    save(tmp_path / "checkpoint.pt", model, encoder)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(content) == {
        "format",
        "held_out",
        "experiment",
        "input_size",
        "constants",
        "provenance",
        "facts",
        "history",
        "state",
        "encoder_state",
        "digest",
    }
    tensors = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert tensors < (tmp_path / "checkpoint.pt").stat().st_size < tensors + 100_000


def test_digest_is_of_the_content(model, encoder, tmp_path):
    first, second = (save(tmp_path / name, model, encoder) for name in ("a.pt", "b.pt"))
    assert first == second
    with torch.no_grad():
        next(model.parameters())[0] += 1e-3
    assert save(tmp_path / "c.pt", model, encoder) != first
    model.load_state_dict(load_checkpoint(tmp_path / "a.pt").state)
    assert save(tmp_path / "d.pt", model, encoder, constants={"scale0": -2.0}) != first


def test_a_flipped_byte_is_noticed_or_harmless(model, encoder, tmp_path):
    path = tmp_path / "checkpoint.pt"
    digest = save(path, model, encoder)
    whole = path.read_bytes()
    generator = random.Random(0)
    # The archive's head and its directory, where formats live, and the tensors between.
    places = [
        *generator.sample(range(6000), 60),
        *generator.sample(range(len(whole)), 20),
        *generator.sample(range(len(whole) - 4000, len(whole)), 40),
    ]
    noticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            # Bytes of the archive that hold no content, such as times, may change.
            assert load_checkpoint(path).digest == digest, place
        except IntegrityError:
            noticed += 1
    assert noticed > 40


def test_a_changed_weight_is_noticed(model, encoder, tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path, model, encoder)
    content = torch.load(path, weights_only=True)
    next(iter(content["state"].values())).view(-1)[0] += 1e-6
    torch.save(content, path)
    with pytest.raises(IntegrityError, match=r"has another.*Delete it and run again"):
        load_checkpoint(path)
    torch.save(content | {"state": None}, path)
    with pytest.raises(IntegrityError, match="has another"):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 10, 1000, -1000])
def test_a_cut_file_is_noticed(model, encoder, tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    save(path, model, encoder)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(IntegrityError, match="it is damaged"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is none"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(IntegrityError, match=r"'without a format'.*`method: official`"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(IntegrityError, match="'list'"):
        load_checkpoint(tmp_path / "list.pt")


def test_code_in_a_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(IntegrityError):
        load_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_configuration_of_another_version_is_named(model, encoder, tmp_path, monkeypatch):
    values = EXPERIMENT.model_dump(mode="json") | {"spectral": True}
    monkeypatch.setattr(SanflowExperiment, "model_dump", lambda self, mode: values)
    save(tmp_path / "checkpoint.pt", model, encoder)
    with pytest.raises(IntegrityError, match=r"this version of sanflow.*spectral"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_method_that_is_not_installed_is_named(model, encoder, tmp_path, monkeypatch):
    values = EXPERIMENT.model_dump(mode="json") | {"method": "unheard-of"}
    monkeypatch.setattr(SanflowExperiment, "model_dump", lambda self, mode: values)
    save(tmp_path / "checkpoint.pt", model, encoder)
    with pytest.raises(IntegrityError, match=r"one of 'unheard-of'\. Install the package"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_other_encoder_weights_are_refused(model, encoder, tmp_path):
    other = dataclasses.replace(provenance_of(encoder), encoder={**encoder.identity, "weights_sha256": "0" * 64})
    save(tmp_path / "checkpoint.pt", model, encoder, provenance=other)
    with pytest.raises(WeightsError, match=r"fitted with \(sha256 0{64}\), but got others"):
        load_checkpoint(tmp_path / "checkpoint.pt").build_encoder()


def test_failed_write_leaves_the_previous_file(model, encoder, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save(path, model, encoder)
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        save(path, model, encoder, constants={})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_room_is_checked_before_writing(model, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match="for a checkpoint"):
        save(tmp_path / "checkpoint.pt", model, encoder)
