"""The images and masks of an index as arrays, resized once and kept in the cache.

Shapes: N images, H height, W width. Images are uint8 RGB, masks are bool.
Training images, and those from which synthetic anomalies take texture, are resized bilinearly, validation and test
images by Lanczos, masks by nearest neighbour.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy import ndarray
from PIL import Image

from sanflow.data.cache import cached
from sanflow.data.decode import Resampling, read_image, require_same
from sanflow.data.index import Index
from sanflow.data.masks import read_mask
from sanflow.data.saturation import Region, regions_of
from sanflow.provenance import modules_digest

RESAMPLING_OF_SPLIT: dict[str, Resampling] = {"train": "bilinear", "validation": "lanczos", "test": "lanczos"}


@dataclass(frozen=True)
class ImageCache:
    """Where decoded, resized images are kept.

    Arguments:
        folder: Made if missing; one that cannot be written is only read.
        max_bytes: The least recently used entries are removed when the cache grows beyond this; None: no limit.
    """

    folder: Path
    max_bytes: int | None = None


def load_images(
    index: Index,
    split: str,
    size: tuple[int, int],
    resampling: Resampling | None = None,
    *,
    cache: ImageCache | None = None,
    workers: int | None = None,
) -> ndarray:
    """Load the images of a split at one size, in the order of the index.

    Arguments:
        index: The category.
        split: "train", "validation" or "test".
        size: Height and width in pixels; images are squashed to it.
        resampling: "bilinear" or "lanczos"; unset: bilinear for training, Lanczos for test images.
        cache: Where the result is kept and mapped into memory; None: decoded into memory.
        workers: Threads that decode; one per processor, at most 8, if unset.

    Returns:
        (N, H, W, 3) uint8; from the cache a read-only memory map, so that an epoch costs no decoding.

    Raises:
        DataError: If an image is missing or damaged, or is another one than was indexed.
        StorageError: If there is no space for the cache.
    """
    height, width = size
    chosen: Resampling = resampling or RESAMPLING_OF_SPLIT[split]
    rows = index.rows(split)
    names, digests = list(rows.image), list(rows.sha256)
    shape = (len(names), height, width, 3)

    def fill(images_NHW3: ndarray) -> None:
        def read(i: int) -> None:
            images_NHW3[i] = read_image(index.root / names[i], size, chosen, digests[i], index.reading)

        with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(read, range(len(names))))

    if cache is None:
        images_NHW3 = np.empty(shape, np.uint8)
        fill(images_NHW3)
        return images_NHW3
    code = modules_digest(("sanflow.data.decode",))
    key = f"{index.digest}|{split}|{height}x{width}|{chosen}|{code}|Pillow {PIL.__version__}"
    label = f"{index.dataset}/{index.category} {split} {height}x{width} {chosen}"
    return cached(cache.folder, key, label, shape, fill, limit_bytes=cache.max_bytes)


def load_masks(index: Index, size: tuple[int, int] | None = None, split: str = "test") -> ndarray | list[ndarray]:
    """Load the masks of a split, in the order of the index; a good image's mask is all False.

    Arguments:
        index: The category.
        size: Height and width, by nearest neighbour; unset: each mask at its own resolution.
        split: "test" or "train".

    Returns:
        (N, H, W) bool, or without `size` a list of N bool arrays (H, W) that may differ in size.

    Raises:
        DataError: If a mask is missing or damaged, or is another one than was indexed.
    """
    if size is None:
        return list(iterate_masks(index, None, split))
    masks_NHW = np.zeros((len(index.rows(split)), *size), bool)
    for mask_HW, out_HW in zip(iterate_masks(index, size, split), masks_NHW, strict=True):
        out_HW[...] = mask_HW
    return masks_NHW


def iterate_masks(index: Index, size: tuple[int, int] | None = None, split: str = "test") -> Iterator[ndarray]:
    """Yield what `load_masks` returns, one (H, W) at a time, for data sets whose masks do not fit in memory."""
    rows = index.rows(split)
    for reference, digest, height, width in zip(rows["mask"], rows.mask_sha256, rows.height, rows.width, strict=True):
        shape = size or (int(height), int(width))
        if reference == "":
            yield np.zeros(shape, bool)
            continue
        mask = read_mask(index.root, reference, index.reading)
        require_same(reference, mask.sha256, digest)
        yield nearest(mask.defect_HW.astype(np.uint8), shape) > 0


def iterate_regions(index: Index) -> Iterator[list[Region]]:
    """Yield the regions of each test image at its own size, one per mask file; none of a good image.

    Arguments:
        index: A category with saturation thresholds.

    Raises:
        DataError: If a mask is missing or damaged, or is another one than was indexed.
    """
    for reference, digest in zip(index.test["mask"], index.test.mask_sha256, strict=True):
        if reference == "":
            yield []
            continue
        mask = read_mask(index.root, reference, index.reading)
        require_same(reference, mask.sha256, digest)
        yield regions_of(mask, index.saturations)


def nearest(values_HW: ndarray, size: tuple[int, int]) -> ndarray:
    """Resize a mask, or the numbers of its regions, by nearest neighbour.

    Arguments:
        values_HW: uint8 or int32.
        size: Height and width in pixels.
    """
    if values_HW.shape == size:
        return values_HW
    return np.asarray(Image.fromarray(values_HW).resize((size[1], size[0]), Image.Resampling.NEAREST))
