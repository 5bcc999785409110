"""List the images of MVTec AD and of data sets with a similar layout, also of the user's own."""

from collections.abc import Iterable
from pathlib import Path

from sanflow.config.names import normal_form
from sanflow.data.leftovers import leftovers
from sanflow.data.listing import Listing, Row, folders, images, relative
from sanflow.data.masks import read_mask
from sanflow.data.places import category_folder
from sanflow.data.saturation import FILE, read_saturations
from sanflow.errors import DataError


def mvtec(root: Path, category: str, good: str = "good") -> Listing:
    """Read <category>/{train/good, test/good, test/<defect>, ground_truth/<defect>}.

    A mask is `<stem>_mask` or `<stem>`, a file, or a folder `<stem>` of several files. Anything else in these folders
    is reported.
    """
    top, listing, used = category_folder(root, category), Listing(), set[Path]()
    for split in ("train", "test"):
        for folder in folders(top / split):
            if split == "train" and folder.name != good:
                listing.problems.append(f"{relative(folder, root)}: training images must be in train/{good}")
                used.add(folder)
                continue
            kind = "good" if folder.name == good else folder.name
            truth = category_folder(top / "ground_truth", normal_form(folder.name))
            masks = {} if kind == "good" else _masks_by_stem(truth, root, listing, used)
            for image in images(folder):
                used.add(image)
                mask = masks.pop(normal_form(image.stem), None)
                if kind != "good" and mask is None:
                    expected = f"{category}/ground_truth/{folder.name}/{image.stem}_mask.png"
                    listing.unmasked.append(f"{relative(image, root)}: no mask; expected {expected}")
                reference = "" if mask is None else relative(mask, root)
                listing.rows.append(Row(split, kind, relative(image, root), reference))
            listing.problems += [
                f"{relative(mask, root)}: a mask without an image in test/{folder.name}" for mask in masks.values()
            ]
    tested = {normal_form(folder.name) for folder in folders(top / "test")}
    for folder in folders(top / "ground_truth"):
        found = [*images(folder), *folders(folder)]
        listing.has_masks = listing.has_masks or bool(found)
        if folder.name == good:
            used.update(found)
            listing.problems += masks_of_good_images(found, root)
        elif normal_form(folder.name) not in tested and found:
            used.update(found)
            listing.problems.append(f"{relative(folder, root)}: masks without the folder test/{folder.name}")
    for part in ("train", "test", "ground_truth"):
        listing.leftovers += leftovers(top / part, root, used)
    return listing


def _masks_by_stem(folder: Path, root: Path, listing: Listing, used: set[Path]) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for path in [*images(folder), *(path for path in folders(folder) if images(path))]:
        used.add(path)
        stem = normal_form(path.name if path.is_dir() else path.stem.removesuffix("_mask"))
        if stem in masks:
            listing.problems.append(f"{relative(path, root)}: a second mask beside {relative(masks[stem], root)}")
        masks[stem] = path
    return masks


def masks_of_good_images(masks: Iterable[Path], root: Path) -> list[str]:
    """Check that masks of good images are empty, because they are not used."""
    problems = []
    for mask in masks:
        try:
            n_pixels = int(read_mask(root, relative(mask, root)).defect_HW.sum())
        except DataError as error:
            problems.append(str(error))
            continue
        if n_pixels:
            problems.append(
                f"{relative(mask, root)}: {n_pixels} defective pixels, but masks of good images are not used; move "
                "its image to the folder of a defect, or the mask away"
            )
    return problems


def btad(root: Path, category: str) -> Listing:
    """Read MVTec AD's layout with `ok` for good and `ko` for defective images."""
    return mvtec(root, category, good="ok")


def mvtec_loco(root: Path, category: str) -> Listing:
    """Read MVTec AD's layout with validation/good, several masks per image, and the thresholds of its defects."""
    listing, top = mvtec(root, category), category_folder(root, category)
    validation = images(top / "validation" / "good")
    listing.rows += [Row("validation", "good", relative(image, root)) for image in validation]
    listing.leftovers += leftovers(top / "validation", root, set(validation))
    try:
        listing.saturations = read_saturations(top / FILE)
    except DataError as error:
        listing.problems.append(str(error))
    return listing


def mvtec_ad_2(root: Path, category: str) -> Listing:
    """Read <category>/{train/good, validation/good, test_public/{good, bad, ground_truth/bad}}; <number>_<light>.png.

    Images of one number show one part under several lights. The private test sets have no labels and are not listed.
    """
    top, listing, used = category_folder(root, category), Listing(), set[Path]()
    public = top / "test_public"
    masks = _masks_by_stem(public / "ground_truth" / "bad", root, listing, used)
    listing.has_masks = bool(masks)
    for part, kind in (("train", "good"), ("validation", "good"), ("test_public", "good"), ("test_public", "bad")):
        for image in images(top / part / kind):
            used.add(image)
            mask = masks.pop(normal_form(image.stem), None) if kind == "bad" else None
            if kind == "bad" and mask is None:
                expected = f"{category}/test_public/ground_truth/bad/{image.stem}_mask.png"
                listing.unmasked.append(f"{relative(image, root)}: no mask; expected {expected}")
            number, _, light = image.stem.partition("_")
            shown = relative(image.with_name(number), root)
            reference = "" if mask is None else relative(mask, root)
            listing.rows.append(Row(part.removesuffix("_public"), kind, relative(image, root), reference, light, shown))
    listing.problems += [f"{relative(mask, root)}: a mask without an image" for mask in masks.values()]
    for part in ("train", "validation", "test_public"):
        listing.leftovers += leftovers(top / part, root, {*used, public / "ground_truth"})
    listing.leftovers += leftovers(public / "ground_truth", root, used)
    return listing
