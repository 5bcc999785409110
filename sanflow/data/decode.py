"""Decode and resize one image: any type that Pillow opens, upright, to 8-bit RGB.

The key of the image cache includes a digest of this module's code and its imports, so only code that decides pixels
belongs here.

Shapes: H height, W width, C channels.
"""

import hashlib
import io
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps, UnidentifiedImageError

from sanflow.errors import DataError

Resampling = Literal["bilinear", "lanczos"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}

# What Pillow raises for files that are damaged, cut or of no known type.
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
SIXTEEN_BIT_WHITE = 65535
# Their further pages are previews or layers of the first.
ONE_PICTURE = {"MPO", "PSD"}
# Pillow scales their values to 16 bits, because the files say how many bits they use.
DEPTH_IN_FILE = {"PPM", "JPEG2000"}
REDUCED_SIZE = 254, 1  # TIFF's tag NewSubfileType and its flag of a thumbnail
# Pillow keeps the upper bytes of several 16-bit channels. Read with the other byte order, it keeps the lower ones.
OTHER_BYTE_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How the files of a data set are read.

    Arguments:
        mask_above: A mask's pixel is defective above this grey value.
        bits: How many bits of 16-bit files are used; None: all.
        max_megapixels: Larger images and masks are refused.
    """

    mask_above: int = 0
    bits: int | None = None
    max_megapixels: float = 200.0


@dataclass(frozen=True)
class Page:
    """One picture of a file, loaded and upright.

    Arguments:
        image: As Pillow decodes it.
        sixteen_bits_HWC: Exact values where a file has several 16-bit channels, of which Pillow keeps the upper bytes;
            else None.
    """

    image: Image.Image
    sixteen_bits_HWC: ndarray | None = None


@dataclass(frozen=True)
class Decoded:
    """An image, with the largest value of its file.

    Arguments:
        rgb: 8 bits a channel.
        largest: Largest value of a 16-bit file that does not say how many of its bits are used; None for other files.
    """

    rgb: Image.Image
    largest: int | None


def decode_image(source: Path | bytes, name: str | Path = "", reading: Reading | None = None) -> Image.Image:
    """Decode an image to upright RGB, 8 bits a channel.

    Grey is repeated, an alpha channel dropped, 16 bits are scaled to 8, floats in [0, 1] are multiplied by 255.

    Arguments:
        source: A file, or its bytes.
        name: Name for messages; the path if unset.
        reading: How the data set's files are read.

    Raises:
        DataError: If the file is missing, no image, damaged, too large, or has several pages.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    data = read_bytes(source, "an image") if isinstance(source, Path) else source
    return decode(data, name, reading or Reading()).rgb


def decode(data: bytes, name: str | Path, reading: Reading) -> Decoded:
    """Decode an image; see `decode_image`."""
    try:
        with open_limited(data, reading.max_megapixels) as image:
            numbers = page_numbers(image)
            if len(numbers) > 1:
                raise ValueError(f"{len(numbers)} pages or frames in one file; save each as a file of its own")
            file_format = image.format
            page = load_page(image, data, numbers[0], reading.max_megapixels)
            return _to_rgb(page, None if file_format in DEPTH_IN_FILE else reading.bits, file_format)
    except DAMAGE as error:
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"Expected a readable image at {name}, but got: {reason}. Replace the file.") from error


def open_limited(data: bytes, max_megapixels: float) -> Image.Image:
    """Open an image with the data set's limit instead of Pillow's, which cannot be set for one image.

    Raises:
        DataError: If the image has more pixels than that.
    """
    with PILLOW_LIMIT:
        pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = pillows
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels, which are {megapixels:.4g} megapixels where at most "
            f"{max_megapixels:g} are allowed; if that is its real size, set `max_megapixels: {int(megapixels) + 1}` "
            "for the data set in the benchmark file"
        )
    return image


def page_numbers(image: Image.Image) -> list[int]:
    """List the pages or frames of an opened file, without thumbnails and layers."""
    n_pages = 1 if image.format in ONE_PICTURE else getattr(image, "n_frames", 1)
    if n_pages == 1 or image.format != "TIFF":
        return list(range(n_pages))
    tag, flag = REDUCED_SIZE
    found = []
    for number in range(n_pages):
        image.seek(number)
        if not int(image.tag_v2.get(tag, 0)) & flag:  # type: ignore[attr-defined]
            found.append(number)
    return found or [0]


def load_page(image: Image.Image, data: bytes, number: int, max_megapixels: float) -> Page:
    """Load a page of an opened file and turn it as its EXIF orientation says.

    Arguments:
        image: From `open_limited`.
        data: The same file's bytes.
        number: Of the page.
        max_megapixels: As for `open_limited`.
    """
    image.seek(number)
    swapped = [_swapped(tile) for tile in image.tile]  # type: ignore[attr-defined]
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if not swapped or None in swapped:
        return Page(image)
    with open_limited(data, max_megapixels) as lower:
        lower.seek(number)
        lower.tile = swapped  # type: ignore[attr-defined]
        lower.load()
        ImageOps.exif_transpose(lower, in_place=True)
        return Page(image, 256 * np.asarray(image).astype(np.uint16) + np.asarray(lower))


def _swapped(tile: tuple[object, ...]) -> tuple[object, ...] | None:
    """Return how to decode a tile of several 16-bit channels in the other byte order; None for other tiles."""
    arguments = tile[3]
    mode = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""  # type: ignore[index]
    channels, _, order = mode.partition(";")
    if channels not in {"RGB", "RGBA"} or order not in OTHER_BYTE_ORDER:
        return None
    other = f"{channels};{OTHER_BYTE_ORDER[order]}"
    return tile._replace(args=other if isinstance(arguments, str) else (other, *arguments[1:]))  # type: ignore


def _to_rgb(page: Page, bits: int | None, file_format: str | None) -> Decoded:
    """Scale all images of a type alike, because a bright pixel may not darken the rest."""
    image, values = page.image, page.sixteen_bits_HWC
    if image.mode == "I" and file_format == "TIFF":
        raise ValueError("32-bit integers, whose white is not known; save it with 8 or 16 bits")
    # Pillow opens some 16-bit files as 32-bit integers.
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
    if values is not None:
        channels = values if values.ndim == 2 else values[..., :3]
        rgb = Image.fromarray(_eight_bits(channels, bits)).convert("RGB")
        return Decoded(rgb, None if file_format in DEPTH_IN_FILE else int(channels.max()))
    if image.mode == "F":
        floats = np.asarray(image)
        if not (floats.min() >= 0 and floats.max() <= 1):
            raise ValueError(
                f"floats from {floats.min():g} to {floats.max():g}, where 0 to 1 is expected; save it with 8 or 16 bits"
            )
        return Decoded(Image.fromarray(np.rint(floats * 255).astype(np.uint8)).convert("RGB"), None)
    return Decoded(image.convert("RGB"), None)


def _eight_bits(values: ndarray, bits: int | None) -> ndarray:
    """Scale values so that white, the largest number of that many bits, becomes 255."""
    white = SIXTEEN_BIT_WHITE if bits is None else 2**bits - 1
    largest = int(values.max())
    if largest > white:
        raise ValueError(
            f"the value {largest}, where at most {white} is expected; correct `bits` of the data set in the benchmark "
            "file, or save it with 8 or 16 bits"
        )
    return ((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)


def read_image(
    path: Path, size: tuple[int, int], resampling: Resampling, sha256: str = "", reading: Reading | None = None
) -> ndarray:
    """Read one image as (H, W, 3) uint8, squashed to `size`; the file is read once.

    Arguments:
        path: The file.
        size: Height and width in pixels.
        resampling: Filter of the resizing.
        sha256: Expected digest of the file's bytes; unset: not checked.
        reading: How the data set's files are read.

    Raises:
        DataError: If the file is missing or damaged, or has another digest.
    """
    height, width = size
    data = read_bytes(path, "an image")
    if sha256:
        require_same(path, hashlib.sha256(data).hexdigest(), sha256)
    image = decode_image(data, path, reading)
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
        raise DataError(f"Expected {kind} at {path}, but there is none. Restore it or make the index again.") from error
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
