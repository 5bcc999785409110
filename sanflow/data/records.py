"""Open the files of one row of an index; collect their facts and problems, and warn of unusual values."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanflow.data.decode import Reading, decode, read_bytes
from sanflow.data.listing import Row
from sanflow.data.masks import read_mask
from sanflow.data.saturation import Saturation, regions_of
from sanflow.errors import DataError

MOST_OF_AN_IMAGE = 0.5
USUAL_BITS = (8, 10, 12, 14)


@dataclass
class Record:
    """One image after it was opened.

    Arguments:
        columns: Of the index.
        problems: Faults of its files.
        doubts: Levels of its mask that may be misread.
        covered: Share of the image that its mask covers.
        largest: Largest value of a 16-bit file; None for other files.
    """

    columns: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    doubts: tuple[str, ...] = ()
    covered: float = 0.0
    largest: int | None = None


def open_row(root: Path, row: Row, reading: Reading, saturations: Sequence[Saturation] = ()) -> Record:
    """Open the image and the mask of a row.

    Arguments:
        root: The data set's top folder.
        row: From a layout.
        reading: How the data set's files are read.
        saturations: The category's thresholds, one of which each file of a mask must have; none: not checked.
    """
    columns: dict[str, Any] = {
        "split": row.split,
        "label": row.label,
        "defect_type": row.defect_type,
        "image": row.image,
        "mask": row.mask,
        "width": 0,
        "height": 0,
        "sha256": "",
        "mask_sha256": "",
        "defect_pixels": 0,
        "group": row.group,
        "part": row.part,
    }
    record = Record(columns)
    try:
        data = read_bytes(root / row.image, "an image")
        columns["sha256"] = hashlib.sha256(data).hexdigest()
        decoded = decode(data, row.image, reading)
        columns["width"], columns["height"] = decoded.rgb.size
        record.largest = decoded.largest
    except DataError as error:
        record.problems.append(str(error))
    if row.mask:
        try:
            mask = read_mask(root, row.mask, reading)
            height, width = mask.defect_HW.shape
            columns["defect_pixels"] = int(mask.defect_HW.sum())
            columns["mask_sha256"] = mask.sha256
            record.doubts, record.covered = mask.doubts, float(mask.defect_HW.mean())
            if saturations:
                regions_of(mask, saturations)
            if columns["width"] and (width, height) != (columns["width"], columns["height"]):
                size = f"{columns['width']} x {columns['height']}"
                record.problems.append(f"{row.mask}: {width} x {height} pixels, but its image {row.image} has {size}")
        except DataError as error:
            record.problems.append(str(error))
    return record


def covering_masks(records: Sequence[Record]) -> list[str]:
    """Warn of masks that cover most of their images: they may be inverted."""
    most = [record for record in records if record.covered > MOST_OF_AN_IMAGE]
    if not most:
        return []
    first = most[0]
    return [
        f"{len(most)} of {sum(record.columns['mask'] != '' for record in records)} masks cover more than half of their "
        f"image, such as {first.columns['mask']} ({100 * first.covered:.0f} %): a pixel is defective where its mask is "
        "bright, not dark"
    ]


def unused_bits(records: Sequence[Record], reading: Reading) -> list[str]:
    """Warn of 16-bit files whose values all fit into fewer bits, so that they would be read almost black."""
    values = [record.largest for record in records if record.largest is not None]
    if not values or reading.bits is not None:
        return []
    bits = next((bits for bits in USUAL_BITS if max(values) < 2**bits), None)
    if bits is None:
        return []
    return [
        f"{bits}-bit data in 16-bit files: the largest value in {len(values)} images is {max(values)} of 65535, so "
        f"they are read dark. Set `bits: {bits}` for the data set in the benchmark file to use the whole range"
    ]
