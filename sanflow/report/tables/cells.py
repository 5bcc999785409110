"""Tables as values: sections of rows of cells, with notes below; and the format of numbers in cells.

Cells hold text that is ready to print. They also say whether they are the best measured one of their row, or
published, so that every format marks the same cells.
"""

import dataclasses
import math

import pandas as pd

MISSING, NOT_DEFINED = "–", "n/a"
PUBLISHED_MARK, ORACLE_MARK = "†", "◊"
PUBLISHED_NOTE = (
    f"{PUBLISHED_MARK} Published, not measured here: columns in italics. Their test protocol may differ, such as the "
    "choice of the epoch or of the input size on the test set."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Arguments:
        text: As it is printed.
        best: Whether it is the best measured one of its row (bold).
        published: Whether it was published elsewhere (italic).
    """

    text: str
    best: bool = False
    published: bool = False


@dataclasses.dataclass
class Section:
    """Rows under one header.

    Arguments:
        heading: What the rows have in common; empty if there is one section only.
        header: Names of the columns; those of published columns end in † and the number of their source.
        rows: Rows of cells.
        footer: How many of the last rows summarise the others (set off by a rule).
        text_columns: How many of the first columns are words (left-aligned).
    """

    heading: str
    header: list[str]
    rows: list[list[Cell]]
    footer: int = 0
    text_columns: int = 1


@dataclasses.dataclass
class Table:
    """A whole table.

    Arguments:
        name: Its file's name without the ending.
        title: What it shows, in a few words.
        caption: What a reader must know: units, what bold means.
        sections: At least one, unless there is nothing to show; then `notes` say why.
        notes: Footnotes.
        data: The numbers at full precision, for the CSV file; metrics as fractions.
    """

    name: str
    title: str
    caption: str
    sections: list[Section]
    notes: list[str]
    data: pd.DataFrame


def words(value: object) -> Cell:
    """Make a cell of text; None and NaN are written as a dash."""
    absent = value is None or (isinstance(value, float) and math.isnan(value))
    return Cell(MISSING if absent else str(value))


def percent(mean: float | None, std: float | None = None, *, best: bool = False, published: bool = False) -> Cell:
    """Format a fraction as a percentage with two decimals, with its standard deviation where there is one.

    Example:
        >>> percent(0.98765, 0.0012).text
        '98.77 ± 0.12'
    """
    if mean is None:
        return Cell(MISSING, published=published)
    if math.isnan(mean):
        return Cell(NOT_DEFINED, published=published)
    spread = "" if std is None or math.isnan(std) else f" ± {100 * std:.2f}"
    return Cell(f"{100 * mean:.2f}{spread}", best, published)


def points(difference: float | None) -> str:
    """Format a difference of two fractions in percentage points, with its sign.

    Example:
        >>> points(-0.0031), points(0.0)
        ('−0.31', '0.00')
    """
    if difference is None or math.isnan(difference):
        return MISSING
    text = f"{100 * difference:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def with_best(cells: list[Cell], values: list[float | None]) -> list[Cell]:
    """Mark the largest values of a row as best; ties as printed are all marked, and a lone value is not.

    Arguments:
        cells: Of one row, measured ones only.
        values: Their values; None or NaN where a cell takes no part.
    """
    known = [None if value is None or math.isnan(value) else round(100 * value, 2) for value in values]
    candidates = [value for value in known if value is not None]
    if len(candidates) < 2:
        return cells
    top = max(candidates)
    return [dataclasses.replace(cell, best=value == top) for cell, value in zip(cells, known, strict=True)]
