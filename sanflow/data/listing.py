"""The listing that a layout makes of a data set's folders, and small functions that layouts share."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from numpy.random import RandomState
from PIL import Image

from sanflow.data.leftovers import Leftover
from sanflow.data.litter import is_litter
from sanflow.data.saturation import Saturation

SPLITS = ("train", "validation", "test")
SPLIT_SEED = 0  # of data sets that come without a split of their own


@dataclass(frozen=True)
class Row:
    """One image before it was opened.

    Arguments:
        split: One of `SPLITS`.
        defect_type: "good" or the kind of defect.
        image: Path relative to the data set's top folder.
        mask: As `image`; "" without a mask. See `sanflow.data.masks`.
        group: Condition of the image, such as the light, by which metrics may be split; "" where there is nothing.
        part: Name of the part that it shows, where several photographs of one part exist; else "".
    """

    split: str
    defect_type: str
    image: str
    mask: str = ""
    group: str = ""
    part: str = ""

    @property
    def label(self) -> int:
        """1 for a defective image, 0 for a good one."""
        return int(self.defect_type != "good")


@dataclass
class Listing:
    """The images of a category, and the problems found.

    Arguments:
        rows: The images.
        problems: Faults.
        unmasked: Defective images without a mask: faults, unless the category has no masks at all.
        has_masks: Whether there is any mask, also one that belongs to no image.
        leftovers: Files and folders that are not used.
        saturations: From which overlap on its defects count as found; none where the data set does not say.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    has_masks: bool = False
    leftovers: list[Leftover] = field(default_factory=list)
    saturations: tuple[Saturation, ...] = ()


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings of the image types that Pillow reads by itself."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in {"EPS", "MPEG", "PDF"})


def images(folder: Path) -> list[Path]:
    """List the image files of a folder, sorted, without hidden files."""
    return [
        path
        for path in entries(folder)
        if path.suffix.lower() in image_suffixes() and not path.name.startswith(".") and path.is_file()
    ]


def folders(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.is_dir() and not path.name.startswith(".")]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_litter(path.name)) if folder.is_dir() else []


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def split_good(images: Iterable[str]) -> list[Row]:
    """Split defect-free images into 80 % training and 20 % test, by their sorted names and a fixed seed.

    RandomState, not Generator: only the former's stream is frozen across numpy versions.
    """
    names = sorted(images)
    n_train = round(0.8 * len(names))
    order = RandomState(SPLIT_SEED).permutation(len(names))
    return [Row("train" if place < n_train else "test", "good", names[i]) for place, i in enumerate(order)]
