"""Published results of other methods: choose a table's source, and name the kind of source.

`resources/published.csv` holds 2,169 numbers with their sources, in percent. Many were printed more than once: by the
method's authors, by others who quote them, by others who ran the method again. A column of a table comes from one
source only, the best there is: first-hand before second-hand before re-run.
"""

import csv
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from sanflow.files import resource

Standing = Literal["first-hand", "second-hand", "re-run"]
STANDINGS: tuple[Standing, ...] = ("first-hand", "second-hand", "re-run")

# The methods a table shows, in this order, if they were published for its data set and metric.
METHODS = (
    "CFLOW-AD",
    "PatchCore",
    "FastFlow",
    "CS-Flow",
    "DRAEM",
    "PaDiM",
    "SPADE",
    "U-Flow",
    "MSFlow",
    "RD4AD",
    "SimpleNet",
)
METRICS = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")
DATASETS = {"mvtec_ad": "MVTec AD", "btad": "BTAD", "visa": "VisA"}

# Sources that begin like this are by the authors of the method.
AUTHORS = {
    "gudovskiy/cflow-ad@": "CFLOW-AD",
    "amazon-science/patchcore-inspection@": "PatchCore",
    "mtailanian/uflow@": "U-Flow",
    "cool-xuan/msflow@": "MSFlow",
    "VitjanZ/DRAEM@": "DRAEM",
    "DRAEM paper": "DRAEM",
}
RUN_AGAIN = ("re-run", "re-implementation", "run in the", "in the FastFlow paper", "run by the")
# Among sources of one kind and coverage, the encoder of most papers comes first.
USUAL_ENCODER = "WideResNet50"


@dataclasses.dataclass(frozen=True)
class PublishedColumn:
    """The numbers of one source for one method, data set and metric.

    Arguments:
        method: Name of the method, one of `METHODS`.
        variant: The method as the source runs it, such as "PatchCore (authors' repo run)".
        encoder: As the source writes it; empty if it names none.
        dataset: Our name of the data set.
        metric: Our name of the metric.
        standing: Kind of source.
        source: Where the numbers are printed.
        values: Category -> value as a fraction.
        average: The mean over all categories as printed, as a fraction; None where it is not.
    """

    method: str
    variant: str
    encoder: str
    dataset: str
    metric: str
    standing: Standing
    source: str
    values: dict[str, float]
    average: float | None

    def mean(self, categories: Iterable[str], *, whole: bool) -> float | None:
        """Average over the categories of a table: as printed if it covers the data set, else of the printed cells.

        Arguments:
            categories: Those of the table.
            whole: Whether these are all of the data set, so that the printed average is theirs. It can differ from
                the mean of the printed cells, and is what was published.
        """
        if whole and self.average is not None:
            return self.average
        cells = [self.values.get(category) for category in categories]
        known = [value for value in cells if value is not None]
        if cells and len(known) == len(cells):
            return sum(known) / len(known)
        return None

    def footnote(self) -> str:
        """Write one line that names the variant, its encoder, the kind of source and the source."""
        variant = f"{self.variant}, {self.encoder}" if self.encoder else self.variant
        return f"{variant}; {self.standing}: {self.source}"


def method_of(variant: str) -> str | None:
    """Return the method that a variant belongs to, or None if tables do not show it."""
    return variant.split(" (", maxsplit=1)[0] if variant.split(" (", maxsplit=1)[0] in METHODS else None


def standing_of(variant: str, source: str) -> Standing:
    """Return the kind of the source that prints a number.

    Example:
        >>> standing_of("PaDiM", "gudovskiy/cflow-ad@b2ebf9e images/fig-table.svg")
        'second-hand'
    """
    owner = next((owner for start, owner in AUTHORS.items() if source.startswith(start)), None)
    if owner is not None and owner == method_of(variant):
        return "first-hand"
    if any(mark in text for mark in RUN_AGAIN for text in (variant, source)):
        return "re-run"
    return "second-hand"


@functools.cache
def read_columns() -> tuple[PublishedColumn, ...]:
    """Read all columns of `resources/published.csv` that a table may show, the best first for each key."""
    names = {theirs: ours for ours, theirs in DATASETS.items()}
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with open(resource("published.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if method_of(row["method"]) and row["dataset"] in names and row["metric"] in METRICS:
                key = (row["method"], row["encoder"], row["dataset"], row["metric"], row["source"])
                groups[key].append(row)
    columns = [
        _column(key, rows, names[key[2]]) for key, group in groups.items() for rows in _one_row_per_category(group)
    ]
    columns.sort(key=_order)
    return tuple(columns)


def best_columns(dataset: str, metric: str) -> list[PublishedColumn]:
    """Choose the best column of each method for a data set and metric, in the order of `METHODS`.

    Arguments:
        dataset: Our name of the data set; another one than those of `DATASETS` has none.
        metric: Our name of the metric, at the top level of metrics.json.
    """
    best: dict[str, PublishedColumn] = {}
    for column in read_columns():
        if (column.dataset, column.metric) == (dataset, metric):
            best.setdefault(column.method, column)
    return [best[method] for method in METHODS if method in best]


def covers(categories: Iterable[str], dataset: str) -> bool:
    """Return whether these are all the categories that were published for a data set, so that averages compare."""
    known = {name for column in read_columns() if column.dataset == dataset for name in column.values}
    return known == set(categories)


def _one_row_per_category(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Split rows by input size where a source prints a category at several sizes."""
    if len({row["category"] for row in rows}) == len(rows):
        return [rows]
    by_size: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_size[row["input_size"]].append(row)
    return list(by_size.values())


def _column(key: tuple[str, ...], rows: list[dict[str, str]], dataset: str) -> PublishedColumn:
    variant, encoder, _, metric, source = key
    fractions = {row["category"]: float(row["value"]) / 100 for row in rows}
    return PublishedColumn(
        method=method_of(variant) or variant,
        variant=variant,
        encoder=encoder,
        dataset=dataset,
        metric=metric,
        standing=standing_of(variant, source),
        source=source,
        values={name: value for name, value in fractions.items() if not name.endswith("average") and name != "all"},
        average=fractions.get("average"),
    )


def _order(column: PublishedColumn) -> tuple[int, int, int]:
    return (
        STANDINGS.index(column.standing),
        -len(column.values),
        0 if column.encoder.startswith(USUAL_ENCODER) else 1,
    )
