"""Give a fitted detector held-out scores: those of its own held-out parts, or of new good parts."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sanflow.data.images import ImageCache, load_images
from sanflow.data.index import Index
from sanflow.data.parts import PART, part_name, parts_of
from sanflow.errors import ConfigError
from sanflow.evaluation.conformal import differs, number_of_parts, one_per_part
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
    if PART in held_out.test:
        found["parts"] = parts_of(held_out.test).tolist()
    save_checkpoint(checkpoint, dataclasses.replace(detector.checkpoint, held_out=found))


def calibrate_on_files(
    checkpoint: Path, files: Sequence[Path], output: Path, *, device: str, part_pattern: str | None = None
) -> tuple[int, float | None]:
    """Replace the held-out scores of a detector by those of new good parts.

    Arguments:
        checkpoint: The fitted detector.
        files: Images of good parts that it was not fitted on.
        output: Checkpoint to write; may be the same file.
        device: `auto`, `cuda` or `cpu`.
        part_pattern: Names the part that an image shows by its path, see `sanflow.data.parts.part_name`; None: each
            shows another one.

    Raises:
        ConfigError: If the pattern is not a regular expression, or an image does not match it.

    Returns:
        Number of parts, and the p-value of the test that their scores are from the same distribution as the old ones;
        None where there were none.
    """
    parts = None if part_pattern is None else _parts(files, part_pattern)
    detector = load_detector(checkpoint, device)
    found = calibrate(detector, batches_of(detector, files)) | {"from": "sanflow calibrate"}
    scores = np.asarray(found["scores"])
    if parts is not None:
        found["parts"] = parts.tolist()
    save_checkpoint(output, dataclasses.replace(detector.checkpoint, held_out=found))
    if detector.held_out is None:
        return number_of_parts(scores, parts), None
    old = one_per_part(detector.held_out, detector.held_out_parts)
    return number_of_parts(scores, parts), differs(old, one_per_part(scores, parts))


def _parts(files: Sequence[Path], pattern: str) -> np.ndarray:
    try:
        names = [part_name(file.as_posix(), pattern) for file in files]
    except re.error as error:
        raise ConfigError(f"Expected a regular expression as part pattern, but got {pattern!r}: {error}.") from error
    for file, name in zip(files, names, strict=True):
        if not name:
            raise ConfigError(f"Expected all images to match the part pattern {pattern!r}, but {file} does not.")
    return np.array(names)
