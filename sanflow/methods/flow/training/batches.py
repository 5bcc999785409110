"""The order of the training images and their batches, which a thread makes ahead of the training.

The images of a step, and their order, follow from the seed and the step alone. So a training that resumes from
a state needs no generator's state, and batches that were made ahead and never used change nothing.

Shapes: B images, H x W pixels, 3 channels last; n images that texture is taken from.
"""

import contextlib
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from sanflow.methods.flow.random_streams import Stream, random_of
from sanflow.methods.flow.synthetic_anomalies import Drawing, SyntheticAnomalies


@dataclass
class Batch:
    """What one step needs, in host memory.

    Arguments:
        step: Counted from the start of the training.
        images_BHW3: Normal images, uint8.
        foreign_nHW3: Images that texture is taken from, uint8; None if there is none.
        drawing: The synthetic anomalies; None if the experiment has none.
        angles: Rotation of each image in degrees; None if the experiment has none.
    """

    step: int
    images_BHW3: Tensor
    foreign_nHW3: Tensor | None = None
    drawing: Drawing | None = None
    angles: list[float] | None = None


class Batches:
    """The batches of a training, by step.

    Arguments:
        images_NHW3: All training images, uint8.
        foreign_NHW3: The same at the size that texture is cropped from; None without synthetic anomalies.
        batch_size: Images per batch; the last incomplete batch of a pass is dropped.
        seed: Of the run.
        anomalies: Draws the synthetic anomalies; None for none.
        rotation_degrees: Images are rotated by up to this angle.
        pin: Put batches into page-locked memory, from which a GPU copies without waiting.
    """

    def __init__(
        self,
        images_NHW3: ndarray,
        foreign_NHW3: ndarray | None = None,
        *,
        batch_size: int,
        seed: int,
        anomalies: SyntheticAnomalies | None = None,
        rotation_degrees: float = 0.0,
        pin: bool = False,
    ) -> None:
        self._images_NHW3, self._foreign_NHW3 = images_NHW3, foreign_NHW3
        self._batch_size, self._seed, self._pin = batch_size, seed, pin
        self._anomalies, self._rotation_degrees = anomalies, rotation_degrees

    @property
    def per_pass(self) -> int:
        """Batches in one pass over the images."""
        return len(self._images_NHW3) // self._batch_size

    def order(self, pass_: int) -> ndarray:
        """Return the images of a pass, (N,), shuffled."""
        return random_of(self._seed, Stream.ORDER, pass_).permutation(len(self._images_NHW3))

    def batch(self, step: int) -> Batch:
        """Make the batch of a step."""
        pass_, place = divmod(step, self.per_pass)
        chosen_B = self.order(pass_)[place * self._batch_size : (place + 1) * self._batch_size]
        batch = Batch(step, self._tensor(self._images_NHW3, chosen_B))
        if self._anomalies is not None and self._foreign_NHW3 is not None:
            batch.drawing = self._anomalies.draw(step, self._batch_size)
            if batch.drawing.foreign:
                batch.foreign_nHW3 = self._tensor(self._foreign_NHW3, np.asarray(batch.drawing.foreign))
        if self._rotation_degrees:
            random = random_of(self._seed, Stream.ROTATION, step)
            batch.angles = list(random.uniform(-1, 1, size=self._batch_size) * self._rotation_degrees)
        return batch

    def _tensor(self, images_NHW3: ndarray, chosen: ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(images_NHW3[chosen]))
        return tensor.pin_memory() if self._pin else tensor

    def ahead(self, first: int, last: int, depth: int = 2) -> Generator[Batch]:
        """Yield the batches of the steps from `first` to before `last`; a thread makes each during the step before it.

        Arguments:
            first: First step.
            last: The step after the last one.
            depth: How many batches may wait.
        """
        waiting: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        closed = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    waiting.put(item, timeout=0.1)
                    return

        def make() -> None:
            try:
                for step in range(first, last):
                    put(self.batch(step))
                    if closed.is_set():
                        return
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=make, name="sanflow-batches", daemon=True)
        thread.start()
        try:
            for _ in range(first, last):
                item = waiting.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()
