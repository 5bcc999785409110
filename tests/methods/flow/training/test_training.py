"""The fast path against the plain one, and what training promises: losses, skipped steps, history, kept epochs."""

import contextlib
import copy
import json
import math
import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from sanflow.bench.plain_training import PlainTraining
from sanflow.device import MEMORY_FORMAT, autocast, choose_device, multiplies_bf16, placed, repeatable, usable_precision
from sanflow.errors import ConfigError, DeviceError, TrainingError
from sanflow.methods.flow.losses import loss_of
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.training.batches import Batches
from sanflow.methods.flow.training.pixels import rotated
from sanflow.methods.flow.training.step import Guard, Means, Stepper, make_optimizer, set_learning_rate
from sanflow.tracking import Tracker
from tests.helpers.plain_weights import weights_of_plain
from tests.helpers.small_training import SmallTraining

CHANNELS, POSITION, BLOCKS, SIZE = [6, 9], 8, 3, 32


def batch(seed: int, dtype: torch.dtype):
    """Features of two scales, images and a mask that covers a corner of every other image."""
    generator = torch.Generator().manual_seed(seed)
    images_B3HW = torch.randn(4, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    features = [torch.randn(4, n, 8 // 2**i, 8 // 2**i, generator=generator) for i, n in enumerate(CHANNELS)]
    mask_B1HW = torch.zeros(4, 1, SIZE, SIZE)
    mask_B1HW[::2, :, : 3 * SIZE // 8, : 5 * SIZE // 8] = 0.5
    images_B3HW = images_B3HW.to(dtype).contiguous(memory_format=MEMORY_FORMAT)
    return [maps.to(dtype) for maps in features], images_B3HW, mask_B1HW.to(dtype)


def both(dtype: torch.dtype, update: str = "per_scale", **settings) -> tuple[PlainTraining, Stepper]:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - FrEIA draws its permutations from numpy
    plain = PlainTraining(CHANNELS, POSITION, BLOCKS, learning_rate=1e-3)
    model = AnomalyFlow(CHANNELS, position_channels=POSITION, coupling_blocks=BLOCKS)
    model.load_state_dict(weights_of_plain(plain))
    plain.to(dtype)
    placed(model.to(dtype), torch.device("cpu")).train()
    optimizer = make_optimizer(model)
    set_learning_rate(optimizer, 1e-3)
    return plain, Stepper(model, optimizer, Guard(torch.device("cpu")), update, **settings)


def largest_difference(plain: PlainTraining, stepper: Stepper) -> float:
    ours = stepper.model.state_dict()
    return max(
        ((ours[name] - value).abs() / value.abs().clamp(min=1)).max().item()
        for name, value in weights_of_plain(plain).items()
    )


def test_twenty_steps_equal_the_plain_training_in_float64():
    plain, stepper = both(torch.float64)
    for step in range(20):
        features, images, mask = batch(step, torch.float64)
        expected = plain.step(features, images, mask)
        told = stepper(step, features, images, mask)
        found = [float(told[f"scale{scale}_loss"]) for scale in range(2)]
        assert found == pytest.approx(expected, abs=1e-9), step
    assert largest_difference(plain, stepper) < 1e-9


def test_joint_updates_equal_one_step_for_the_sum_in_float64():
    plain, stepper = both(torch.float64, "joint")
    for step in range(5):
        features, images, mask = batch(step, torch.float64)
        expected = plain.joint_step(features, images, mask)
        told = stepper(step, features, images, mask)
        assert sum(float(told[f"scale{scale}_loss"]) for scale in range(2)) == pytest.approx(expected, abs=1e-9)
        # The plain one moves BatchNorm's running statistics once per scale; nothing in training reads them.
    parameters = dict(stepper.model.named_parameters())
    for name, value in weights_of_plain(plain).items():
        if name in parameters:
            assert (parameters[name] - value).abs().max() < 1e-9, name


def test_gradients_of_a_step_equal_the_plain_ones_in_float32():
    plain, stepper = both(torch.float32)
    features, images, mask = batch(0, torch.float32)
    for scale, maps in enumerate(features):
        plain.optimizer.zero_grad()
        plain.loss(scale, maps, images, mask).backward()
        stepper.model.zero_grad()
        loss, _ = stepper.model.objective(scale, maps, stepper.model.base(images), mask)
        loss.backward()
        theirs = plain.flows[scale].module_list[0].subnet[2].weight.grad
        ours = stepper.model.flows[scale].blocks.module_list[0].subnet.output_weight.grad
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        theirs, ours = plain.network.last.weight.grad, stepper.model.base.last.weight.grad
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        theirs, ours = plain.network.first.weight.grad, stepper.model.base.first.weight.grad
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_bf16_stays_within_its_bounds():
    """Loss within 0.1 %, gradient within 1 % in norm: bf16 keeps 8 bits, and the likelihoods are not in bf16."""
    features, images, mask = batch(0, torch.float32)
    losses, gradients = [], []
    for precision in ("fp32", "bf16"):
        _, stepper = both(torch.float32, "joint", precision=precision)
        told = stepper(0, features, images, mask)
        losses.append(sum(float(told[f"scale{scale}_loss"]) for scale in range(2)))
        gradients.append(torch.cat([p.grad.flatten() for p in stepper.model.flows.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert (gradients[1] - gradients[0]).norm() <= 0.01 * gradients[0].norm()
    assert losses[1] != losses[0]  # bf16 was really used


class RoundToTf32(TorchDispatchMode):
    """Rounds the inputs of every product and convolution to TF32's 10 bits, as tensor cores do."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._overloadpacket in flop_registry:
            args = tree_map(self.round, args)
        return operation(*args, **(kwargs or {}))

    @staticmethod
    def round(value):
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        return ((value.view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)


def test_tf32_stays_within_its_bounds():
    """Loss within 0.02 %, gradient within 0.4 % in norm, with TF32's rounding of inputs emulated on the processor."""
    features, images, mask = batch(0, torch.float32)
    losses, gradients = [], []
    for rounding in (contextlib.nullcontext(), RoundToTf32()):
        _, stepper = both(torch.float32, "joint")
        with rounding:
            values = stepper(0, features, images, mask)
        losses.append(sum(float(values[f"scale{scale}_loss"]) for scale in range(2)))
        gradients.append(torch.cat([p.grad.flatten() for p in stepper.model.flows.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=2e-4)
    assert 0 < (gradients[1] - gradients[0]).norm() <= 0.004 * gradients[0].norm()


def test_tf32_is_allowed_forward_and_backward_and_nowhere_else(monkeypatch):
    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    seen = []
    honest = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (seen.append(allowed()), honest(loss)))
    before = allowed()
    for precision in ("tf32", "fp32"):
        _, stepper = both(torch.float32, "joint", precision=precision)
        hooks = [
            stepper.model.base.first.register_forward_hook(lambda *_: seen.append(allowed())),
            stepper.model.flows[0].register_forward_hook(lambda *_: seen.append(allowed())),
        ]
        with repeatable(seconds_matter=False):
            stepper(0, *batch(0, torch.float32))
        assert seen == [(precision == "tf32",) * 2] * 3
        assert allowed() == before
        seen.clear()
        for hook in hooks:
            hook.remove()
    with autocast("tf32", torch.device("cpu")), autocast("fp32", torch.device("cpu")):
        assert allowed() == (False, False)


def test_a_fixed_base_is_trained_without_a_mask():
    model = AnomalyFlow(CHANNELS, position_channels=POSITION, coupling_blocks=BLOCKS, base="fixed").train()
    optimizer = make_optimizer(model)
    set_learning_rate(optimizer, 5e-3)
    stepper = Stepper(model, optimizer, Guard(torch.device("cpu")), "joint")
    features, images, _ = batch(0, torch.float32)
    losses = [float(stepper(step, features, images, None)["scale0_loss"]) for step in range(30)]
    assert losses[-1] < losses[0]


def test_chunks_take_a_step_each_and_drop_the_remainder():
    model = AnomalyFlow(CHANNELS, position_channels=POSITION, coupling_blocks=1, base="fixed").train()
    optimizer = make_optimizer(model)
    stepper = Stepper(model, optimizer, Guard(torch.device("cpu")), locations_per_step=100)
    features, images, _ = batch(0, torch.float32)
    stepper(0, features, images, None)
    steps = [
        int(optimizer.state[flow.blocks.module_list[0].global_scale]["step"])
        for flow in model.flows
        if flow.blocks.module_list[0].global_scale in optimizer.state
    ]
    # 4 x 8 x 8 = 256 locations give two chunks of 100; 4 x 4 x 4 = 64 give none.
    assert steps == [2]


def test_chunks_see_each_location_with_its_own_position():
    model = AnomalyFlow(CHANNELS[:1], position_channels=POSITION, coupling_blocks=BLOCKS, base="fixed").train()
    stepper = Stepper(model, make_optimizer(model), Guard(torch.device("cpu")), locations_per_step=256)
    features, images, _ = batch(0, torch.float32)
    told = stepper(0, features[:1], images, None)  # one chunk with all locations; the learning rate is 0
    whole, _ = model.objective(0, features[0], model.base(images), None)
    assert float(told["scale0_loss"]) == pytest.approx(whole.item(), rel=1e-6)


def poison(stepper: Stepper) -> tuple[dict, dict]:
    """A step whose features hold an infinity; weights before and after."""
    features, images, mask = batch(1, torch.float32)
    features[0][0, 0, 0, 0] = math.inf
    before = copy.deepcopy(stepper.model.state_dict())
    stepper(1, features, images, mask)
    return before, stepper.model.state_dict()


def test_a_step_without_a_finite_gradient_changes_no_weight_and_is_counted():
    _, stepper = both(torch.float32, "joint")
    stepper(0, *batch(0, torch.float32))
    before, after = poison(stepper)
    for name, value in before.items():
        if not any(part in name for part in ("running", "tracked")):
            assert torch.equal(after[name], value), name
    assert all(value.isfinite().all() for value in after.values())
    assert all(int(state["step"]) == 1 for state in stepper.optimizer.state.values())
    assert (int(stepper.guard.skipped), int(stepper.guard.consecutive)) == (1, 1)
    stepper(2, *batch(2, torch.float32))
    assert (int(stepper.guard.skipped), int(stepper.guard.consecutive)) == (1, 0)


def test_clipping_bounds_the_gradient():
    _, free = both(torch.float32, "joint")
    _, clipped = both(torch.float32, "joint", gradient_clip=0.01)
    for stepper in (free, clipped):
        stepper(0, *batch(0, torch.float32))
    norms = [
        torch.cat([p.grad.flatten() for p in stepper.model.parameters()]).norm().item() for stepper in (free, clipped)
    ]
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_means_leave_out_what_is_not_finite():
    means = Means()
    for value in (1.0, math.nan, 3.0):
        means.add({"scale0_loss": torch.tensor(value)})
    assert means.read() == {"scale0_loss": 2.0}


def test_means_continue_from_a_state():
    means, resumed = Means(), Means()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(math.inf)})
    resumed.load(means.state(), torch.device("cpu"))
    for one in (means, resumed):
        one.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)})
        assert one.read() == {"a": 1.5, "b": 5.0}
    resumed.load(Means().state(), torch.device("cpu"))
    resumed.add({"c": torch.tensor(4.0)})
    assert resumed.read() == {"c": 4.0}


def test_order_depends_on_seed_and_pass_alone():
    images_NHW3 = np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)
    batches = Batches(images_NHW3, batch_size=4, seed=5)
    assert batches.per_pass == 2
    assert sorted(batches.order(0)) == list(range(10))
    assert list(batches.order(0)) != list(batches.order(1))
    ahead = [batch.images_BHW3 for batch in batches.ahead(1, 4)]
    again = [Batches(images_NHW3, batch_size=4, seed=5).batch(step).images_BHW3 for step in (1, 2, 3)]
    assert all(torch.equal(one, two) for one, two in zip(ahead, again, strict=True))
    assert torch.equal(ahead[0], torch.from_numpy(images_NHW3[batches.order(0)[4:8]]))


def test_an_error_while_a_batch_is_made_reaches_the_training():
    class Broken:
        def __len__(self):
            return 8

        def __getitem__(self, chosen):
            raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        list(Batches(Broken(), batch_size=4, seed=0).ahead(0, 2))


def test_rotation_turns_counter_clockwise():
    image = torch.zeros(1, 3, 5, 5)
    image[..., 0, 2] = 1  # top middle
    assert rotated(image, [90.0])[0, 0].nonzero().tolist() == [[2, 0]]  # left middle
    assert torch.equal(rotated(image, [0.0]), image)
    corners = rotated(torch.ones(1, 3, 5, 5), [45.0])
    assert corners[0, 0, 0, 0] == 0  # nothing there: black


def test_device_and_precision(caplog):
    assert choose_device("cpu") == torch.device("cpu")
    cpu = torch.device("cpu")
    assert usable_precision("fp32", cpu) == "fp32"
    assert usable_precision("bf16", cpu) == ("bf16" if multiplies_bf16(cpu) else "fp32")
    assert usable_precision("tf32", cpu) == "fp32"
    assert "This cpu has no tf32 matrix instructions, so `precision: tf32` is computed in fp32 here." in caplog.text
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="Expected a GPU, because device is cuda"):
            choose_device("cuda")


@pytest.mark.parametrize("instructions", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_bf16_is_used_where_the_processor_has_instructions_for_it(monkeypatch, instructions):
    cpu = torch.device("cpu")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        # Fails if a version of torch has lost the name: bf16 would be left unused from then on.
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions)
    assert usable_precision("bf16", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, instructions, lambda: False)
    assert usable_precision("bf16", cpu) == "fp32"


def test_a_loss_of_hand():
    assert float(loss_of(torch.zeros(3), channels=8)) == pytest.approx(math.log(2))


# From here on whole trainings, of a small model on a small data set.


@pytest.fixture(scope="module")
def train_small(tmp_path_factory):
    return SmallTraining(tmp_path_factory.mktemp("training"))


def test_training_writes_history_and_cost(train_small):
    outputs = train_small(epochs=3, keep_every=2)
    record = json.loads(outputs.record.read_text())
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3]
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert {"scale0_loss", "scale0_log_prob", "scale0_log_det", "scale0_divergence", "scale0_two_class"} <= set(
        record["history"][0]
    )
    assert record["attempts"] == 1
    assert record["steps"] == 3 * 3
    assert record["images_per_second"] > 0
    assert record["peak_memory_bytes"] > 1e6
    assert record["checkpoint_bytes"] == outputs.checkpoint.stat().st_size
    assert set(record["seconds"]) == {"setup", "waiting_for_data", "steps", "saving", "total"}
    assert [path.name for path in sorted(outputs.kept.iterdir())] == ["epoch02.pt"]
    kept = torch.load(outputs.kept / "epoch02.pt", weights_only=True)
    assert len(kept["history"]) == 2
    assert kept["provenance"]["epoch"] == 2


class Recorder(Tracker):
    """Keep what a training logs."""

    def __init__(self):
        self.records = []

    def log(self, record):
        self.records.append(copy.deepcopy(dict(record)))


def test_a_training_logs_what_its_train_json_will_hold(train_small):
    recorder = Recorder()
    outputs = train_small(epochs=2, tracker=recorder)
    record = json.loads(outputs.record.read_text())
    first, *_, last = recorder.records
    assert {"job", "digests", "versions"} <= set(first)
    assert record["job"]["settings"]["epochs"] == 2
    assert [len(one.get("history", [])) for one in recorder.records] == [0, 0, 1, 2, 2]
    assert json.loads(json.dumps(last)) == record
    for early in recorder.records:
        changed = {key for key, value in early.items() if key != "history" and last[key] != value}
        assert changed == set(), "what was logged before is in train.json too"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "cflow", "batch_size": 4, "locations_per_step": 4, "position_channels": 8, "update": "per_scale"},
        {"method": "cflow-matched"},
        {"update": "per_scale", "precision": "bf16"},
        {"normalize_features": True, "gradient_clip": 1.0, "input_size": [16, 24]},
    ],
    ids=["cflow", "cflow-matched", "per_scale", "normalised"],
)
def test_every_method_trains(train_small, changes):
    outputs = train_small(epochs=1, warmup_epochs=0.5, **changes)
    history = json.loads(outputs.record.read_text())["history"]
    assert math.isfinite(history[0]["loss"])
    if changes.get("normalize_features"):
        scales = torch.load(outputs.checkpoint, weights_only=True)["provenance"]["encoder"]["feature_scales"]
        assert len(scales) == 3
        assert all(scale > 0 for scale in scales)


def test_same_seed_same_weights_other_seed_others(train_small):
    weights = [
        torch.load(train_small(epochs=1, warmup_epochs=0.5, seed=seed).checkpoint, weights_only=True)["state"]
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_divergence_stops_the_training_and_keeps_the_state(train_small, monkeypatch):
    from sanflow.encoders import Encoder

    honest, calls = Encoder.forward, []

    def forward(self, images):
        calls.append(1)
        features = honest(self, images)
        return features if len(calls) <= 4 else [maps * math.inf for maps in features]

    monkeypatch.setattr(Encoder, "forward", forward)
    with pytest.raises(TrainingError, match=r"Expected a finite loss and gradient, but the last \d+ batches"):
        train_small(epochs=4, save_every_seconds=0.0)
    states = list(train_small.outputs.state.glob("*.step*.pt"))
    assert len(states) == 1
    state = torch.load(states[0], weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("scale", [0, 2], ids=["first", "last"])
def test_one_bad_scale_among_good_ones_is_a_divergence(train_small, monkeypatch, scale):
    from sanflow.encoders import Encoder

    honest, calls = Encoder.forward, []

    def forward(self, images):
        calls.append(1)
        features = honest(self, images)
        return [maps * math.inf if i == scale and len(calls) > 4 else maps for i, maps in enumerate(features)]

    monkeypatch.setattr(Encoder, "forward", forward)
    with pytest.raises(TrainingError, match=r"the last \d+ batches of small .* The state before them is kept"):
        train_small(epochs=4, save_every_seconds=0.0, update="per_scale")
    (path,) = train_small.outputs.state.glob("*.step*.pt")
    assert torch.load(path, weights_only=True)["step"] == 4


def test_a_scale_with_fewer_locations_than_a_step_takes_is_refused(train_small):
    changes = {"method": "cflow", "batch_size": 4, "position_channels": 8, "update": "per_scale"}
    with pytest.raises(
        ConfigError, match=r"\(12\) locations per batch at each scale, but scale 2 has 4 x 1 x 1.*to at least 12"
    ):
        train_small(**changes, locations_per_step=12)


@pytest.mark.parametrize("wish", ["gpu", "cuda:1", "CUDA"])
def test_an_unknown_device_is_refused(wish):
    with pytest.raises(ConfigError, match=f"Expected the device auto, cuda or cpu, but got '{wish}'"):
        choose_device(wish)


def test_batches_that_fail_while_nobody_takes_them_do_not_block_the_end():
    class Failing(Batches):
        def batch(self, step):
            if step == 3:
                raise OSError("a disk went away")
            return super().batch(step)

    batches = Failing(np.zeros((4, 2, 2, 3), np.uint8), batch_size=2, seed=0)
    ahead = batches.ahead(0, 9)
    assert next(ahead).step == 0
    time.sleep(0.3)  # the queue is full, and the thread has met the error
    ahead.close()
    with pytest.raises(OSError, match="a disk went away"):
        list(batches.ahead(0, 9))


def test_too_few_images_for_a_batch_are_refused(train_small):
    with pytest.raises(ConfigError, match="Expected at least as many training images as a batch holds"):
        train_small(batch_size=64)
