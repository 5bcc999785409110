"""Lay out the images of a category for a tool so that it sees no labels.

The name, folder and order of a file must not show whether its image is defective. So images are renamed and shuffled.
They are copied, not linked: a link would show the folder of the defect type, and a tool that writes to its input would
damage the data set.
"""

import hashlib
from pathlib import Path

import numpy as np

from sanflow.config.names import printable
from sanflow.data.decode import decode_image, read_bytes, require_same
from sanflow.data.index import Index
from sanflow.files import storage_errors

SPLITS = ("train", "test")


def lay_out(index: Index, folder: Path, seed: int) -> dict[str, str]:
    """Copy the training and test images to `train` and `test` in a folder, shuffled, as 000000.png and so on.

    If all files of the category have the same ending and its data set sets no `bits`, the files are copied unchanged.
    Otherwise the images are decoded as everywhere in sanflow and written as PNG, 8 bits a channel.

    Arguments:
        index: The category.
        folder: Existing folder in which `train` and `test` are made.
        seed: Seed of the shuffled order.

    Returns:
        Path of each test image in the data set -> its name in `test`.

    Raises:
        DataError: If an image is missing, cannot be read or has changed since it was indexed.
        StorageError: If the disk is full or the folder cannot be written.
    """
    endings = {Path(image).suffix.lower() for image in index.table.image}
    as_they_are = len(endings) == 1 and index.reading.bits is None
    ending = endings.pop() if as_they_are else ".png"
    rng = np.random.default_rng(seed)
    given_as: dict[str, str] = {}
    with storage_errors(folder):
        for split in SPLITS:
            rows = index.rows(split)
            (folder / split).mkdir()
            for number, row in enumerate(rng.permutation(len(rows))):
                image, name = str(rows.image[row]), f"{number:06d}{ending}"
                data = read_bytes(index.root / image, "an image")
                require_same(printable(image), hashlib.sha256(data).hexdigest(), rows.sha256[row])
                if as_they_are:
                    (folder / split / name).write_bytes(data)
                else:
                    decode_image(data, image, index.reading).save(folder / split / name)
                if split == "test":
                    given_as[image] = name
    return given_as
