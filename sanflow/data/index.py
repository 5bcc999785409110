"""The index: one checked table per data set and category, from which later steps get all they know of a data set.

index.csv holds a row per image; index.json facts of the whole table. Paths are relative to the data set's
top folder, which is named in index.json only, so the digest does not change when data or results move.
"""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sanflow.config.names import name_problem, normal_form, printable
from sanflow.data.decode import Reading
from sanflow.data.layouts import list_rows
from sanflow.data.listing import SPLITS
from sanflow.data.parts import PART, divided_parts, name_parts
from sanflow.data.places import locate
from sanflow.data.records import covering_masks, open_row, unused_bits
from sanflow.data.registry import Counts, DatasetEntry, Kind, dataset_entry, require_category
from sanflow.data.saturation import Saturation, saturations_of
from sanflow.data.table import list_table
from sanflow.errors import DataError, IntegrityError
from sanflow.files import atomic_path, read_json, write_json

COLUMNS = {
    "split": str,
    "label": int,
    "defect_type": str,
    "image": str,
    "mask": str,
    "width": int,
    "height": int,
    "sha256": str,
    "mask_sha256": str,
    "defect_pixels": int,
}
ADDED = {"group": str, PART: str}  # columns only where they are not empty
AS_WRITTEN = Reading()
SHOWN = 40  # problems of one report, at most


@dataclass(frozen=True)
class Index:
    """The images of one category.

    `table` has the columns of `COLUMNS`: split ("train", "validation" or "test"), label (1 defective), defect_type
    ("good" or its name), image and mask (paths relative to `root`; no mask: ""), width and height (pixels), sha256,
    mask_sha256, defect_pixels (of the mask at its own resolution; 0 without a mask). `reading` says how its files are
    read, `warnings` what is unusual about them, `saturations` from which overlap on its defects count as found (none
    where the data set does not say). A column `group` is added where images have groups, such as the light, and a
    column `part` where the parts that they show have names.
    """

    dataset: str
    category: str
    root: Path
    table: pd.DataFrame
    reading: Reading = AS_WRITTEN
    warnings: tuple[str, ...] = ()
    saturations: tuple[Saturation, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the table, how its files are read, and the thresholds, independent of their folder."""
        return _digest(_csv(self.table), self.reading, self.saturations)

    @cached_property
    def train(self) -> pd.DataFrame:
        """The rows of the training images, numbered from 0."""
        return self.rows("train")

    @cached_property
    def test(self) -> pd.DataFrame:
        """The rows of the test images, numbered from 0."""
        return self.rows("test")

    def rows(self, split: str) -> pd.DataFrame:
        """Return the rows of "train", "validation" or "test", numbered from 0."""
        if split not in SPLITS:
            raise ValueError(f"Expected the split {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, but got {split!r}.")
        return self.table[self.table.split == split].reset_index(drop=True)

    @property
    def test_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each test image."""
        return list(zip(self.test.height.astype(int).tolist(), self.test.width.astype(int).tolist(), strict=True))

    def require_same(self, images: Sequence[str], digest: str | None) -> None:
        """Refuse scores of other test images.

        Arguments:
            images: Paths of the test images that were scored, in order.
            digest: Of the index that was scored; None where it is not known.

        Raises:
            IntegrityError: If they are not those of this index.
        """
        if list(images) != self.test.image.tolist() or digest not in (None, self.digest):
            raise IntegrityError(
                f"Expected scores of the index of {self.dataset}/{self.category} ({self.digest[:12]}), but got those "
                f"of another one ({str(digest)[:12]}): the data set has changed since. Score the run again."
            )

    @cached_property
    def knows_pixels(self) -> bool:
        """Whether it is known which pixels are defective; False if defective images have no masks."""
        defective = self.table[self.table.label == 1]
        return len(defective) == 0 or bool((defective["mask"] != "").any())


def build_index(
    dataset: str,
    category: str,
    folder: str | Path,
    *,
    kind: Kind = "registered",
    mask_above: int | None = None,
    bits: int | None = None,
    max_megapixels: float = Reading.max_megapixels,
    part_pattern: str | None = None,
    check_counts: bool = True,
    test_needed: bool = True,
    workers: int | None = None,
) -> Index:
    """Open every file of a category once and make its index.

    Arguments:
        dataset: Name of the data set.
        category: Name of the category.
        folder: Folder of the data set; its top folder or the one above.
        kind: `folder` for a data set of the user's own.
        mask_above: A mask's pixel is defective above this grey value; None: as the registry says, else masks must have
            two levels.
        bits: How many bits of 16-bit files are used; None: all.
        max_megapixels: Larger images and masks are refused.
        part_pattern: Names the part that an image shows by its path, see `sanflow.data.parts.part_name`.
        check_counts: Compare with the known counts of a registered data set.
        test_needed: Refuse a category without test images: a detector can be fitted on it, but nothing measured.
        workers: Threads that decode; one per processor, at most 8, if unset.

    Raises:
        ConfigError: If the data set or category is unknown.
        DataError: With all faults of the category together: broken files, masks without images, defective images
            without masks, masks of another size, images or parts that are in train and in test, an empty split, wrong
            counts.
    """
    entry = dataset_entry(dataset, kind, folder)
    category = normal_form(category)
    require_category(dataset, category, entry.categories)
    root = Path(folder).parent if kind == "list" else locate(Path(folder), entry.probes, entry.title)
    root = root.absolute()
    if problem := name_problem(str(root)):
        raise DataError(f"Expected a folder whose name can be written, but of {printable(str(root))} {problem}.")
    is_list = kind == "list"
    listing = list_table(Path(folder), category, dataset) if is_list else list_rows(entry.layout, root, category)
    if part_pattern is not None:
        listing.rows, unnamed = name_parts(listing.rows, part_pattern)
        listing.problems += unnamed
    known_above = entry.mask_above if mask_above is None else mask_above
    reading = Reading(known_above or 0, bits, max_megapixels)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        records = list(pool.map(lambda row: open_row(root, row, reading, listing.saturations), listing.rows))
    problems = [*listing.problems, *(problem for record in records for problem in record.problems)]
    warnings = [*covering_masks(records), *unused_bits(records, reading)]
    for leftover in listing.leftovers:
        # Leftovers of a registered data set are its owners' choice, and its images are counted.
        (warnings if leftover.is_document or kind == "registered" else problems).append(leftover.line)
    if known_above is None:
        doubts = [doubt for record in records for doubt in record.doubts]
        if kind != "registered":
            problems += doubts
        elif doubts:  # masks of a registered data set are used as they are
            warnings.append(f"{len(doubts)} masks do not have two levels, such as {doubts[0]}")
    if listing.unmasked and (listing.has_masks or (kind == "registered" and entry.has_masks)):
        problems += listing.unmasked
    elif listing.unmasked:
        warnings.append(
            f"none of {len(listing.unmasked)} defective images has a mask: only image metrics can be measured"
        )
    table = pd.DataFrame([record.columns for record in records], columns=[*COLUMNS, *ADDED])
    problems += [*_leaks(table), *divided_parts(table)]
    table = table.drop(columns=[name for name in ADDED if (table[name] == "").all()])
    counted = _counts(table, entry.categories[category] if check_counts else None, test_needed)
    # One class of test images is enough for scores; without test images, or without training images, there are none.
    (problems if counted.is_fault else warnings).extend(counted.lines)
    if problems:
        raise DataError(_report(entry, category, root, problems))
    return Index(
        dataset,
        category,
        root,
        table.astype(_types(table)),
        reading,
        tuple(printable(line) for line in warnings),
        listing.saturations,
    )


def write_index(index: Index, path: str | Path) -> None:
    """Write index.csv and, last, index.json beside it.

    Arguments:
        path: Path of index.csv.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(_csv(index.table), "utf-8", newline="")
    write_json(path.with_suffix(".json"), summary(index))


def summary(index: Index) -> dict[str, Any]:
    """Return the content of index.json."""
    table = index.table
    defective = table[table.label == 1]
    thresholds = [dataclasses.asdict(entry) for entry in index.saturations]
    return {
        "dataset": index.dataset,
        "category": index.category,
        "root": str(index.root),
        "digest": index.digest,
        "mask_above": index.reading.mask_above,
        "bits": index.reading.bits,
        "max_megapixels": index.reading.max_megapixels,
        "counts": {
            "train": len(index.train),
            "good": int((index.test.label == 0).sum()),
            "defective": len(defective),
            "defect_types": {str(k): int(n) for k, n in defective.defect_type.value_counts().sort_index().items()},
            "defective_without_pixels": int(((defective["mask"] != "") & (defective.defect_pixels == 0)).sum()),
        },
        "warnings": list(index.warnings),
        **({"saturations": thresholds} if thresholds else {}),
    }


def read_index(path: str | Path, root: str | Path | None = None) -> Index:
    """Read an index that `write_index` wrote.

    Arguments:
        path: index.csv or its folder.
        root: Folder of the data set now, if it was moved.

    Raises:
        DataError: If there is no index.
        IntegrityError: If the table was changed since it was written.
    """
    path = Path(path)
    path = path / "index.csv" if path.is_dir() else path
    facts_path = path.with_suffix(".json")
    for file in (path, facts_path):
        if not file.is_file():
            raise DataError(f"Expected an index at {file}, but there is none. Run `sanflow index` for this category.")
    facts, text = read_json(facts_path), path.read_bytes()
    remedy = f"Remove {path} and {facts_path.name} and run `sanflow index` again."
    try:
        digest, warnings = str(facts["digest"]), tuple(map(str, facts.get("warnings", ())))
        bits, limit = facts.get("bits"), facts.get("max_megapixels", Reading.max_megapixels)
        reading = Reading(int(facts["mask_above"]), None if bits is None else int(bits), float(limit))
        saturations = saturations_of(facts.get("saturations", []))
        names = (str(facts["dataset"]), str(facts["category"]), Path(root or facts["root"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"Expected the facts of an index in {facts_path}, but {error} is wrong. {remedy}"
        ) from error
    found = _digest(text.decode("utf-8", "replace"), reading, saturations)
    if found != digest:
        raise IntegrityError(
            f"Expected {path} with digest {digest[:16]}…, but got {found[:16]}…: it was changed. {remedy}"
        )
    names_in_file = text.decode("utf-8").split("\n", 1)[0].split(",")
    table = pd.read_csv(
        io.BytesIO(text), dtype={name: COLUMNS.get(name, str) for name in names_in_file}, keep_default_na=False
    )
    return Index(*names, table, reading, warnings, saturations)


def index_of_run(run: Path) -> Path:
    """Return the path of the index of a run: of `<category>/<experiment>/seed<k>`, or of a kept epoch below it.

    Raises:
        DataError: If there is none.
    """
    run = Path(os.path.abspath(run))  # without `..`, but not resolved: a run may be a link
    for folder in run.parents[1:3]:
        if (folder / "index.csv").is_file():
            return folder / "index.csv"
    raise DataError(
        f"Expected a run `<data set>/<category>/<experiment>/seed<k>` with index.csv in the folder of its category, "
        f"but there is none two or three levels above {run}. Name the folder of a run below `results/<benchmark>`."
    )


def _leaks(table: pd.DataFrame) -> list[str]:
    """List training images that are test images too, byte for byte."""
    trained = table[(table.split == "train") & (table.sha256 != "")].drop_duplicates("sha256")
    pairs = table[table.split == "test"].merge(trained, on="sha256", suffixes=("", "_train"))
    return [
        f"{image}: the same file as the training image {twin}"
        for image, twin in zip(pairs.image, pairs.image_train, strict=True)
    ]


@dataclass(frozen=True)
class Counted:
    """Say what is wrong with the numbers of images."""

    lines: list[str]
    is_fault: bool


def _counts(table: pd.DataFrame, known: Counts | None, test_needed: bool) -> Counted:
    train, test = table.split == "train", table.split == "test"
    found = {
        "train": int(train.sum()),
        "good": int((test & (table.label == 0)).sum()),
        "defective": int((test & (table.label == 1)).sum()),
    }
    names = {"train": "training", "good": "defect-free test", "defective": "defective test"}
    if known is not None:
        expected = known.model_dump()
        wrong = [
            f"expected {expected[key]} {names[key]} images, but found {found[key]}: the copy is not complete"
            for key in names
            if found[key] != expected[key]
        ]
        return Counted(wrong, is_fault=True)
    without = [f"expected {names[key]} images, but found none" for key in names if not found[key]]
    return Counted(without, is_fault=not found["train"] or (test_needed and not (found["good"] or found["defective"])))


def _report(entry: DatasetEntry, category: str, root: Path, problems: Iterable[str]) -> str:
    lines = sorted(printable(line) for line in problems)
    shown = [f"  - {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"  - and {len(lines) - SHOWN} more")
    remedy = "Correct these files and run `sanflow index` again."
    if entry.mirrors:
        remedy += f" `sanflow download {entry.name} --data-root <another folder>` fetches a whole copy."
    return (
        f"{entry.name}/{category} in {root} has {len(lines)} fault{'s' if len(lines) > 1 else ''}:\n"
        + "\n".join(shown)
        + f"\n{remedy}"
    )


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", columns=list(_types(table))))


def _types(table: pd.DataFrame) -> dict[str, type]:
    """Return the type of each column, in the order of the file."""
    return COLUMNS | {name: kind for name, kind in ADDED.items() if name in table}


def _digest(csv: str, reading: Reading, saturations: Sequence[Saturation]) -> str:
    depth = "" if reading.bits is None else f" {reading.bits}"
    thresholds = "".join(f"\n{dataclasses.astuple(entry)}" for entry in saturations)
    return hashlib.sha256(f"{reading.mask_above}{depth}{thresholds}\n{csv}".encode()).hexdigest()
