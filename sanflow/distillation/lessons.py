"""What the student sees at each step: new crops, then the same ones again in other company.

A teacher's features cost about as much as a step of the student. So crops and targets are kept for a few passes: the
first pass of a lesson makes its batches, the later ones draw from them at random.

Shapes: B images, C channels, K target channels, H rows, W columns.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sanflow.distillation.crops import Crops

Targets = Callable[[Tensor], list[Tensor]]


class Lessons:
    """Batches of crops with their targets, a function of the step alone.

    Arguments:
        crops: Where batches come from.
        targets: Gives a batch's target maps, one per scale.
        batch_size: B.
        n_batches: New batches in a lesson.
        passes: How often each crop is seen.
    """

    def __init__(self, crops: Crops, targets: Targets, batch_size: int, n_batches: int, passes: int) -> None:
        self.crops = crops
        self.targets = targets
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.passes = passes
        self._number = -1
        self._kept: list[tuple[Tensor, list[Tensor]]] = []

    def batch(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [0, 1] and target maps (B, K, h, w) of one step.

        Steps in order are cheap; a jump, as after a resumed run, first makes the lesson's batches so far.
        """
        number, within = divmod(step, self.n_batches * self.passes)
        if number != self._number:
            self._number, self._kept = number, []
        while len(self._kept) < min(within + 1, self.n_batches):
            images_BCHW = self.crops.batch(number * self.n_batches + len(self._kept), self.batch_size)
            self._kept.append((images_BCHW, self.targets(images_BCHW)))
        if within < self.n_batches:
            return self._kept[within]
        epoch, position = divmod(within, self.n_batches)
        order = np.random.default_rng([self.crops.seed, number, epoch]).permutation(self.n_batches * self.batch_size)
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        samples = [(self._kept[index // self.batch_size], int(index % self.batch_size)) for index in chosen]
        images_BCHW = torch.stack([images[i] for (images, _), i in samples])
        scales = range(len(self._kept[0][1]))
        return images_BCHW, [torch.stack([maps[scale][i] for (_, maps), i in samples]) for scale in scales]
