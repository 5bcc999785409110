"""What runs on a GPU: with torch's fake tensors where there is none, and on a real one where there is.

A fake tensor has a shape, a type and a device, but no numbers. An operation between two devices fails, and so does
whatever reads a number or copies it to the host, which would wait for the GPU. Forward pass, clipping and optimizer are
seen so; the backward pass and the kernels' results are not.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanflow.bench.plain_training import PlainTraining
from sanflow.device import autocast, placed, repeatable
from sanflow.encoders import Encoder, build_encoder
from sanflow.encoders.reflect import mirrored, reflected
from sanflow.errors import DeviceError
from sanflow.methods.flow.coupling_flow import position_condition
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch, Batches
from sanflow.methods.flow.training.learner import Learner
from sanflow.methods.flow.training.pixels import prepare
from sanflow.methods.flow.training.replay import EAGER_CALLS, SWITCH, Replayed, uses_cuda_graphs
from sanflow.methods.flow.training.step import (
    Guard,
    Means,
    Stepper,
    make_optimizer,
    set_learning_rate,
)
from sanflow.scoring import score
from tests.helpers.small_training import SmallTraining

GPU = torch.device("cuda", 0)
SIZE = (64, 48)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees none")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return placed(build_encoder("timm/resnet18.tv_in1k", weights="random"), torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def _autograd_without_threads():
    """Let autograd see that there is no GPU. Fakes pretend one, for which it would start threads, and no fork works."""
    torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _nothing_fake_is_kept():
    """What is made in a fake mode has no numbers; it must not be there for the next test."""
    position_condition.cache_clear()
    mirrored.cache_clear()
    yield
    position_condition.cache_clear()
    mirrored.cache_clear()


class NoCopyToHost(TorchDispatchMode):
    """Fails where a tensor of the GPU is copied to the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        given, made = (
            {value.device.type for value in tree_leaves(values) if isinstance(value, Tensor)}
            for values in ((args, kwargs), found)
        )
        assert not ("cuda" in given and "cpu" in made), f"{operation} waits for the GPU"
        return found


def small_model(encoder: Encoder, base: str = "predicted") -> AnomalyFlow:
    model = AnomalyFlow(encoder.channels, position_channels=16, coupling_blocks=2, base=base)
    return placed(model, torch.device("cpu")).train()


def stepper_of(model: AnomalyFlow, device: torch.device, update: str = "joint", precision: str = "fp32", **settings):
    optimizer = make_optimizer(model)
    set_learning_rate(optimizer, 1e-3)
    return Stepper(model, optimizer, Guard(device), update, precision, **settings)


def with_plain_rate(stepper: Stepper) -> Stepper:
    """Give the optimizer its rate as a number of the host: fused Adam has no fake kernel for one on the device."""
    assert stepper.optimizer.param_groups[0]["lr"].device == GPU
    stepper.optimizer.param_groups[0]["lr"] = 1e-3
    return stepper


def anomalies_and_batches() -> tuple[SyntheticAnomalies, Batches]:
    anomalies = SyntheticAnomalies(SIZE, 8, seed=0)
    random = np.random.RandomState(0)
    images, foreign = (
        random.randint(0, 256, size=(8, *size, 3)).astype(np.uint8) for size in (SIZE, anomalies.foreign_size)
    )
    return anomalies, Batches(images, foreign, batch_size=8, seed=0, anomalies=anomalies, rotation_degrees=5.0)


def anomalies_and_batch() -> tuple[SyntheticAnomalies, Batch]:
    """A batch with anomalies of every kind, rotated."""
    anomalies, batches = anomalies_and_batches()
    batch = next(
        batch for batch in map(batches.batch, range(50)) if batch.drawing and set(batch.drawing.kinds) == {0, 1, 2, 3}
    )
    return anomalies, batch


def fake_on_gpu(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def moved(module: nn.Module) -> nn.Module:
    """The module, its weights in place replaced by fake ones on a GPU; to be called in a fake mode."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake_on_gpu(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake_on_gpu(buffer)
    return module


def invent_gradients(monkeypatch, model: nn.Module) -> None:
    """In place of the backward pass: autograd's engine asks the driver for its device."""

    def backward(loss: Tensor) -> None:
        assert loss.device == GPU
        assert loss.requires_grad
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)


@pytest.fixture
def autocast_without_gpu(monkeypatch):
    """torch turns autocast off where it sees no GPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


@pytest.mark.usefixtures("autocast_without_gpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("update", ["per_scale", "joint"])
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(encoder, monkeypatch, update, precision):
    anomalies, batch = anomalies_and_batch()
    model, encoder = small_model(encoder), copy.deepcopy(encoder)
    with FakeTensorMode(allow_non_fake_inputs=True), NoCopyToHost():
        model, encoder = moved(model), moved(encoder)
        invent_gradients(monkeypatch, model)
        stepper = with_plain_rate(stepper_of(model, GPU, update, precision, gradient_clip=1.0))
        images, mask = prepare(batch, anomalies, encoder, device=GPU)
        with autocast(precision, GPU):
            features = encoder(images)
        assert {maps.dtype for maps in features} == {torch.float32 if precision == "fp32" else torch.bfloat16}
        told = stepper(0, features, images, mask)
        means = Means()
        means.add(told)
        assert {value.device for value in told.values()} == {GPU}
        assert stepper.guard.skipped.device == GPU
        assert {value.device for value in means.state()["sums"].values()} == {GPU}
        # Reading a number is what would wait; here it cannot be done, so that none of the above has.
        with pytest.raises(DataDependentOutputException):
            means.read()


def test_steps_over_shuffled_locations_stay_on_the_gpu(encoder, monkeypatch):
    model = small_model(encoder, base="fixed")
    with FakeTensorMode(allow_non_fake_inputs=True), NoCopyToHost():
        invent_gradients(monkeypatch, moved(model))
        stepper = with_plain_rate(stepper_of(model, GPU, locations_per_step=64))
        images = torch.empty(8, 3, *SIZE, device=GPU)
        features = [torch.empty(8, n, 16 // 2**i, 12 // 2**i, device=GPU) for i, n in enumerate(encoder.channels)]
        told = stepper(0, features, images, None)
        assert {value.device for value in told.values()} == {GPU}


@pytest.mark.usefixtures("autocast_without_gpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_stay_on_the_gpu(encoder, precision):
    model, encoder = small_model(encoder).eval(), copy.deepcopy(encoder)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        NoCopyToHost(),
        torch.inference_mode(),
        autocast(precision, GPU),
    ):
        model, encoder = moved(model), moved(encoder)
        images = torch.empty(2, 3, *SIZE, device=GPU)
        found = model.score(encoder(images), images, latents_of=1)
        grids = found.grids
        assert {grid.device for grid in grids} == {GPU}
        assert {grid.dtype for grid in grids} == {torch.float32}
        assert found.variance_Bhw.device == found.latents_NC.device == GPU


def test_the_plain_training_stays_on_the_gpu():
    plain = PlainTraining([6, 9], position_channels=8, blocks=2)
    with FakeTensorMode(allow_non_fake_inputs=True), NoCopyToHost():
        moved(plain.flows)
        moved(plain.network)
        images, mask = torch.empty(2, 3, 32, 32, device=GPU), torch.empty(2, 1, 32, 32, device=GPU)
        assert plain.loss(1, torch.empty(2, 9, 4, 4, device=GPU), images, mask).device == GPU


@pytest.fixture
def stand_ins(monkeypatch):
    """Streams and graphs that need no GPU; the names of what is called."""
    called = []

    @contextlib.contextmanager
    def graph(graph, **_):
        called.append("capture")
        yield

    class Event:
        def record(self):
            called.append("read")

    class Stream:
        def wait_stream(self, other):
            called.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return called


def test_the_first_calls_run_as_they_are_and_the_others_are_replayed(stand_ins, monkeypatch):
    kept = []

    class Graph:
        def replay(self) -> None:
            stand_ins.append("replay")
            kept[-1]["twice"].copy_(2 * kept[-1]["value"])

    def twice(value: Tensor, nothing: None) -> dict[str, Tensor]:
        kept.append({"value": value, "twice": 2 * value})
        return kept[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    replayed = Replayed(twice, "Doubling")
    found = [replayed(torch.tensor([float(number)]), None)["twice"].item() for number in range(5)]
    assert found == [0, 2, 4, 6, 8]
    assert len(kept) == EAGER_CALLS + 1  # the last one is the capture
    read_then_replay = ["read", "replay"] * (5 - EAGER_CALLS)
    assert [name for name in stand_ins if name != "wait"] == [*["read"] * EAGER_CALLS, "capture", *read_then_replay]
    assert stand_ins.count("wait") == 2 * EAGER_CALLS


@pytest.mark.parametrize(
    ("fault", "raised", "message"),
    [
        (
            RuntimeError("operation not permitted\nmore"),
            DeviceError,
            r"a step as a CUDA graph.*: operation not permitted\. ",
        ),
        (torch.OutOfMemoryError("3 GB more"), torch.OutOfMemoryError, "3 GB more"),
    ],
)
def test_a_failed_capture_ends_with_its_reason(stand_ins, monkeypatch, fault, raised, message):
    @contextlib.contextmanager
    def capture(graph, **_):
        try:
            yield
        finally:
            raise RuntimeError("capture_end failed")

    calls = []

    def fails_at_last(value: Tensor) -> Tensor:
        calls.append(value)
        if len(calls) > EAGER_CALLS:
            raise fault
        return value

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    replayed = Replayed(fails_at_last, "a step")
    for _ in range(EAGER_CALLS):
        replayed(torch.zeros(1))
    with pytest.raises(raised, match=message):
        replayed(torch.zeros(1))


def test_graphs_are_for_gpus_and_can_be_turned_off(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert (uses_cuda_graphs(GPU), uses_cuda_graphs(torch.device("cpu"))) == (True, False)
    monkeypatch.setenv(SWITCH, "0")
    assert not uses_cuda_graphs(GPU)


def test_the_fakes_see_a_copy_to_the_host():
    with FakeTensorMode(), NoCopyToHost():
        loss = torch.empty(3, device=GPU)
        assert (loss + 1).device == GPU
        with pytest.raises(AssertionError, match="waits for the GPU"):
            loss.cpu()
        with pytest.raises(AssertionError, match="waits for the GPU"):
            torch.empty(3).copy_(loss)


@needs_gpu
@pytest.mark.parametrize("update", ["per_scale", "joint"])
def test_a_real_gpus_losses_are_the_processors(encoder, update):
    """In float64: in float32 a ReLU whose sign rounding decides, and Adam's first steps, make a thousandth of it."""
    anomalies, batch = anomalies_and_batch()
    losses = []
    for device in (torch.device("cpu"), GPU):
        network, model = (placed(copy.deepcopy(part).double(), device) for part in (encoder, small_model(encoder)))
        stepper = stepper_of(model, device, update)
        told = []
        for step in range(3):
            images, mask = prepare(batch, anomalies, network, device=device, dtype=torch.float64)
            told.append(stepper(step, network(images), images, mask))
        losses.append([float(value) for values in told for name, value in values.items() if name.endswith("_loss")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def train_batches(encoder: Encoder, cuda_graphs: bool, **settings) -> tuple[list[float], dict]:
    """Losses and weights after a few batches on a real GPU, each with another learning rate."""
    anomalies, batches = anomalies_and_batches()
    in_chunks = "locations_per_step" in settings
    network = placed(copy.deepcopy(encoder), GPU)
    model = placed(small_model(encoder, "fixed" if in_chunks else "predicted"), GPU)
    stepper = stepper_of(model, GPU, cuda_graphs=cuda_graphs, **settings)
    learner = Learner(network, None if in_chunks else anomalies, stepper)
    means, losses = Means(), []
    for step in range(12):
        set_learning_rate(stepper.optimizer, 1e-3 / (1 + step))
        means.add(learner(batches.batch(step)))
        if step % 4 == 3:  # otherwise nothing waits, as in a training
            losses += means.read().values()
            means.clear()
    assert float(stepper.guard.skipped) == 0
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


@needs_gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"update": "joint"},
        {"update": "per_scale"},
        {"update": "joint", "precision": "bf16"},
        {"update": "per_scale", "precision": "bf16", "gradient_clip": 1.0},
        {"update": "joint", "precision": "tf32"},
        {"locations_per_step": 64},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_replayed_steps_are_those_of_the_kernels_one_by_one(encoder, settings):
    with repeatable():
        losses, weights = train_batches(encoder, cuda_graphs=False, **settings)
        replayed_losses, replayed_weights = train_batches(encoder, cuda_graphs=True, **settings)
    assert replayed_losses == losses
    assert all(torch.equal(replayed_weights[name], value) for name, value in weights.items())


@needs_gpu
def test_replayed_steps_skip_a_bad_batch_and_count_it(encoder, monkeypatch):
    _, batches = anomalies_and_batches()
    network, model = placed(copy.deepcopy(encoder), GPU), placed(small_model(encoder), GPU)
    stepper = stepper_of(model, GPU, cuda_graphs=True)
    learner = Learner(network, None, stepper)
    for step in range(4):
        learner(batches.batch(step))
    before = {name: value.clone() for name, value in model.named_parameters()}
    clean = network.normalise
    monkeypatch.setattr(network, "normalise", lambda images_B3HW: clean(images_B3HW) * float("nan"))
    learner(batches.batch(4))
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert (float(stepper.guard.skipped), float(stepper.guard.consecutive)) == (1, 1)


@needs_gpu
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (0, 2)])
def test_a_real_gpu_reflects_as_torch_does_and_keeps_the_layout(rows, columns):
    features = torch.rand(2, 5, 6, 7, device=GPU).contiguous(memory_format=torch.channels_last)
    padded = reflected(features, (rows, columns))
    assert torch.equal(padded, F.pad(features, (columns, columns, rows, rows), mode="reflect"))
    assert padded.is_contiguous(memory_format=torch.channels_last)


@needs_gpu
def test_a_real_gpu_gives_the_same_weights_twice(tmp_path):
    train = SmallTraining(tmp_path)
    first, second = (
        torch.load(train(device="cuda").checkpoint, weights_only=True, map_location="cpu")["state"] for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_gpu
@pytest.mark.parametrize("changes", [{}, {"method": "cflow", "locations_per_step": 4}], ids=["sanflow", "cflow"])
def test_a_training_on_a_real_gpu_goes_on_where_it_stopped(tmp_path, changes):
    class Stopped(Exception):
        pass

    def stop(step: int) -> None:
        if step == 7:
            raise Stopped

    train = SmallTraining(tmp_path)
    with pytest.raises(Stopped):
        train(device="cuda", folder=tmp_path / "stopped", save_every_seconds=0.0, on_step=stop, **changes)
    resumed, whole = (
        torch.load(train(device="cuda", **where, **changes).checkpoint, weights_only=True, map_location="cpu")["state"]
        for where in ({"folder": tmp_path / "stopped"}, {})
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_gpus_scores_are_the_processors(tmp_path, precision):
    train = SmallTraining(tmp_path)
    checkpoint = train(device="cuda", precision=precision).checkpoint
    of_gpu, of_cpu = (score(checkpoint, train.index, device=device)[0] for device in ("cuda", "cpu"))
    for name, grid in of_cpu.grids.items():
        assert of_gpu.grids[name] == pytest.approx(grid, rel=1e-4 if precision == "fp32" else 0.05)


@needs_gpu
def test_what_cannot_be_captured_on_a_real_gpu_is_an_error():
    total = torch.zeros((), device=GPU)
    add = Replayed(lambda value: value * float(total.add_(value)), "an addition")  # waits for the GPU
    for number in range(EAGER_CALLS):
        assert float(add(torch.ones((), device=GPU))) == number + 1
    with pytest.raises(DeviceError, match="Expected to capture an addition as a CUDA graph"):
        add(torch.ones((), device=GPU))
