"""Find the memory that a training step and a batch of scoring need, without computing either.

Torch's fake tensors have shapes and storages but no numbers, so a table for large images takes seconds and no memory.
What a GPU's libraries and allocator need comes on top, and so does what the process itself needs (about 1 GiB).

Shapes: B images, H x W pixels.
"""

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanflow.config.strict import validated
from sanflow.device import MEMORY_FORMAT, autocast, placed
from sanflow.encoders import Encoder, build_encoder
from sanflow.methods.flow.coupling_flow import position_condition
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.settings import SanflowExperiment
from sanflow.methods.flow.training.step import Guard, Stepper, make_optimizer

CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, while open.

    Example:
        >>> with LiveBytes() as counted:
        ...     ones = torch.ones(256)
        ...     total = (ones + ones).sum()
        >>> counted.live, counted.peak
        (1028, 2052)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def note(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        address, n_bytes = storage._cdata, storage.nbytes()
        if address in self._storages:
            return
        self._storages.add(address)
        self.live += n_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, n_bytes)

    def _forget(self, address: int, n_bytes: int) -> None:
        self._storages.discard(address)
        self.live -= n_bytes

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value)
        return result


def bench_memory(
    *, encoder: str, input_size: int, batch_size: int, precision: str, update: str, position_channels: int = 512
) -> dict[str, Any]:
    """Find the peak of a training step and of a batch of scoring.

    Arguments:
        encoder: As in an experiment; its weights are random.
        input_size: Height and width.
        batch_size: Images per step, and per batch of scoring.
        precision: `fp32`, `tf32` or `bf16`.
        update: `per_scale` or `joint`.
        position_channels: Of the position code.

    Returns:
        Bytes of the weights (encoder and model) and of all tensors at the peak of training and of scoring.
    """
    settings = {
        "method": "sanflow",
        "encoder": encoder,
        "weights": "random",
        "input_size": input_size,
        "batch_size": batch_size,
        "precision": precision,
        "update": update,
        "position_channels": position_channels,
    }
    experiment = validated(SanflowExperiment, settings, "What is to be measured")
    network = placed(build_encoder(encoder, weights="random"), CPU)
    model = placed(AnomalyFlow.from_experiment(network.channels, experiment, seed=0), CPU)
    weights = sum(tensor.nbytes for part in (network, model) for tensor in (*part.parameters(), *part.buffers()))
    return {
        **{name: settings[name] for name in ("encoder", "input_size", "batch_size", "precision", "update")},
        "weights_bytes": weights,
        "train_bytes": _peak(experiment, network, model, training=True),
        "score_bytes": _peak(experiment, network, model, training=False),
    }


def _peak(experiment: SanflowExperiment, network: Encoder, model: AnomalyFlow, *, training: bool) -> int:
    # A position code of another mode's tensors must not be found in the cache, neither here nor afterwards.
    position_condition.cache_clear()
    mode = FakeTensorMode()
    network, model = (_fake(copy.deepcopy(part), mode) for part in (network, model.train(training)))
    try:
        with mode, LiveBytes() as counted:
            for part in (network, model):
                for tensor in (*part.parameters(), *part.buffers()):
                    counted.note(tensor)
            stepper = Stepper(model, make_optimizer(model), Guard(CPU), experiment.update, experiment.precision)
            # The optimizer's moments are made in the first step, and are there in the second one from its beginning.
            for step in range(2):
                _batch(experiment, network, model, stepper if training else None, step)
        return counted.peak
    finally:
        position_condition.cache_clear()


def _batch(
    experiment: SanflowExperiment, network: Encoder, model: AnomalyFlow, stepper: Stepper | None, step: int
) -> None:
    height, width = experiment.input_size_for("", "")
    images_B3HW = torch.empty(experiment.batch_size, 3, height, width).contiguous(memory_format=MEMORY_FORMAT)
    with torch.set_grad_enabled(stepper is not None), autocast(experiment.precision, CPU):
        features = network(images_B3HW)
        if stepper is None:
            model.score(features, images_B3HW, 1)
    if stepper is not None:
        stepper(step, features, images_B3HW, torch.empty_like(images_B3HW[:, :1]))


def _fake(network: nn.Module, mode: FakeTensorMode) -> Any:
    """Replace the tensors of a network by fake ones."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
            module.register_parameter(name, fake)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))
    return network
