"""Find out which images are photographs of the same part, so that no split or resample separates them."""

import dataclasses
import re
from collections.abc import Sequence

import pandas as pd

from sanflow.data.listing import Row

PART = "part"  # a column of the index only where some part has a name


def part_name(path: str, pattern: str) -> str:
    r"""Return the name of the part that a file shows.

    Arguments:
        path: With slashes.
        pattern: A regular expression that is searched in the path.

    Returns:
        What the groups of the pattern match, joined with slashes; without groups, what the whole pattern matches; ""
        where it matches nothing.

    Example:
        >>> part_name("screw/test/good/0007_left.png", r"(.+)_(?:left|right)\.png")
        'screw/test/good/0007'
    """
    match = re.search(pattern, path)
    if match is None:
        return ""
    return "/".join(group or "" for group in match.groups()) if match.re.groups else match[0]


def name_parts(rows: Sequence[Row], pattern: str) -> tuple[list[Row], list[str]]:
    """Name the part of each image by a pattern of its path.

    Returns:
        The rows with their parts, and a problem for each image without one or with a name from elsewhere.
    """
    named = [dataclasses.replace(row, part=part_name(row.image, pattern)) for row in rows]
    problems = [f"{row.image}: expected to match `part_pattern` {pattern!r}" for row in named if not row.part]
    twice = next((row for row in rows if row.part), None)
    if twice is not None:
        problems.append(
            f"{twice.image}: its part {twice.part!r} is known without a pattern; expected no `part_pattern` here"
        )
    return named, problems


def divided_parts(table: pd.DataFrame) -> list[str]:
    """List parts with photographs in more than one split: what is learned of a part makes its other images easy."""
    named = table[table[PART] != ""]
    first = named.drop_duplicates([PART, "split"])
    return [
        f"part {part!r}: expected all its photographs in one split, but got "
        + " and ".join(f"{image} ({split})" for image, split in zip(rows.image, rows.split, strict=True))
        for part, rows in first.groupby(PART)
        if len(rows) > 1
    ]


def parts_of(rows: pd.DataFrame) -> pd.Series:
    """Return the part that each row of an index shows; an image without a named part is a part of its own.

    Arguments:
        rows: Of an index.

    Returns:
        One name per row, with the same row labels.
    """
    return rows[PART].where(rows[PART] != "", rows["image"]) if PART in rows else rows["image"]
