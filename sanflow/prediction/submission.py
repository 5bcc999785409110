"""Write maps of MVTec AD 2's private test sets in the form that its evaluation server takes.

The private test sets have no labels here: `test_private` in the light of the training images, `test_private_mixed` in
several lights. The server wants, for each image `<category>/<test set>/<name>.png`,

- `anomaly_images/<category>/<test set>/<name>.tiff`: the map, one channel of 16-bit floats,
- `anomaly_images_thresholded/<category>/<test set>/<name>.png`: one channel, 255 where anomalous, else 0,

of all eight categories and nothing else. Maps are written at the images' own size.

Source:
    MVTecAD2_public_code_utils (MVTec Software GmbH, 2025): utils.py, check_and_prepare_data_for_upload.py
    https://benchmark.mvtec.com
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy import ndarray
from PIL import Image

from sanflow.anomaly_maps.fusion import stretched
from sanflow.data.index import Index
from sanflow.data.listing import images
from sanflow.data.places import category_folder
from sanflow.errors import ConfigError, DataError
from sanflow.files import atomic_path
from sanflow.prediction.detector import LoadedDetector

DATASET = "mvtec_ad_2"
TEST_SETS = ("test_private", "test_private_mixed")
LARGEST_HALF = float(np.finfo(np.float16).max)


def private_images(index: Index) -> dict[str, list[Path]]:
    """List the images of the private test sets of a category.

    Returns:
        Test set -> its files, sorted.

    Raises:
        ConfigError: If the index is not of MVTec AD 2.
        DataError: If a test set has no images.
    """
    if index.dataset != DATASET:
        raise ConfigError(f"Expected a run on {DATASET}, which has private test sets, but got one on {index.dataset}.")
    top = category_folder(index.root, index.category)
    found = {name: images(top / name) for name in TEST_SETS}
    missing = [str(top / name) for name, files in found.items() if not files]
    if missing:
        raise DataError(
            f"Expected the images of the private test sets, but there are none in {' and '.join(missing)}. Complete "
            "the copy of the data set."
        )
    return found


def write_submission(
    detector: LoadedDetector, category: str, files: dict[str, list[Path]], output: Path, level: float
) -> Iterator[Path]:
    """Score the private test sets of one category and write both images of each, one image at a time.

    Arguments:
        detector: Fitted on the category.
        category: Its name.
        files: From `private_images`.
        output: Folder of the submission, the same for all categories.
        level: A pixel is anomalous where its map exceeds this.

    Yields:
        Each map, after its two files were written.

    Raises:
        DataError: If an image cannot be read, or a map has values that 16-bit floats cannot hold.
        StorageError: If the disk is full or the folder cannot be written.
    """
    for test_set, own in files.items():
        for file in own:
            rgb = detector.decode(file)
            batch = detector.score(detector.read(rgb)[None])
            map_HW = detector.maps(batch.grids, (rgb.height, rgb.width))[0]
            place = Path(category, test_set, file.stem)
            with atomic_path(output / "anomaly_images_thresholded" / f"{place}.png") as temporary:
                Image.fromarray(np.where(map_HW > level, 255, 0).astype(np.uint8)).save(temporary, format="PNG")
            half_HW = _as_half(stretched(map_HW, len(batch.grids)) if _is_fused(detector) else map_HW, file)
            with atomic_path(output / "anomaly_images" / f"{place}.tiff") as temporary:
                tifffile.imwrite(temporary, half_HW)
            yield output / "anomaly_images" / f"{place}.tiff"


def _is_fused(detector: LoadedDetector) -> bool:
    return detector.detector.kind == "log_prob"


def _as_half(map_HW: ndarray, file: Path) -> ndarray:
    largest = float(np.abs(map_HW).max())
    if not largest <= LARGEST_HALF:  # NaN too
        raise DataError(
            f"Expected scores within {LARGEST_HALF:g}, which 16-bit floats can hold, but the map of {file} reaches "
            f"{largest:g}. Scale the method's scores."
        )
    return map_HW.astype(np.float16)
