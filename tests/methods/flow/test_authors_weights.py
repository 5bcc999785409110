"""The authors' weights: a checkpoint written as their code writes it, imported, gives the reference's numbers.

The reference is composed here of FrEIA 0.2's own blocks and torchvision's ResNet-18 with reflecting convolutions.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from typer.testing import CliRunner

from sanflow.cli import app
from sanflow.data.index import build_index, write_index
from sanflow.errors import WeightsError
from sanflow.files import read_json
from sanflow.methods.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from sanflow.methods.flow.authors_weights import (
    BLOCK_KEYS,
    STATISTICS_KEYS,
    Imported,
    flow_state,
    import_official,
    statistics_state,
)
from sanflow.methods.flow.detector import load
from sanflow.methods.flow.settings import OfficialExperiment
from sanflow.provenance import Provenance

POSITION_CHANNELS, BLOCKS, CHANNELS = 16, 2, (128, 256, 512)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_downloaded(tmp_path_factory):
    empty = str(tmp_path_factory.mktemp("no-cache"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: empty)
        yield


def experiment(**changes) -> OfficialExperiment:
    settings = {
        "method": "official",
        "official_weights": "weights/{category}.pt",
        "encoder": "torchvision/resnet18",
        "position_channels": POSITION_CHANNELS,
        "coupling_blocks": BLOCKS,
    }
    return OfficialExperiment(**(settings | changes))


class ReferenceStatistics(nn.Module):
    """The statistics network under the authors' names, written out independently."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        layers = [[nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()] for _ in range(3)]
        self.dncnn = nn.Sequential(*[module for layer in layers for module in layer])
        self.last_layer = nn.Conv2d(64, 2, 3, 1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.layer1(images))
        return self.last_layer(first + self.dncnn(first))


def reference_flow(channels: int, permute_soft: bool) -> nn.Module:
    freia = pytest.importorskip("FrEIA.framework")
    from FrEIA.modules import AllInOneBlock

    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))

    flow = freia.SequenceINN(channels)
    for _ in range(BLOCKS):
        flow.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(POSITION_CHANNELS,),
            subnet_constructor=subnet,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=permute_soft,
        )
    return flow.eval()


def reflecting_resnet18() -> nn.Module:
    network = resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.padding_mode = "reflect"
    return network.eval()


def features_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    x = network.layer1(x)
    return [x := layer(x) for layer in (network.layer2, network.layer3, network.layer4)]


@pytest.fixture(scope="module")
def authors() -> dict[str, object]:
    """Their three parts with random weights, away from the initial ones."""
    random_state, np_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002  (FrEIA draws its permutations from it)
    encoder = reflecting_resnet18()
    flows = [reference_flow(channels, permute_soft=False) for channels in CHANNELS]
    statistics = ReferenceStatistics().eval()
    with torch.no_grad():
        for name, tensor in nn.ModuleList([encoder, *flows, statistics]).named_parameters():
            if "w_perm" not in name:
                tensor.add_(0.02 * torch.randn_like(tensor))
        statistics.last_layer.weight.mul_(20)
    torch.set_rng_state(random_state)
    np.random.set_state(np_state)  # noqa: NPY002
    return {"encoder": encoder, "flows": flows, "statistics": statistics}


@pytest.fixture(scope="module")
def path(authors, tmp_path_factory) -> Path:
    """Their file."""
    return write_checkpoint(tmp_path_factory.mktemp("authors") / "bottle.pt", authors, epoch=19)


@pytest.fixture(scope="module")
def imported(path) -> Imported:
    """Their file in our terms."""
    return import_official(path, experiment())


def write_checkpoint(path: Path, authors: dict[str, object], **others: object) -> Path:
    torch.save(
        {
            "encoder_state_dict": authors["encoder"].state_dict(),
            "decoder_state_dict": [flow.state_dict() for flow in authors["flows"]],
            "variance": authors["statistics"].state_dict(),
            **others,
        },
        path,
    )
    return path


def position(channels: int, height: int, width: int) -> Tensor:
    """The position code, cell by cell."""
    code = torch.zeros(height, width, channels)
    for row in range(height):
        for column in range(width):
            for k in range(channels // 4):
                rate = 10_000 ** (-2 * k / (channels / 2))
                for first, place in ((0, column), (channels // 2, row)):
                    code[row, column, first + 2 * k] = np.sin(place * rate)
                    code[row, column, first + 2 * k + 1] = np.cos(place * rate)
    return code


def reference_log_probs(authors: dict[str, object], images: Tensor) -> list[Tensor]:
    parameters = authors["statistics"](images)
    grids = []
    for features, flow in zip(features_of(authors["encoder"], images), authors["flows"], strict=True):
        batch, channels, height, width = features.shape
        x = features.permute(0, 2, 3, 1).reshape(-1, channels)
        condition = position(POSITION_CHANNELS, height, width).reshape(-1, POSITION_CHANNELS).repeat(batch, 1)
        z, log_det = flow(x, [condition])
        at_grid = F.interpolate(parameters, size=(height, width), mode="nearest").permute(0, 2, 3, 1).reshape(-1, 2)
        alpha, beta = at_grid[:, 0].clamp(np.log(1e-8), np.log(1e4)).exp(), at_grid[:, 1].exp()
        variance = (beta / (alpha + 1)).clamp(0, 5)
        log_prob = (
            -0.5 * channels * np.log(2 * np.pi)
            - 0.5 * z.square().sum(1) / variance
            - 0.5 * channels * variance.log()
            + log_det
        )
        grids.append((log_prob / channels).reshape(batch, height, width))
    return grids


def test_imported_model_gives_the_references_log_probabilities(authors, imported):
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = reference_log_probs(authors, images)
        ours = imported.model.score(imported.encoder(images), images).grids
    assert [tuple(grid.shape) for grid in ours] == [(2, 12, 8), (2, 6, 4), (2, 3, 2)]
    assert theirs[0].std() > 0.01
    for scale, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4, msg=lambda text, scale=scale: f"{scale}: {text}")
    assert imported.encoder.identity["padding"] == "reflect"


def test_unused_keys_are_reported_and_the_encoder_kept_where_there_is_no_other(imported):
    unused = imported.report["unused_keys"]
    assert {"epoch", "encoder_state_dict.fc.weight", "encoder_state_dict.fc.bias"} <= set(unused)
    assert sum(key.endswith("w_perm_inv") for key in unused) == BLOCKS * len(CHANNELS)
    assert len(unused) == 3 + BLOCKS * len(CHANNELS)
    assert imported.report["encoder"] == "from the file"
    assert "no other is at hand" in imported.report["why"]
    assert imported.encoder_state is not None


def test_equal_pretrained_encoder_is_not_kept_and_a_different_one_is_told(authors, path, tmp_path):
    torch.save(authors["encoder"].state_dict(), tmp_path / "same.pth")
    same = import_official(path, experiment(weights=str(tmp_path / "same.pth")))
    assert same.encoder_state is None
    assert same.report["encoder"] == "equal to the pretrained one"

    other = copy.deepcopy(authors["encoder"].state_dict())
    other["conv1.weight"][0, 0, 0, 0] += 1e-6
    torch.save(other, tmp_path / "other.pth")
    different = import_official(path, experiment(weights=str(tmp_path / "other.pth")))
    assert different.encoder_state is not None
    assert "differ" in different.report["why"]


def test_checkpoint_round_trip_carries_their_encoder(path, imported, tmp_path):
    settings = experiment()
    provenance = Provenance("own", "bottle", "theirs", {}, "i", "c", encoder=imported.encoder.identity)
    parts = {"state": imported.model.state_dict(), "constants": {}, "facts": {"channels": imported.encoder.channels}}
    save_checkpoint(
        tmp_path / "checkpoint.pt",
        Checkpoint(settings, (64, 64), **parts, provenance=provenance, encoder_state=imported.encoder_state),
    )
    detector = load(load_checkpoint(tmp_path / "checkpoint.pt"), "cpu")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = imported.model.score(imported.encoder(images), images).grids
    after = detector.model.score(detector.encoder(images), images).grids
    for ours, again in zip(before, after, strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-4, atol=1e-5)
    # The flows alone, without their dense permutations and encoder.
    parameters = sum(value.numel() for name, value in imported.model.named_parameters() if name.startswith("flows"))
    dense = sum(2 * BLOCKS * channels**2 for channels in CHANNELS)
    encoder = sum(tensor.numel() for tensor in imported.encoder_state.values())
    size = (tmp_path / "checkpoint.pt").stat().st_size
    assert size < path.stat().st_size - 4 * dense + 1e5
    assert size > 4 * (parameters + encoder)


def test_rotations_are_kept_as_matrices(authors, tmp_path):
    soft = {**authors, "flows": [reference_flow(channels, permute_soft=channels == 128) for channels in CHANNELS]}
    soft["flows"] = [soft["flows"][0]]
    path = write_checkpoint(tmp_path / "a.pt", soft)
    with pytest.raises(WeightsError, match=r"Expected channels \[128, 256, 512\].*has \[128\]"):
        import_official(path, experiment(permutation="rotation"))
    settings = experiment(permutation="rotation", taps=["layer2"])
    imported = import_official(path, settings)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    condition = torch.zeros(3, POSITION_CHANNELS)
    with torch.no_grad():
        theirs, their_log_det = soft["flows"][0](x, [condition])
        ours, our_log_det = imported.model.flows[0](x, condition)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_log_det, their_log_det, rtol=1e-5, atol=1e-5)
    with pytest.raises(WeightsError, match=r"Expected permutation \['index'\].*\['rotation'\]"):
        import_official(path, experiment(taps=["layer2"]))


def test_key_names_are_pinned(authors):
    flow = authors["flows"][0].state_dict()
    assert {key.split(".", 2)[2] for key in flow} == set(BLOCK_KEYS)
    assert set(authors["statistics"].state_dict()) == set(STATISTICS_KEYS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_channels": 32}, r"Expected position_channels \[32\].*\[16\]"),
        ({"coupling_blocks": 3}, r"Expected coupling_blocks \[3\].*\[2\]"),
        ({"encoder": "torchvision/wide_resnet50_2"}, "do not fit"),
    ],
)
def test_another_architecture_is_refused(path, changes, message):
    with pytest.raises(WeightsError, match=message):
        import_official(path, experiment(**changes))


def test_unfit_states_are_refused(authors):
    flow = authors["flows"][0].state_dict()
    with pytest.raises(WeightsError, match=r"coupling block 0.*\['global_scale'\] are missing.*none are unknown"):
        flow_state({key: value for key, value in flow.items() if key != "module_list.0.global_scale"})
    with pytest.raises(WeightsError, match=r"module_list\.<block>\.<name>.*'extra'"):
        flow_state(flow | {"extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"blocks 0, 1.*\[1\]"):
        flow_state({key: value for key, value in flow.items() if "module_list.0" not in key})
    with pytest.raises(WeightsError, match=r"statistics network.*'more'"):
        statistics_state(authors["statistics"].state_dict() | {"more": torch.zeros(1)})
    broken = flow | {"module_list.0.w_perm_inv": flow["module_list.0.w_perm"] + 1}
    with pytest.raises(WeightsError, match="transpose"):
        flow_state(broken)
    squashed = torch.zeros_like(flow["module_list.0.w_perm"])
    with pytest.raises(WeightsError, match="neither"):
        flow_state(flow | {"module_list.0.w_perm": squashed, "module_list.0.w_perm_inv": squashed})


def test_unreadable_files_are_refused(authors, path, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        import_official(tmp_path / "none.pt", experiment())
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="reading it failed"):
        import_official(tmp_path / "half.pt", experiment())
    torch.save(authors["statistics"], tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="could run code of its author"):
        import_official(tmp_path / "code.pt", experiment())
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="got a list"):
        import_official(tmp_path / "list.pt", experiment())
    torch.save({"decoder_state_dict": []}, tmp_path / "parts.pt")
    with pytest.raises(WeightsError, match=r"\['encoder_state_dict', 'variance'\] are missing"):
        import_official(tmp_path / "parts.pt", experiment())
    wrong = {**authors, "flows": authors["flows"][::-1]}
    with pytest.raises(WeightsError, match=r"channels \[128, 256, 512\].*\[512, 256, 128\]"):
        import_official(write_checkpoint(tmp_path / "b.pt", wrong), experiment())


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A data set of four images with its index, and a benchmark file with one official experiment."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    for name, image in zip(
        ("train/good/a", "test/good/b", "test/dent/c", "ground_truth/dent/c_mask"), pixels, strict=True
    ):
        path = tmp_path / f"data/bottle/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if "mask" not in name else image[..., 0] // 128 * 255).save(path)
    index = build_index("own", "bottle", tmp_path / "data", kind="folder")
    write_index(index, tmp_path / "index.csv")
    settings = {
        "method": "official",
        "official_weights": str(tmp_path / "weights/{category}.pt"),
        "encoder": "torchvision/resnet18",
        "taps": ["layer2"],
        "position_channels": POSITION_CHANNELS,
        "coupling_blocks": BLOCKS,
        "input_size": 64,
    }
    benchmark = {
        "datasets": {"own": {"kind": "folder", "root": str(tmp_path / "data")}},
        "experiments": {
            "theirs": settings,
            "trained": {"method": "sanflow", "encoder": "torchvision/resnet18"},
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(benchmark))
    return tmp_path


def test_the_train_command_imports_their_weights(authors, workplace):
    (workplace / "weights").mkdir()
    write_checkpoint(workplace / "weights/bottle.pt", {**authors, "flows": authors["flows"][:1]}, epoch=19)
    line = ["train", workplace / "index.csv", "--benchmark", workplace / "own.yaml", "--experiment", "theirs"]
    line += ["--output", workplace / "out/checkpoint.pt", "--history", workplace / "out/train.json"]
    result = CliRunner().invoke(app, list(map(str, [*line, "--state", workplace / "state", "--seed", "3"])))
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(workplace / "out/checkpoint.pt")
    assert (checkpoint.provenance.seed, checkpoint.input_size) == (3, (64, 64))
    assert checkpoint.facts["channels"] == [128]
    assert checkpoint.experiment.method == "official"
    assert checkpoint.provenance.category == "bottle"
    assert list(checkpoint.constants) == ["scale0"]
    assert np.isfinite(checkpoint.constants["scale0"])
    record = read_json(workplace / "out/train.json")
    assert record["history"] == []
    assert record["import"]["encoder"] == "from the file"
    assert {"epoch", "encoder_state_dict.fc.bias"} <= set(record["import"]["unused_keys"])
    assert record["parameters"] == sum(parameter.numel() for parameter in load(checkpoint, "cpu").model.parameters())
