"""Decode one image or mask: any type Pillow opens, to 8-bit RGB or to a bool array.

Shapes: H height, W width.
"""

import io
import struct
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, UnidentifiedImageError

from sanflow.errors import DataError

# What Pillow raises for files that are damaged, cut, of no known type or absurdly large.
DAMAGE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    NotImplementedError,
    struct.error,
)


def decode_image(source: Path | bytes, name: str | Path = "") -> Image.Image:
    """Decode an image to RGB, 8 bits a channel; grey is repeated, an alpha channel dropped, 16 bits divided by 257,
    floats in [0, 1] multiplied by 255.

    Arguments:
        source: A file, or its bytes.
        name: How messages call it; the path if unset.

    Raises:
        DataError: If the file is missing, no image, or damaged.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(
            f"Expected an image at {name}, but there is none. Restore it or make the index anew."
        ) from error
    except DAMAGE as error:
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"Expected a readable image at {name}, but got: {reason}. Replace the file.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    # One scale for all images of a type, whatever is in them: a bright pixel may not darken the rest.
    if image.mode == "I":
        if image.format == "TIFF":
            raise ValueError("32-bit integers, whose white is not known; save it with 8 or 16 bits")
        # Pillow opens some 16-bit files as 32-bit integers.
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"floats from {values.min():g} to {values.max():g}, where 0 to 1 is expected; save it with 8 or 16 bits"
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: ndarray) -> ndarray:
    return np.clip((values.astype(np.int64) + 128) // 257, 0, 255).astype(np.uint8)


def read_mask(root: Path, reference: str, above: int = 0) -> ndarray:
    """Read a mask at its own resolution.

    Arguments:
        root: The data set's top folder.
        reference: A file, a folder of files to join, or `<file>.npy#<frame>`; relative to `root`.
        above: A pixel is defective above this grey value.

    Returns:
        (H, W) bool, True where defective.

    Raises:
        DataError: If a file is missing or damaged, or joined masks differ in size.
    """
    path, _, frame = reference.partition("#")
    if frame:
        return np.asarray(_array_frame(root / path, int(frame)) > above)
    if (root / path).is_dir():
        parts = [_mask_file(file, above) for file in mask_files(root / path)]
        if not parts or any(part.shape != parts[0].shape for part in parts):
            raise DataError(f"Expected masks of one size in {root / path}, but got {[part.shape for part in parts]}.")
        return np.logical_or.reduce(parts)
    return _mask_file(root / path, above)


def mask_files(folder: Path) -> list[Path]:
    """The files of a mask that consists of several."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def mask_bytes(root: Path, reference: str) -> bytes:
    """What a mask's digest covers: the bytes of its files, or of its frame."""
    path, _, frame = reference.partition("#")
    if frame:
        return np.ascontiguousarray(_array_frame(root / path, int(frame))).tobytes()
    if (root / path).is_dir():
        return b"".join(file.read_bytes() for file in mask_files(root / path))
    return (root / path).read_bytes()


def _mask_file(path: Path, above: int) -> ndarray:
    try:
        with Image.open(path) as image:
            # Palette and bilevel masks hold class numbers or flags: any value but 0 is defective.
            values = np.asarray(image)
            threshold = 0 if image.mode in {"P", "1"} else above
            has_alpha = image.mode in {"LA", "RGBA"}
    except FileNotFoundError as error:
        raise DataError(f"Expected a mask at {path}, but there is none. Restore it or make the index anew.") from error
    except DAMAGE as error:
        raise DataError(f"Expected a readable mask at {path}, but got: {error}. Replace the file.") from error
    if values.ndim == 3:
        values = (values[..., :-1] if has_alpha else values).max(axis=-1)
    return np.asarray(values > threshold)


def _array_frame(path: Path, frame: int) -> ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)[frame]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"Expected masks (frames, height, width) with frame {frame} in {path}, but got: {error}."
        ) from error
