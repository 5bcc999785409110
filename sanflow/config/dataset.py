"""Say which data a benchmark uses."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sanflow.config.names import Category, ExpandedPath, category_name, require_text
from sanflow.config.strict import StrictModel


class DatasetChoice(StrictModel):
    """One data set of a benchmark: one of the registry, or a folder of your own."""

    kind: Literal["registered", "folder", "list"] = "registered"
    """`registered`: its name is in resources/datasets.yaml. `folder`: MVTec AD's layout below `root`.
    `list`: `root` is a CSV file with a line per image."""
    root: ExpandedPath | None = None
    """Where the data set is. Needed for `folder` and `list`; for a registered one it replaces the download."""
    categories: Literal["all"] | list[Category] = "all"
    """`all` of them, or a list of names."""
    mirrors: list[ExpandedPath] | None = None
    """Where to fetch the archive from (URLs, file:// or paths), instead of the registry's mirrors."""
    mask_above: int | None = Field(None, ge=0, le=65534)
    """Your own data: a mask's pixel is defective above this value; unset: masks must have two levels, 0 and another."""
    bits: int | None = Field(None, ge=8, le=16)
    """How many bits of 16-bit images are used: 12 for a 12-bit camera; unset: all."""
    max_megapixels: float = Field(200.0, gt=0)
    """Larger images are refused."""
    part_pattern: str | None = None
    """Several photographs of one part: a regular expression that is searched in an image's path. What its groups match
    names the part; without groups, the whole match."""

    @field_validator("part_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression, but got {pattern!r}: {error}") from error
        return pattern

    @field_validator("categories", mode="before")
    @classmethod
    def _check_categories(cls, value: Any) -> Any:
        # Checked here, because pydantic would try the types one by one and name its inner parts in the message.
        if value == "all":
            return value
        if not isinstance(value, list):
            remedy = f"[{value!r}]" if isinstance(value, str) else "the names in quotes, such as ['01', '02']"
            raise ValueError(f"expected `all` or a list of names, but got {value!r}: write {remedy}")
        return [category_name(require_text(name)) for name in value]

    @model_validator(mode="after")
    def _check(self) -> "DatasetChoice":
        if self.kind == "list" and self.root is None:
            raise ValueError("a data set of kind `list` needs `root`: the CSV file that lists its images")
        if self.kind == "folder" and self.root is None:
            raise ValueError("a data set of kind `folder` needs `root`: the folder that holds <category>/train/good")
        if self.categories == []:
            raise ValueError("`categories` is empty: name at least one, or write `all`")
        if self.kind == "registered" and self.mask_above is not None:
            raise ValueError("`mask_above` is for data of your own: that of a registered data set is in the registry")
        return self
