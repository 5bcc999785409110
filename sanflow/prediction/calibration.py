"""Give a fitted detector held-out scores: those of its own held-out parts, or of new good parts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sanflow.data.images import ImageCache, load_images
from sanflow.data.index import Index
from sanflow.evaluation.conformal import differs
from sanflow.methods.checkpoints import save_checkpoint
from sanflow.prediction.detector import calibrate, load_detector
from sanflow.prediction.predict import batches_of

BATCH_SIZE = 8
# Of the test whether new held-out scores are from another distribution than the old ones.
NOTABLE_P = 0.01


def calibrate_on_held_out(checkpoint: Path, held_out: Index, *, device: str, cache: ImageCache | None) -> None:
    """Score the held-out parts of a fit, read as test images are, and keep the scores in its checkpoint.

    Arguments:
        checkpoint: Written by the fit; it is written again.
        held_out: The held-out parts as test images.
        device: `auto`, `cuda` or `cpu`.
        cache: The image cache; None decodes into memory.
    """
    detector = load_detector(checkpoint, device)
    images_NHW3 = load_images(held_out, "test", detector.input_size, cache=cache)
    parts = (np.asarray(images_NHW3[i : i + BATCH_SIZE]) for i in range(0, len(images_NHW3), BATCH_SIZE))
    found = calibrate(detector, parts) | {"from": "held out of the training images"}
    save_checkpoint(checkpoint, dataclasses.replace(detector.checkpoint, held_out=found))


def calibrate_on_files(
    checkpoint: Path, files: Sequence[Path], output: Path, *, device: str
) -> tuple[int, float | None]:
    """Replace the held-out scores of a detector by those of new good parts.

    Arguments:
        checkpoint: The fitted detector.
        files: Images of good parts that it was not fitted on.
        output: Checkpoint to write; may be the same file.
        device: `auto`, `cuda` or `cpu`.

    Returns:
        Number of parts, and the p-value of the test that their scores are from the same distribution as the old ones;
        None where there were none.
    """
    detector = load_detector(checkpoint, device)
    found = calibrate(detector, batches_of(detector, files)) | {"from": "sanflow calibrate"}
    save_checkpoint(output, dataclasses.replace(detector.checkpoint, held_out=found))
    old = detector.held_out
    return len(files), None if old is None else differs(old, np.asarray(found["scores"]))
