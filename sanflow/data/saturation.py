"""Read from which overlap on a defect counts as found: the saturation thresholds of MVTec LOCO.

`<category>/defects_config.json` lists the kinds of defects. A mask file of an image is one region; its grey value is
the number of its kind. The threshold of a kind is a number of pixels, or a share of the region where it is relative.

Source:
    Beyond Dents and Scratches (Bergmann et al., 2022), section 4
    https://doi.org/10.1007/s11263-022-01578-9
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from sanflow.data.masks import Mask
from sanflow.errors import DataError

FILE = "defects_config.json"


@dataclass(frozen=True)
class Saturation:
    """The threshold of one kind of defect.

    Arguments:
        pixel_value: Grey value of the kind in masks, 1 to 255.
        defect_name: Its name.
        saturation_threshold: Pixels, or a share in (0, 1] if relative.
        relative_saturation: Whether the threshold is a share of the region.

    Raises:
        ValueError: If a value is not what it must be.
    """

    pixel_value: int
    defect_name: str
    saturation_threshold: float
    relative_saturation: bool

    def __post_init__(self) -> None:
        threshold, number = self.saturation_threshold, (int, float)
        if type(self.pixel_value) is not int or not 1 <= self.pixel_value <= 255:
            raise ValueError(f"expected a `pixel_value` from 1 to 255, but got {self.pixel_value!r}")
        if type(self.relative_saturation) is not bool:
            raise ValueError(f"expected `relative_saturation` true or false, but got {self.relative_saturation!r}")
        if self.relative_saturation and not (type(threshold) in number and 0 < threshold <= 1):
            raise ValueError(f"expected a relative `saturation_threshold` in (0, 1], but got {threshold!r}")
        if not self.relative_saturation and not (type(threshold) is int and threshold >= 1):
            raise ValueError(f"expected a `saturation_threshold` of whole pixels, at least 1, but got {threshold!r}")

    def area(self, n_pixels: int) -> int:
        """Return how many pixels of a region must be found so that it counts as found.

        As MVTec's evaluation script: a share is rounded down, and a threshold is at most the region. At least 1.

        Example:
            >>> Saturation(1, "scratch", 40, False).area(100), Saturation(1, "scratch", 40, False).area(30)
            (40, 30)
            >>> Saturation(2, "missing", 0.3, True).area(101)
            30
        """
        if self.relative_saturation:
            return max(1, int(self.saturation_threshold * n_pixels))
        return int(min(self.saturation_threshold, n_pixels))


class Region(NamedTuple):
    """One region of an image: its pixels (H, W) bool, and how many of them must be found."""

    defect_HW: ndarray
    saturation: int


def read_saturations(path: Path) -> tuple[Saturation, ...]:
    """Read defects_config.json, sorted by grey value.

    Raises:
        DataError: If it is missing, damaged, or its entries are not what they must be.
    """
    try:
        return saturations_of(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Expected the saturation thresholds of the category in {path}, a list of entries with `defect_name`, "
            f"`pixel_value`, `saturation_threshold` and `relative_saturation`, but got: {error}. Restore the file from "
            "the data set's archive."
        ) from error


def saturations_of(entries: Any) -> tuple[Saturation, ...]:
    """Make thresholds of the content of defects_config.json or index.json, sorted by grey value.

    Raises:
        ValueError: If an entry is not what it must be, or two have one grey value.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("no list of entries")
    names = tuple(Saturation.__dataclass_fields__)
    missing = [name for entry in entries for name in names if name not in entry]
    if missing:
        raise ValueError(f"an entry without `{missing[0]}`")
    found = sorted((Saturation(**{name: entry[name] for name in names}) for entry in entries), key=_value)
    values = [_value(entry) for entry in found]
    if len(set(values)) < len(values):
        raise ValueError(f"two entries of one `pixel_value`: {values}")
    return tuple(found)


def _value(entry: Saturation) -> int:
    return entry.pixel_value


def regions_of(mask: Mask, saturations: Sequence[Saturation]) -> list[Region]:
    """Return the regions of an image, one per file of its mask.

    Arguments:
        mask: From `read_mask`.
        saturations: Of the category.

    Raises:
        DataError: If a file has more than one grey value beside 0, or one that has no threshold.
    """
    by_value = {entry.pixel_value: entry for entry in saturations}
    return [_region(part.file, part.levels_HW, by_value) for part in mask.parts]


def _region(file: str, levels_HW: ndarray, by_value: Mapping[int, Saturation]) -> Region:
    values = [int(value) for value in np.unique(levels_HW) if value]
    if len(values) != 1 or values[0] not in by_value:
        raise DataError(
            f"{file}: expected one grey value beside 0, of {_listed(by_value)} in {FILE}, but got {_listed(values)}"
        )
    defect_HW = levels_HW > 0
    return Region(defect_HW, by_value[values[0]].area(int(defect_HW.sum())))


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values)) or "none"
