"""How each data set's own folders become rows: one function per layout, from the files' names alone.

A row names its image and mask by paths relative to the data set's top folder. A mask is
- "" for a defect-free image,
- a file,
- a folder, whose images are joined (MVTec LOCO has several masks per image), or
- `<file>.npy/<frame>`, one frame of an array (frames, height, width) (ShanghaiTech Campus).

A layout never decides silently: what does not fit goes into `problems`, and what it does not use into `leftovers`. The
index reports both together. Names are compared in their normal form (see `sanflow.config.names.normal_form`).
"""

import csv
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from PIL import Image

from sanflow.config.names import name_problem, normal_form
from sanflow.data.leftovers import Leftover, leftovers
from sanflow.data.litter import is_litter
from sanflow.data.masks import read_mask
from sanflow.data.places import category_folder
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
    leftovers: list[Leftover] = field(default_factory=list)


def list_rows(layout: str, root: Path, category: str) -> Listing:
    """All images of a category, sorted by split, defect type and name.

    Arguments:
        layout: A key of `LAYOUTS`.
        root: The data set's top folder.
        category: Name of the category.
    """
    listing = LAYOUTS[layout](root, category)
    for row in listing.rows:
        for name in (row.image, row.mask):
            if problem := name_problem(name):
                listing.problems.append(f"{name}: {problem}")
    listing.rows = [row for row in listing.rows if not (name_problem(row.image) or name_problem(row.mask))]
    listing.rows.sort(key=lambda row: (row.split != "train", row.defect_type != "good", row.defect_type, row.image))
    return listing


@functools.cache
def image_suffixes() -> frozenset[str]:
    """File name endings of the image types that Pillow reads by itself."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in {"EPS", "MPEG", "PDF"})


def _images(folder: Path) -> list[Path]:
    """Image files of a folder, sorted; hidden files are none."""
    return [
        path
        for path in _entries(folder)
        if path.suffix.lower() in image_suffixes() and not path.name.startswith(".") and path.is_file()
    ]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.name.startswith(".")]


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_litter(path.name)) if folder.is_dir() else []


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _mvtec(root: Path, category: str, good: str = "good") -> Listing:
    """<category>/{train/good, test/good, test/<defect>, ground_truth/<defect>}.

    A mask is `<stem>_mask` or `<stem>`, a file, or a folder `<stem>` of several files. Anything else in these folders
    is reported.
    """
    top, listing, used = category_folder(root, category), Listing(), set[Path]()
    for split in ("train", "test"):
        for folder in _folders(top / split):
            if split == "train" and folder.name != good:
                listing.problems.append(f"{_relative(folder, root)}: training images must be in train/{good}")
                used.add(folder)
                continue
            kind = "good" if folder.name == good else folder.name
            truth = category_folder(top / "ground_truth", normal_form(folder.name))
            masks = {} if kind == "good" else _masks_by_stem(truth, root, listing, used)
            for image in _images(folder):
                used.add(image)
                mask = masks.pop(normal_form(image.stem), None)
                if kind != "good" and mask is None:
                    expected = f"{category}/ground_truth/{folder.name}/{image.stem}_mask.png"
                    listing.problems.append(f"{_relative(image, root)}: no mask; expected {expected}")
                reference = "" if mask is None else _relative(mask, root)
                listing.rows.append(Row(split, kind, _relative(image, root), reference))
            listing.problems += [
                f"{_relative(mask, root)}: a mask without an image in test/{folder.name}" for mask in masks.values()
            ]
    tested = {normal_form(folder.name) for folder in _folders(top / "test")}
    for folder in _folders(top / "ground_truth"):
        found = [*_images(folder), *_folders(folder)]
        if folder.name == good:
            used.update(found)
            listing.problems += _masks_of_good_images(found, root)
        elif normal_form(folder.name) not in tested and found:
            used.update(found)
            listing.problems.append(f"{_relative(folder, root)}: masks without the folder test/{folder.name}")
    for part in ("train", "test", "ground_truth"):
        listing.leftovers += leftovers(top / part, root, used)
    return listing


def _masks_by_stem(folder: Path, root: Path, listing: Listing, used: set[Path]) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for path in [*_images(folder), *(path for path in _folders(folder) if _images(path))]:
        used.add(path)
        stem = normal_form(path.name if path.is_dir() else path.stem.removesuffix("_mask"))
        if stem in masks:
            listing.problems.append(f"{_relative(path, root)}: a second mask beside {_relative(masks[stem], root)}")
        masks[stem] = path
    return masks


def _masks_of_good_images(masks: Iterable[Path], root: Path) -> list[str]:
    """Masks of good images are not used, so they must be empty."""
    problems = []
    for mask in masks:
        try:
            n_pixels = int(read_mask(root, _relative(mask, root)).defect_HW.sum())
        except DataError as error:
            problems.append(str(error))
            continue
        if n_pixels:
            problems.append(
                f"{_relative(mask, root)}: {n_pixels} defective pixels, but masks of good images are not used; move "
                "its image to the folder of a defect, or the mask away"
            )
    return problems


def _btad(root: Path, category: str) -> Listing:
    """MVTec AD's layout with `ok` for good and `ko` for defective images."""
    return _mvtec(root, category, good="ok")


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
    "mvtec_loco": _mvtec,
    "visa": _visa,
    "magnetic_tile": _magnetic_tile,
    "kolektor_sdd": _kolektor_sdd,
    "shanghaitech_campus": _shanghaitech_campus,
}
