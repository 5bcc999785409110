"""Train a batch, from bytes in host memory to new weights."""

import torch
from torch import Tensor

from sanflow.cores import on_own_core
from sanflow.device import autocast
from sanflow.encoders import Encoder
from sanflow.methods.flow.synthetic_anomalies import SyntheticAnomalies
from sanflow.methods.flow.training.batches import Batch
from sanflow.methods.flow.training.pixels import prepare
from sanflow.methods.flow.training.replay import Replayed
from sanflow.methods.flow.training.step import Named, Stepper


class Learner:
    """Prepares images, computes their features, updates the weights.

    On a GPU the first two run beside the step of the batch before: they do not need the weights that it changes.

    Arguments:
        encoder: Frozen.
        anomalies: Paints the synthetic anomalies; None if the experiment has none.
        stepper: Updates the model; whether it uses CUDA graphs decides for the whole.
    """

    def __init__(self, encoder: Encoder, anomalies: SyntheticAnomalies | None, stepper: Stepper) -> None:
        self._encoder, self._anomalies, self._stepper = encoder, anomalies, stepper
        self._device = next(stepper.model.parameters()).device
        self._replayed: Replayed[Named] | None = None
        # Chunks depend on the step; the stepper has a graph for those of a scale.
        if stepper.cuda_graphs and stepper.locations_per_step is None:
            self._stream = torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())  # which moved the encoder to the GPU
            self._replayed_features = Replayed(self.features, "the encoder")
            self._replayed = Replayed(self._update, "a training step")

    def __call__(self, batch: Batch) -> Named:
        """Train a batch.

        Returns:
            Losses and terms of each scale, as `Stepper` returns them; the next call may overwrite them.

        Raises:
            DeviceError: If a step cannot be captured as a CUDA graph.
        """
        if self._replayed is None:
            with on_own_core(self._device):
                return self.one_by_one(batch)
        present = torch.cuda.current_stream()
        self._stream.wait_event(self._replayed.has_read)
        with torch.cuda.stream(self._stream):
            images_B3HW, mask_B1HW = self.images(batch)
            features = self._replayed_features(images_B3HW)
        present.wait_stream(self._stream)
        return self._replayed(images_B3HW, mask_B1HW, *features)

    def one_by_one(self, batch: Batch) -> Named:
        """Train a batch without graphs of encoder and step, and nothing ahead."""
        images_B3HW, mask_B1HW = self.images(batch)
        return self._stepper(batch.step, self.features(images_B3HW), images_B3HW, mask_B1HW)

    def images(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return images_B3HW as the encoder sees them, and mask_B1HW of the synthetic anomalies."""
        return prepare(batch, self._anomalies, self._encoder, device=self._device)

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """Compute features_BCHW of each scale."""
        with autocast(self._stepper.precision, self._device):
            found: list[Tensor] = self._encoder(images_B3HW)
        return found

    def _update(self, images_B3HW: Tensor, mask_B1HW: Tensor | None, *features: Tensor) -> Named:
        return self._stepper(0, features, images_B3HW, mask_B1HW)
