"""Decode and resize one image: any type that Pillow opens, to 8-bit RGB.

The image cache is keyed by a digest of this module's code and its imports, so only what decides pixels belongs here.

Shapes: H height, W width.
"""

import hashlib
import io
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray
from PIL import Image, UnidentifiedImageError

from sanflow.errors import DataError

Resampling = Literal["bilinear", "lanczos"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}

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
    data = read_bytes(source, "an image") if isinstance(source, Path) else source
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _to_rgb(image)
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


def read_image(path: Path, size: tuple[int, int], resampling: Resampling, sha256: str = "") -> ndarray:
    """Read one image as (H, W, 3) uint8, squashed to `size`; the file is read once.

    Arguments:
        path: The file.
        size: Height and width in pixels.
        resampling: Filter of the resizing.
        sha256: Expected digest of the file's bytes; unset: not checked.

    Raises:
        DataError: If the file is missing or damaged, or has another digest.
    """
    height, width = size
    data = read_bytes(path, "an image")
    if sha256:
        require_same(path, hashlib.sha256(data).hexdigest(), sha256)
    image = decode_image(data, path)
    if image.size != (width, height):
        image = image.resize((width, height), FILTERS[resampling])
    return np.asarray(image)


def read_bytes(path: Path, kind: str) -> bytes:
    """Read a whole file.

    Arguments:
        path: The file.
        kind: What it is, for the message: "a mask".

    Raises:
        DataError: If it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"Expected {kind} at {path}, but there is none. Restore it or make the index anew.") from error
    except OSError as error:
        raise DataError(f"Expected {kind} at {path}, but got: {error.strerror}. Make the file readable.") from error


def require_same(name: str | Path, found: str, indexed: str) -> None:
    """Refuse content that changed since it was indexed.

    Arguments:
        name: Of the image or mask, for the message.
        found: SHA-256 of its content now.
        indexed: SHA-256 in the index.

    Raises:
        DataError: If the digests differ.
    """
    if found != indexed:
        raise DataError(
            f"Expected {name} as it was indexed (sha256 {indexed[:12]}), but it has changed since "
            f"(sha256 {found[:12]}). Index the category again: snakemake --forcerun index."
        )
