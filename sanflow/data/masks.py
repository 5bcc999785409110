"""Read one mask: which pixels of an image are defective.

A mask is named by a reference relative to the data set's top folder:
- a file,
- a folder, whose files are joined (MVTec LOCO has several masks per image), or
- `<file>.npy/<frame>`, one frame of an array (frames, height, width). No file can have that path.

Shapes: H height, W width.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image

from sanflow.data.decode import DAMAGE, read_bytes
from sanflow.errors import DataError


@dataclass(frozen=True)
class Mask:
    """A mask at its own resolution.

    Arguments:
        defect_HW: (H, W) bool, True where defective.
        sha256: Digest of the bytes of its files, or of its frame.
    """

    defect_HW: ndarray
    sha256: str


def read_mask(root: Path, reference: str, above: int = 0) -> Mask:
    """Read a mask; each of its files is read once.

    Arguments:
        root: The data set's top folder.
        reference: See the top of this file.
        above: A pixel is defective above this grey value.

    Raises:
        DataError: If a file is missing or damaged, or joined masks differ in size.
    """
    path = root / reference
    if path.parent.suffix == ".npy" and path.parent.is_file():
        frame_HW = _array_frame(path.parent, path.name)
        return Mask(np.asarray(frame_HW > above), hashlib.sha256(frame_HW.tobytes()).hexdigest())
    digest, parts = hashlib.sha256(), []
    for file in mask_files(path) if path.is_dir() else [path]:
        data = read_bytes(file, "a mask")
        digest.update(data)
        parts.append(_decode(data, file, above))
    if not parts or any(part.shape != parts[0].shape for part in parts):
        raise DataError(f"Expected masks of one size in {path}, but got {[part.shape for part in parts]}.")
    return Mask(np.logical_or.reduce(parts), digest.hexdigest())


def mask_files(folder: Path) -> list[Path]:
    """List the files of a mask that consists of several."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _decode(data: bytes, path: Path, above: int) -> ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Palette and bilevel masks hold class numbers or flags: any value but 0 is defective.
            values = np.asarray(image)
            threshold = 0 if image.mode in {"P", "1"} else above
            has_alpha = image.mode in {"LA", "RGBA"}
    except DAMAGE as error:
        raise DataError(f"Expected a readable mask at {path}, but got: {error}. Replace the file.") from error
    if values.ndim == 3:
        values = (values[..., :-1] if has_alpha else values).max(axis=-1)
    return np.asarray(values > threshold)


def _array_frame(path: Path, frame: str) -> ndarray:
    try:
        return np.ascontiguousarray(np.load(path, mmap_mode="r", allow_pickle=False)[int(frame)])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"Expected masks (frames, height, width) with frame {frame} in {path}, but got: {error}."
        ) from error
