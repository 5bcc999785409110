"""How each data set's own folders become rows: one function per layout, from the files' names alone.

A row names its image and mask by paths relative to the data set's top folder. A mask is
- "" for a defect-free image,
- a file,
- a folder, whose images are joined (MVTec LOCO has several masks per image), or
- `<file>.npy/<frame>`, one frame of an array (frames, height, width) (ShanghaiTech Campus).

A layout never decides silently: what does not fit goes into `problems`, which the index reports together.
"""

import csv
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from PIL import Image

from sanflow.data.masks import read_mask
from sanflow.errors import DataError

SPLIT_SEED = 0  # of data sets that come without a split of their own


@dataclass(frozen=True)
class Row:
    """One image before it was opened."""

    split: str
    defect_type: str
    image: str
    mask: str = ""

    @property
    def label(self) -> int:
        """1 for a defective image, 0 for a good one."""
        return int(self.defect_type != "good")


@dataclass
class Listing:
    """What a layout found: rows, and what it could not make sense of."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def locate(folder: Path, probe: str, title: str) -> Path:
    """The top folder of a data set: `folder` itself or one of its subfolders, as archives often wrap their content.

    Raises:
        DataError: If neither holds `probe`.
    """
    if not folder.is_dir():
        raise DataError(f"Expected {title} in the folder {folder}, but there is no such folder.")
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for candidate in (folder, *below):
        if (candidate / probe).exists():
            return candidate
    raise DataError(
        f"Expected {title} in {folder}, that is a path {probe} in it or in one of its subfolders, but it has "
        f"{', '.join(path.name for path in below) or 'no subfolders'}. "
        "Name the data set's own top folder, or remove this one and run `sanflow download`."
    )


def list_rows(layout: str, root: Path, category: str) -> Listing:
    """All images of a category, sorted by split, defect type and name.

    Arguments:
        layout: A key of `LAYOUTS`.
        root: The data set's top folder.
        category: Name of the category.
    """
    listing = LAYOUTS[layout](root, category)
    listing.rows.sort(key=lambda row: (row.split != "train", row.defect_type != "good", row.defect_type, row.image))
    return listing


@functools.cache
def image_suffixes() -> frozenset[str]:
    """File name endings of the image types that Pillow reads by itself."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in {"EPS", "MPEG", "PDF"})


def _images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted; hidden files (._x of macOS) are none."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in image_suffixes() and not path.name.startswith(".") and path.is_file()
    )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _mvtec(root: Path, category: str, good: str = "good") -> Listing:
    """<category>/{train/good, test/good, test/<defect>, ground_truth/<defect>}; masks are `<stem>_mask` or `<stem>`."""
    top, listing = root / category, Listing()
    for split in ("train", "test"):
        for folder in _folders(top / split):
            if split == "train" and folder.name != good:
                listing.problems.append(f"{_relative(folder, root)}: training images must be in train/{good}")
                continue
            kind = "good" if folder.name == good else folder.name
            masks = {} if kind == "good" else _masks_by_stem(top / "ground_truth" / folder.name, root, listing)
            for image in _images(folder):
                mask = masks.pop(image.stem, None)
                if kind != "good" and mask is None:
                    expected = f"{category}/ground_truth/{folder.name}/{image.stem}_mask.png"
                    listing.problems.append(f"{_relative(image, root)}: no mask; expected {expected}")
                listing.rows.append(Row(split, kind, _relative(image, root), mask or ""))
            listing.problems += [f"{mask}: a mask without an image in test/{folder.name}" for mask in masks.values()]
    tested = {folder.name for folder in _folders(top / "test")}
    for folder in _folders(top / "ground_truth"):
        if folder.name not in tested and _images(folder):
            listing.problems.append(f"{_relative(folder, root)}: masks without the folder test/{folder.name}")
    return listing


def _masks_by_stem(folder: Path, root: Path, listing: Listing) -> dict[str, str]:
    masks: dict[str, str] = {}
    for path in _images(folder):
        stem = path.stem.removesuffix("_mask")
        if stem in masks:
            listing.problems.append(f"{_relative(path, root)}: a second mask beside {masks[stem]}")
        masks[stem] = _relative(path, root)
    return masks


def _btad(root: Path, category: str) -> Listing:
    """MVTec AD's layout with `ok` for good and `ko` for defective images."""
    return _mvtec(root, category, good="ok")


def _mvtec_loco(root: Path, category: str) -> Listing:
    """As MVTec AD, with several masks in ground_truth/<defect>/<stem>/; validation/ is left aside."""
    top, listing = root / category, Listing()
    for image in _images(top / "train" / "good"):
        listing.rows.append(Row("train", "good", _relative(image, root)))
    for folder in _folders(top / "test"):
        masks = {path.name: path for path in _folders(top / "ground_truth" / folder.name)}
        for image in _images(folder):
            mask = masks.pop(image.stem, None)
            if folder.name != "good" and (mask is None or not _images(mask)):
                expected = f"{category}/ground_truth/{folder.name}/{image.stem}/000.png"
                listing.problems.append(f"{_relative(image, root)}: no mask; expected {expected}")
            reference = _relative(mask, root) if mask is not None and folder.name != "good" else ""
            listing.rows.append(Row("test", folder.name, _relative(image, root), reference))
        listing.problems += [
            f"{_relative(mask, root)}: masks without an image in test/{folder.name}" for mask in masks.values()
        ]
    return listing


def _visa(root: Path, category: str) -> Listing:
    """The one-class split that comes with the data set, split_csv/1cls.csv: object,split,label,image,mask."""
    listing, table = Listing(), root / "split_csv" / "1cls.csv"
    with open(table, encoding="utf-8-sig", newline="") as file:
        for line in csv.DictReader(file):
            if line["object"] != category:
                continue
            kind = "good" if line["label"] == "normal" else "bad"
            for name in (line["image"], line["mask"] if kind == "bad" else ""):
                if name and (name.startswith("/") or ".." in Path(name).parts):
                    raise DataError(f"Expected paths inside of the data set in {table}, but got {name!r}.")
            if kind == "bad" and not line["mask"]:
                listing.problems.append(f"{line['image']}: no mask in {_relative(table, root)}")
            listing.rows.append(Row(line["split"], kind, line["image"], line["mask"] if kind == "bad" else ""))
    return listing


def _magnetic_tile(root: Path, category: str) -> Listing:
    """MT_<type>/Imgs/<name>.jpg with <name>.png as its mask; MT_Free holds the good ones. Split 80/20 here."""
    listing, good = Listing(), []
    for folder in _folders(root):
        if not folder.name.startswith("MT_"):
            continue
        kind = folder.name.removeprefix("MT_").lower()
        files = _images(folder / "Imgs")
        masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
        for image in (path for path in files if path.suffix.lower() != ".png"):
            mask = masks.pop(image.stem, None)
            if kind == "free":
                good.append(_relative(image, root))
                continue
            if mask is None:
                listing.problems.append(f"{_relative(image, root)}: no mask; expected {image.stem}.png beside it")
            listing.rows.append(Row("test", kind, _relative(image, root), _relative(mask, root) if mask else ""))
        listing.problems += [f"{_relative(mask, root)}: a mask without its .jpg" for mask in masks.values()]
    listing.rows += _split_good(good)
    return listing


def _kolektor_sdd(root: Path, category: str) -> Listing:
    """kos<nn>/Part<k>.jpg with Part<k>_label.bmp; an image is good when its label is black. Split 80/20 here."""
    listing, good = Listing(), []
    for folder in _folders(root):
        files = _images(folder)
        masks = {path.stem.removesuffix("_label"): path for path in files if path.stem.endswith("_label")}
        for image in (path for path in files if not path.stem.endswith("_label")):
            mask = masks.pop(image.stem, None)
            if mask is None:
                listing.problems.append(f"{_relative(image, root)}: no mask; expected {image.stem}_label.bmp beside it")
            elif read_mask(root, _relative(mask, root)).defect_HW.any():
                listing.rows.append(Row("test", "defect", _relative(image, root), _relative(mask, root)))
            else:
                good.append(_relative(image, root))
        listing.problems += [f"{_relative(mask, root)}: a mask without its image" for mask in masks.values()]
    listing.rows += _split_good(good)
    return listing


def _split_good(images: Iterable[str]) -> list[Row]:
    """The one split of defect-free images into 80 % training and 20 % test, from their sorted names and a fixed seed.

    RandomState, not Generator: only the former's stream is frozen across numpy versions.
    """
    names = sorted(images)
    n_train = round(0.8 * len(names))
    order = RandomState(SPLIT_SEED).permutation(len(names))
    return [Row("train" if place < n_train else "test", "good", names[i]) for place, i in enumerate(order)]


def _shanghaitech_campus(root: Path, category: str) -> Listing:
    """Scene <category>: training/frames/<scene>_*/*.jpg (decoded from training/videos), testing/frames/<scene>_*/*.jpg.

    testing/test_frame_mask/<clip>.npy tells for each frame whether it is abnormal, testing/test_pixel_mask/<clip>.npy
    where: an array (frames, height, width).
    """
    listing = Listing()
    for clip in _folders(root / "training" / "frames"):
        if clip.name.startswith(f"{category}_"):
            listing.rows += [Row("train", "good", _relative(image, root)) for image in _images(clip)]
    for clip in _folders(root / "testing" / "frames"):
        if not clip.name.startswith(f"{category}_"):
            continue
        images = _images(clip)
        masks = root / "testing" / "test_pixel_mask" / f"{clip.name}.npy"
        labels = root / "testing" / "test_frame_mask" / f"{clip.name}.npy"
        missing = [path for path in (labels, masks) if not path.is_file()]
        if missing:
            listing.problems += [
                f"{_relative(path, root)}: missing, so {clip.name} has no ground truth" for path in missing
            ]
            continue
        abnormal = np.load(labels, allow_pickle=False)
        n_masks = len(np.load(masks, mmap_mode="r", allow_pickle=False))
        if not len(images) == len(abnormal) == n_masks:
            listing.problems.append(
                f"{_relative(clip, root)}: {len(images)} frames, but {len(abnormal)} labels and {n_masks} masks"
            )
            continue
        for k, image in enumerate(images):
            kind = "abnormal" if abnormal[k] else "good"
            mask = f"{_relative(masks, root)}/{k}" if abnormal[k] else ""
            listing.rows.append(Row("test", kind, _relative(image, root), mask))
    return listing


LAYOUTS: dict[str, Callable[[Path, str], Listing]] = {
    "mvtec": _mvtec,
    "btad": _btad,
    "mvtec_loco": _mvtec_loco,
    "visa": _visa,
    "magnetic_tile": _magnetic_tile,
    "kolektor_sdd": _kolektor_sdd,
    "shanghaitech_campus": _shanghaitech_campus,
}
