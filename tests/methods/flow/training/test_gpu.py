"""What runs on a GPU: with torch's fake tensors where there is none, and on a real one where there is.

A fake tensor has a shape, a type and a device, but no numbers. An operation between two devices fails, and so does
whatever reads a number or copies it to the host, which would wait for the GPU. Forward pass, clipping and optimizer are
seen so; the backward pass and the kernels' results are not.
"""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanflow.device import autocast, placed
from sanflow.encoders import Encoder, build_encoder
from sanflow.methods.flow.coupling_flow import position_condition
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch, Batches
from sanflow.methods.flow.training.pixels import prepare
from sanflow.methods.flow.training.step import Guard, Means, Stepper, make_optimizer, set_learning_rate
from tests.helpers.small_training import SmallTraining

GPU = torch.device("cuda", 0)
SIZE = (64, 48)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch sees none")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return placed(build_encoder("timm/resnet18.tv_in1k", weights="random"), torch.device("cpu"))


@pytest.fixture(autouse=True)
def _no_fake_codes():
    """A position code made in a fake mode has no numbers; it must not be there for the next test."""
    position_condition.cache_clear()
    yield
    position_condition.cache_clear()


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


def anomalies_and_batch() -> tuple[SyntheticAnomalies, Batch]:
    """A batch with anomalies of every kind, rotated."""
    anomalies = SyntheticAnomalies(SIZE, 8, seed=0)
    random = np.random.RandomState(0)
    images, foreign = (
        random.randint(0, 256, size=(8, *size, 3)).astype(np.uint8) for size in (SIZE, anomalies.foreign_size)
    )
    batches = Batches(images, foreign, batch_size=8, seed=0, anomalies=anomalies, rotation_degrees=5.0)
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
        stepper = stepper_of(model, GPU, update, precision, gradient_clip=1.0)
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
        stepper = stepper_of(model, GPU, locations_per_step=64)
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


@needs_gpu
def test_a_real_gpu_gives_the_same_weights_twice(tmp_path):
    train = SmallTraining(tmp_path)
    first, second = (
        torch.load(train(device="cuda").checkpoint, weights_only=True, map_location="cpu")["state"] for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
