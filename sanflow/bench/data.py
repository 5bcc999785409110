"""Images per second read from cold files and from the cache: 1024 x 1024 PNG to 256 x 256, as an epoch reads them."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from sanflow.data.images import ImageCache, load_images
from sanflow.data.index import Index, build_index

BATCH = 8


def bench_data(
    n_images: int = 64, side: int = 1024, size: int = 256, *, epochs: int = 5, seed: int = 0, folder: Path | None = None
) -> dict[str, Any]:
    """Write photographs, read them cold, make the cache, read that.

    Every image is an enlarged crop of a real photograph with sensor noise, because PNG decodes a flat image faster
    than a real one. Files are dropped from the system's page cache before the cold reading.

    Arguments:
        n_images: Number of training images.
        side: Their height and width in pixels.
        size: Height and width after resizing.
        epochs: How often the cache is read, in a new random order each.
        seed: Of crops, noise and order.
        folder: Where the files are made; a temporary folder if unset. Removed in the end.

    Returns:
        Images per second and seconds of each way, their ratio, and memory in bytes: `peak_decoded` is what one decoded
        image needs, `cache_resident` what reading the cache added to this process (pages that the system can take
        back), `cache_file` the size on disk.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        top = Path(temporary)
        index = _photographs(top / "bench", n_images, side, seed)
        order = np.random.default_rng(seed)
        shape = (size, size)

        files = [index.root / name for name in index.train.image]
        _forget(files)
        start = time.perf_counter()
        decoded = load_images(index, "train", shape, workers=1)
        cold_seconds = time.perf_counter() - start
        _forget(files)
        start = time.perf_counter()
        load_images(index, "train", shape)
        cold_threads_seconds = time.perf_counter() - start

        start = time.perf_counter()
        load_images(index, "train", shape, cache=ImageCache(top / "cache"))
        making_seconds = time.perf_counter() - start
        array_file = next((top / "cache").glob("*/images.npy"))
        _forget([array_file])
        process = psutil.Process()
        before = process.memory_info().rss
        start = time.perf_counter()
        cached = load_images(index, "train", shape, cache=ImageCache(top / "cache"))
        opening_seconds = time.perf_counter() - start
        n_read, checksum = 0, 0
        start = time.perf_counter()
        for _ in range(epochs):
            permutation = order.permutation(n_images)
            for first in range(0, n_images, BATCH):
                batch = cached[np.sort(permutation[first : first + BATCH])]
                checksum += int(batch[:, 0, 0, 0].sum())
                n_read += len(batch)
        cached_seconds = time.perf_counter() - start
        resident = process.memory_info().rss - before
        assert np.array_equal(cached, decoded)
        file_bytes = array_file.stat().st_size

    cold, from_cache = n_images / cold_seconds, n_read / cached_seconds
    return {
        "images": n_images,
        "from_pixels": [side, side],
        "to_pixels": [size, size],
        "processors": os.cpu_count(),
        "images_per_second": {
            "cold_files_one_thread": cold,
            "cold_files_all_threads": n_images / cold_threads_seconds,
            "cache": from_cache,
            "cache_with_opening_and_check": n_images * epochs / (cached_seconds + opening_seconds),
        },
        "cache_is_faster_by": from_cache / cold,
        "seconds": {"making_the_cache": making_seconds, "opening_and_checking_the_cache": opening_seconds},
        "bytes": {
            "peak_decoded": side * side * 3 + size * size * 3,
            "cache_resident": max(0, resident),
            "cache_file": file_bytes,
        },
    }


def _photographs(folder: Path, n_images: int, side: int, seed: int) -> Index:
    """Make a data set of one category whose images are photographs as large as industrial ones."""
    import skimage.data

    random = np.random.default_rng(seed)
    photograph = Image.fromarray(skimage.data.gravel())
    for name, n in (("train/good", n_images), ("test/good", 1), ("test/noise", 1)):
        place = folder / "gravel" / name
        place.mkdir(parents=True)
        for i in range(n):
            left, top = random.integers(0, 128, size=2)
            crop = photograph.crop((left, top, left + 384, top + 384)).resize((side, side), Image.Resampling.BICUBIC)
            noisy = np.asarray(crop, np.int16)[..., None] + random.integers(-3, 4, (side, side, 3), np.int16)
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            image.save(place / f"{i:03d}.png", compress_level=4)
    mask_HW = np.zeros((side, side), np.uint8)
    mask_HW[: side // 4] = 255
    masks = folder / "gravel" / "ground_truth" / "noise"
    masks.mkdir(parents=True)
    Image.fromarray(mask_HW).save(masks / "000.png")
    return build_index("bench", "gravel", folder, kind="folder")


def _forget(files: list[Path]) -> None:
    """Drop files from the system's page cache, where the system lets a program do that."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
