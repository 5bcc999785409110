"""List the images of each registered data set: one function per layout, from the files' names alone.

A row names its image and mask by paths relative to the data set's top folder. A mask is
- "" for a defect-free image,
- a file,
- a folder, whose images are joined (MVTec LOCO has several masks per image), or
- `<file>.npy/<frame>`, one frame of an array (frames, height, width) (ShanghaiTech Campus).

A layout reports everything: what does not fit is in `problems`, and unused files are in `leftovers`. The
index reports both together. Names are compared in their normal form (see `sanflow.config.names.normal_form`).
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sanflow.config.names import name_problem
from sanflow.data.listing import SPLITS, Listing, Row, folders, images, relative, split_good
from sanflow.data.masks import read_mask
from sanflow.data.mvtec_layouts import btad, mvtec, mvtec_ad_2, mvtec_loco
from sanflow.errors import DataError


def list_rows(layout: str, root: Path, category: str) -> Listing:
    """List all images of a category, sorted by split, defect type and name.

    Arguments:
        layout: A key of `LAYOUTS`.
        root: The data set's top folder.
        category: Name of the category.
    """
    return in_order(LAYOUTS[layout](root, category))


def in_order(listing: Listing) -> Listing:
    """Sort the rows; those whose names cannot be written become problems."""
    rows = []
    for row in listing.rows:
        problems = [f"{name}: {problem}" for name in (row.image, row.mask) if (problem := name_problem(name))]
        listing.problems += problems
        if not problems:
            rows.append(row)
    rows.sort(key=lambda row: (SPLITS.index(row.split), row.defect_type != "good", row.defect_type, row.image))
    listing.rows = rows
    return listing


def _visa(root: Path, category: str) -> Listing:
    """Read the one-class split that comes with the data set, split_csv/1cls.csv: object,split,label,image,mask."""
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
                listing.problems.append(f"{line['image']}: no mask in {relative(table, root)}")
            listing.rows.append(Row(line["split"], kind, line["image"], line["mask"] if kind == "bad" else ""))
    return listing


def _magnetic_tile(root: Path, category: str) -> Listing:
    """Read MT_<type>/Imgs/<name>.jpg with <name>.png as its mask; MT_Free holds the good ones. Split 80/20 here."""
    listing, good = Listing(), []
    for folder in folders(root):
        if not folder.name.startswith("MT_"):
            continue
        kind = folder.name.removeprefix("MT_").lower()
        files = images(folder / "Imgs")
        masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
        for image in (path for path in files if path.suffix.lower() != ".png"):
            mask = masks.pop(image.stem, None)
            if kind == "free":
                good.append(relative(image, root))
                continue
            if mask is None:
                listing.problems.append(f"{relative(image, root)}: no mask; expected {image.stem}.png beside it")
            listing.rows.append(Row("test", kind, relative(image, root), relative(mask, root) if mask else ""))
        listing.problems += [f"{relative(mask, root)}: a mask without its .jpg" for mask in masks.values()]
    listing.rows += split_good(good)
    return listing


def _kolektor_sdd(root: Path, category: str) -> Listing:
    """Read kos<nn>/Part<k>.jpg with Part<k>_label.bmp; an image is good when its label is black. Split 80/20 here."""
    listing, good = Listing(), []
    for folder in folders(root):
        files = images(folder)
        masks = {path.stem.removesuffix("_label"): path for path in files if path.stem.endswith("_label")}
        for image in (path for path in files if not path.stem.endswith("_label")):
            mask = masks.pop(image.stem, None)
            if mask is None:
                listing.problems.append(f"{relative(image, root)}: no mask; expected {image.stem}_label.bmp beside it")
            elif read_mask(root, relative(mask, root)).defect_HW.any():
                listing.rows.append(Row("test", "defect", relative(image, root), relative(mask, root)))
            else:
                good.append(relative(image, root))
        listing.problems += [f"{relative(mask, root)}: a mask without its image" for mask in masks.values()]
    listing.rows += split_good(good)
    return listing


def _kolektor_sdd2(root: Path, category: str) -> Listing:
    """Read {train, test}/<number>.png with <number>_GT.png; an image is good when its mask is black.

    Defective training images are left out: only good ones are trained on.
    """
    listing = Listing(has_masks=True)
    for split in ("train", "test"):
        files = images(root / split)
        masks = {path.stem.removesuffix("_GT"): path for path in files if path.stem.endswith("_GT")}
        for image in (path for path in files if not path.stem.endswith("_GT")):
            mask = masks.pop(image.stem, None)
            if mask is None:
                listing.problems.append(f"{relative(image, root)}: no mask; expected {image.stem}_GT.png beside it")
            elif not read_mask(root, relative(mask, root)).defect_HW.any():
                listing.rows.append(Row(split, "good", relative(image, root)))
            elif split == "test":
                listing.rows.append(Row(split, "defect", relative(image, root), relative(mask, root)))
        listing.problems += [f"{relative(mask, root)}: a mask without its image" for mask in masks.values()]
    return listing


def _elpv(root: Path, category: str) -> Listing:
    """Read labels.csv: image, probability of a defect, mono or poly; uncertain ones are left out. Split 80/20 here."""
    listing, good = Listing(), []
    for number, line in enumerate((root / "labels.csv").read_text("utf-8").splitlines(), 1):
        try:
            image, probability, kind = line.split()
            certain = float(probability)
        except ValueError:
            listing.problems.append(
                f"labels.csv, line {number}: expected image, probability and kind, but got {line!r}"
            )
            continue
        if kind == category and certain == 0:
            good.append(image)
        elif kind == category and certain == 1:
            listing.rows.append(Row("test", "defect", image))
            listing.unmasked.append(f"{image}: no mask")
    listing.rows += split_good(good)
    return listing


def _shanghaitech_campus(root: Path, category: str) -> Listing:
    """Read a scene: {training,testing}/frames/<scene>_*/*.jpg; training frames are decoded from training/videos.

    testing/test_frame_mask/<clip>.npy says for each frame whether it is abnormal. testing/test_pixel_mask/<clip>.npy
    says where: an array (frames, height, width).
    """
    listing = Listing()
    for clip in folders(root / "training" / "frames"):
        if clip.name.startswith(f"{category}_"):
            listing.rows += [Row("train", "good", relative(image, root)) for image in images(clip)]
    for clip in folders(root / "testing" / "frames"):
        if not clip.name.startswith(f"{category}_"):
            continue
        frames = images(clip)
        masks = root / "testing" / "test_pixel_mask" / f"{clip.name}.npy"
        labels = root / "testing" / "test_frame_mask" / f"{clip.name}.npy"
        missing = [path for path in (labels, masks) if not path.is_file()]
        if missing:
            listing.problems += [
                f"{relative(path, root)}: missing, so {clip.name} has no ground truth" for path in missing
            ]
            continue
        abnormal = np.load(labels, allow_pickle=False)
        n_masks = len(np.load(masks, mmap_mode="r", allow_pickle=False))
        if not len(frames) == len(abnormal) == n_masks:
            listing.problems.append(
                f"{relative(clip, root)}: {len(frames)} frames, but {len(abnormal)} labels and {n_masks} masks"
            )
            continue
        for k, image in enumerate(frames):
            kind = "abnormal" if abnormal[k] else "good"
            mask = f"{relative(masks, root)}/{k}" if abnormal[k] else ""
            listing.rows.append(Row("test", kind, relative(image, root), mask))
    return listing


LAYOUTS: dict[str, Callable[[Path, str], Listing]] = {
    "mvtec": mvtec,
    "btad": btad,
    "mvtec_loco": mvtec_loco,
    "mvtec_ad_2": mvtec_ad_2,
    "visa": _visa,
    "magnetic_tile": _magnetic_tile,
    "kolektor_sdd": _kolektor_sdd,
    "kolektor_sdd2": _kolektor_sdd2,
    "elpv": _elpv,
    "shanghaitech_campus": _shanghaitech_campus,
}
