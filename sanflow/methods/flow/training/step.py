"""Update the weights with one batch, in one of three ways, without waiting for the device.

Shapes: B images, C channels of a scale, N locations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sanflow.device import Precision, autocast, tf32
from sanflow.methods.flow.distributions import UnitVariance
from sanflow.methods.flow.losses import Terms
from sanflow.methods.flow.model import AnomalyFlow
from sanflow.methods.flow.random_streams import Stream, random_of
from sanflow.methods.flow.training.replay import Replayed, side_by_side

Update = Literal["per_scale", "joint"]
Named = dict[str, Tensor]


class Guard:
    """Counts batches with an update whose loss or gradient is not finite, on the device; the optimizer skips those.

    Attributes:
        skipped: Such batches since the start, a scalar on the device.
        consecutive: Such batches since the last good one.
    """

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), device=device)
        self.consecutive = torch.zeros((), device=device)
        self._batch = torch.zeros((), device=device)

    # All in place: a CUDA graph knows tensors by their address.
    def note(self, bad: Tensor) -> None:
        """Note one update of a batch.

        Arguments:
            bad: 1 if it was skipped, else 0; a scalar on the device.
        """
        torch.maximum(self._batch, bad, out=self._batch)

    def end_batch(self) -> None:
        """Count a batch once: a good scale must not hide one that never has a finite loss."""
        self.skipped.add_(self._batch)
        self.consecutive.add_(1).mul_(self._batch)
        self._batch.zero_()

    def state(self) -> Named:
        """Return what a saved state holds of it."""
        return {"skipped": self.skipped, "consecutive": self.consecutive}

    def load(self, state: Named) -> None:
        """Take over a saved state."""
        self.skipped.copy_(state["skipped"])
        self.consecutive.copy_(state["consecutive"])


@dataclass
class Stepper:
    """Updates a model and its optimizer with a batch.

    Arguments:
        model: In training mode.
        optimizer: Of all its parameters, from `make_optimizer`.
        guard: Counts what is skipped.
        update: `per_scale` (a step per scale, as released) or `joint` (one for the sum).
        precision: Of matrix products and convolutions.
        gradient_clip: Largest norm of a step's gradient; None for any.
        locations_per_step: A step per so many shuffled locations of a scale; None for all in one.
        seed: Of the run, for the shuffling.
        cuda_graphs: On a GPU, replay chunks as CUDA graphs and run independent parts of a step beside each other.
    """

    model: AnomalyFlow
    optimizer: torch.optim.Adam
    guard: Guard
    update: Update = "per_scale"
    precision: Precision = "fp32"
    gradient_clip: float | None = None
    locations_per_step: int | None = None
    seed: int = 0
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        self._parameters = list(self.model.parameters())
        n_scales = len(self.model.flows)
        # For the base and the flows, because most of their kernels do not fill a GPU. A backward pass uses the streams
        # of its forward pass.
        self._streams = [torch.cuda.Stream() for _ in range(1 + n_scales)] if self.cuda_graphs else []
        self._chunk_steps: list[Callable[..., Named]] = [partial(self._chunk_step, scale) for scale in range(n_scales)]
        if self.cuda_graphs and self.locations_per_step is not None:
            self._chunk_steps = [Replayed(step, "a step over some locations") for step in self._chunk_steps]

    def __call__(self, step: int, features: Sequence[Tensor], images_B3HW: Tensor, mask_B1HW: Tensor | None) -> Named:
        """Train one batch.

        Arguments:
            step: Counted from the start of the training.
            features: The encoder's features_BCHW of each scale.
            images_B3HW: What they come from.
            mask_B1HW: Synthetic anomalies; None if the experiment has none.

        Returns:
            Loss and terms of each scale under names such as `scale0_loss`, scalars on the device, detached.
        """
        if self.locations_per_step is not None:
            values = self._in_chunks(step, features, self.locations_per_step)
        elif self.update == "joint":
            values = self._joint(features, images_B3HW, mask_B1HW)
        else:
            values = self._per_scale(features, images_B3HW, mask_B1HW)
        self.guard.end_batch()
        return values

    def _per_scale(self, features: Sequence[Tensor], images_B3HW: Tensor, mask_B1HW: Tensor | None) -> Named:
        values: Named = {}
        latents = None
        if self._streams:
            # A scale's step leaves the other flows as they are. On a CPU they take turns, which needs less memory.
            with autocast(self.precision, images_B3HW.device):
                latents = side_by_side(self._flows(features), self._streams[1:])
        for scale, features_BCHW in enumerate(features):
            # As released, the statistics network sees the batch once for each scale, its weights moved in between.
            with autocast(self.precision, images_B3HW.device):
                base = self.model.base_for(images_B3HW, features_BCHW)
                z_NC, log_det_N = self.model.latents(scale, features_BCHW) if latents is None else latents[scale]
                loss, terms = self.model.objective_of(z_NC, log_det_N, features_BCHW.shape[-2:], base, mask_B1HW)
            self._descend(loss)
            values |= _named(scale, loss, terms)
        return values

    def _joint(self, features: Sequence[Tensor], images_B3HW: Tensor, mask_B1HW: Tensor | None) -> Named:
        values: Named = {}
        total = torch.zeros((), device=images_B3HW.device, dtype=images_B3HW.dtype)
        make_base: Callable[[], Any] = partial(self.model.base_for, images_B3HW, *features)
        with autocast(self.precision, images_B3HW.device):
            base, *latents = side_by_side([make_base, *self._flows(features)], self._streams)
            objectives = [
                partial(self.model.objective_of, z_NC, log_det_N, features_BCHW.shape[-2:], base, mask_B1HW)
                for (z_NC, log_det_N), features_BCHW in zip(latents, features, strict=True)
            ]
            for scale, (loss, terms) in enumerate(side_by_side(objectives, self._streams[1:])):
                total = total + loss
                values |= _named(scale, loss, terms)
        self._descend(total)
        return values

    def _flows(self, features: Sequence[Tensor]) -> list[Callable[[], tuple[Tensor, Tensor]]]:
        # Before streams part: two scales of one grid share their position code.
        locations = [self.model.locations(features_BCHW) for features_BCHW in features]
        return [partial(self.model.flows[scale], *found) for scale, found in enumerate(locations)]

    def _in_chunks(self, step: int, features: Sequence[Tensor], chunk: int) -> Named:
        values: Named = {}
        for scale, features_BCHW in enumerate(features):
            features_NC, condition_MP = self.model.locations(features_BCHW)
            n_locations, n_cells = len(features_NC), len(condition_MP)
            random = random_of(self.seed, Stream.LOCATIONS, step * len(features) + scale)
            order_N = torch.from_numpy(random.permutation(n_locations)).to(features_NC.device, non_blocking=True)
            n_shuffled = n_locations - n_locations % chunk  # the remainder is dropped
            if n_shuffled == 0:
                continue
            shuffled_NC = features_NC[order_N[:n_shuffled]]
            codes_NP = condition_MP[order_N[:n_shuffled] % n_cells]
            named: Named = {}
            stacked: list[Tensor] = []
            for chunk_NC, code_NP in zip(shuffled_NC.split(chunk), codes_NP.split(chunk), strict=True):
                named = self._chunk_steps[scale](chunk_NC, code_NP)
                stacked.append(torch.stack(list(named.values())))
            values |= dict(zip(named, torch.stack(stacked).mean(dim=0), strict=True))
        return values

    def _chunk_step(self, scale: int, chunk_NC: Tensor, code_NP: Tensor) -> Named:
        with autocast(self.precision, chunk_NC.device):
            # Only methods whose base is fixed train in chunks.
            loss, terms = self.model.objective_at(scale, chunk_NC, code_NP, UnitVariance())
        self._descend(loss)
        return _named(scale, loss, terms)

    def _descend(self, loss: Tensor) -> None:
        """Run backward and one step of Adam; on the device, skip it if the loss or a gradient is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        with tf32(self.precision == "tf32"):
            loss.backward()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        bad = (~(norm.isfinite() & loss.detach().isfinite())).float()
        if self.gradient_clip is not None:
            factor = (self.gradient_clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        # The fused Adam leaves weights, moments and step counts as they are where `found_inf` is 1.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.guard.note(bad)


def make_optimizer(model: nn.Module) -> torch.optim.Adam:
    """Make Adam over all weights, fused: one pass over the memory, and steps can be skipped without a transfer.

    The learning rate is set for every batch. On a GPU it is a number on the device, which a CUDA graph reads.
    """
    parameters = list(model.parameters())
    on_gpu = parameters[0].is_cuda
    optimizer = torch.optim.Adam(parameters, lr=0.0, fused=True, capturable=on_gpu)
    if on_gpu:
        # Afterwards: its constructor would read the number back.
        optimizer.param_groups[0]["lr"] = torch.zeros((), device=parameters[0].device)
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over saved moments and counts of steps; the settings stay those of this device."""
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def _named(scale: int, loss: Tensor, terms: Terms) -> Named:
    return {f"scale{scale}_loss": loss.detach(), **{f"scale{scale}_{name}": value for name, value in terms.items()}}


class Means:
    """Means over the batches of an epoch, summed on the device in one stacked tensor.

    A sum per value would take five small operations for each of a step's fifteen values.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums = self._counts = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Named) -> None:
        """Count one batch; a value that is not finite is left out.

        Arguments:
            values: Scalars of one device, under the same names in every batch of an epoch.
        """
        if not self._names:
            self._names = list(values)
            device = next(iter(values.values())).device
            self._sums = torch.zeros(len(values), dtype=torch.float64, device=device)
            self._counts = torch.zeros_like(self._sums)
        stacked = torch.stack([values[name] for name in self._names])
        self._sums += stacked.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self._counts += stacked.isfinite()

    def read(self) -> dict[str, float]:
        """Return the means; waits for the device."""
        return dict(zip(self._names, (self._sums / self._counts).tolist(), strict=True))

    def clear(self) -> None:
        """Begin the next epoch."""
        self._names = []
        self._sums = self._counts = torch.zeros(0, dtype=torch.float64)

    def state(self) -> dict[str, Named]:
        """Return what a saved state holds of it."""
        return {
            "sums": dict(zip(self._names, self._sums, strict=True)),
            "counts": dict(zip(self._names, self._counts, strict=True)),
        }

    def load(self, state: dict[str, Named], device: torch.device) -> None:
        """Take over a saved state."""
        self._names = list(state["sums"])
        if self._names:
            self._sums = torch.stack(list(state["sums"].values())).to(device)
            self._counts = torch.stack(list(state["counts"].values())).to(device)


def total_loss(means: dict[str, float]) -> float:
    """Sum the losses of all scales."""
    return sum(value for name, value in means.items() if name.endswith("_loss"))
