"""Write anomaly maps as TIFF files of 32-bit floats, which other tools can read."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile

from sanflow.anomaly_maps.maps import Fusion, iterate_maps
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.data.index import Index
from sanflow.errors import DataError
from sanflow.files import atomic_path


def write_map(path: Path, map_HW: np.ndarray) -> None:
    """Write an anomaly map as a TIFF file of 32-bit floats.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, map_HW.astype(np.float32))


def export_maps(scores: Scores, index: Index, folder: Path, fusion: Fusion = "calibrated") -> Iterator[Path]:
    """Write the anomaly map of each test image at the image's own size; needs no image and no model.

    A map is named as its image: `<folder>/bottle/test/crack/007.tiff` for `bottle/test/crack/007.png`. One map is in
    memory at a time.

    Arguments:
        scores: From the scores file of a run.
        index: The category they belong to.
        folder: Where to write.
        fusion: How scales are joined.

    Yields:
        Each file, after it was written.

    Raises:
        DataError: If a score is not finite, or two images differ only in the endings of their names.
        IntegrityError: If the scores belong to another index.
        StorageError: If the disk is full or the folder cannot be written.
    """
    index.require_same(scores.paths, scores.provenance.get("index_digest"))
    scores.require_finite(f"the scores of {index.dataset}/{index.category}")
    names: dict[PurePosixPath, str] = {}
    for image in scores.paths:
        other = names.setdefault(PurePosixPath(image).with_suffix(".tiff"), image)
        if other != image:
            raise DataError(
                f"Expected test images that differ in more than their endings, but got {other} and {image}, whose "
                "maps would have one name. Rename one, and run `sanflow index` and the later steps again."
            )
    for name, map_HW in zip(names, iterate_maps(scores, index.test_sizes, fusion), strict=True):
        write_map(folder / name, map_HW)
        yield folder / name
