"""List the images of a data set that the user describes in one CSV file (`kind: list`), for any layout of folders.

Columns: image, split (train, validation, test), label (0 good, 1 defective); optionally mask, defect_type, group,
part, category. Paths are relative to the CSV file's folder.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from sanflow.config.names import category_name, normal_form
from sanflow.data.layouts import in_order
from sanflow.data.listing import SPLITS, Listing, Row
from sanflow.data.mvtec_layouts import masks_of_good_images
from sanflow.errors import DataError, did_you_mean

NEEDED = ("image", "split", "label")
OPTIONAL = ("mask", "defect_type", "group", "part", "category")
LABELS = {"0": 0, "good": 0, "1": 1, "defective": 1}


def list_categories(path: Path, dataset: str) -> list[str]:
    """Return the categories that a CSV file names, in the order of the file; the data set's name if it names none.

    Arguments:
        path: The CSV file.
        dataset: Name of the data set.

    Raises:
        DataError: If the file is missing, or its columns or a category's name are wrong.
    """
    found: dict[str, None] = {}
    for number, line in _lines(path):
        try:
            found[category_name(line["category"]) if line["category"] else dataset] = None
        except ValueError as error:
            raise DataError(f"Expected a category that can be used in {path}, line {number}: {error}.") from error
    if not found:
        raise DataError(f"Expected one line per image in {path}, but it has none.")
    return list(found)


def list_table(path: Path, category: str, dataset: str) -> Listing:
    """List the images of a category.

    Arguments:
        path: The CSV file.
        category: One of `list_categories`.
        dataset: Name of the data set.

    Raises:
        DataError: If the file is missing or its columns are wrong.
    """
    listing, root = Listing(), path.parent
    seen: dict[str, int] = {}
    masks_of_good = []
    for number, line in _lines(path):
        if (normal_form(line["category"]) or dataset) != category:
            continue
        place, image, mask = f"{path.name}, line {number}", line["image"], line["mask"]
        label, split, kind = LABELS.get(line["label"].lower()), line["split"], line["defect_type"]
        problems = []
        if not image:
            problems.append("expected a path in the column image, but it is empty")
        elif image in seen:
            problems.append(f"{image} is also in line {seen[image]}")
        if split not in SPLITS:
            problems.append(f"expected {', '.join(SPLITS)} in the column split, but got {split!r}")
        if label is None:
            problems.append(f"expected {', '.join(LABELS)} in the column label, but got {line['label']!r}")
        elif label == 1 and split != "test":
            problems.append(f"{image} is defective, but only test images may be")
        elif kind and (kind == "good") != (label == 0):
            problems.append(f"the label {line['label']!r} contradicts the defect type {kind!r}")
        if problems:
            listing.problems += [f"{place}: {problem}" for problem in problems]
            continue
        seen[image] = number
        listing.has_masks = listing.has_masks or bool(mask)
        if label == 0 and mask:
            masks_of_good.append(root / mask)
        elif label == 1 and not mask:
            listing.unmasked.append(f"{place}: no mask in the column mask")
        kind = "good" if label == 0 else kind or "defective"
        listing.rows.append(Row(split, kind, image, mask if label == 1 else "", line["group"], line["part"]))
    listing.problems += masks_of_good_images(masks_of_good, root)
    return in_order(listing)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield number and cells of each line of the file, without blanks around them; missing cells are empty."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected a list of images at {path}, a CSV file in UTF-8, but got: {error}.") from error
    rows = csv.DictReader(text.splitlines(keepends=True))
    columns = [name.strip() for name in rows.fieldnames or []]
    rows.fieldnames = columns
    unknown = [name for name in columns if name not in (*NEEDED, *OPTIONAL)]
    missing = [name for name in NEEDED if name not in columns]
    if unknown or missing or len(set(columns)) != len(columns):
        hint = did_you_mean(unknown[0], [*missing, *OPTIONAL]) if unknown else ""
        raise DataError(
            f"Expected the columns {', '.join(NEEDED)}, and optionally {', '.join(OPTIONAL)}, separated by commas in "
            f"{path}, but got {', '.join(columns) or 'none'}.{hint}"
        )
    for row in rows:
        if None in row:
            raise DataError(f"Expected {len(columns)} cells in line {rows.line_num} of {path}, but got more.")
        yield rows.line_num, {name: (row.get(name) or "").strip() for name in (*NEEDED, *OPTIONAL)}
