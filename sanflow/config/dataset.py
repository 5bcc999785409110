"""Say which data a benchmark uses."""

from typing import Literal

from pydantic import model_validator

from sanflow.config.names import Category, ExpandedPath
from sanflow.config.strict import StrictModel


class DatasetChoice(StrictModel):
    """One data set of a benchmark: one of the registry, or a folder of your own."""

    kind: Literal["registered", "folder"] = "registered"
    """`registered`: its name is in resources/datasets.yaml. `folder`: MVTec AD's layout below `root`."""
    root: ExpandedPath | None = None
    """Where the data set is. Needed for `folder`; for a registered one it replaces the download."""
    categories: Literal["all"] | list[Category] = "all"
    """`all` of them, or a list of names."""
    mirrors: list[ExpandedPath] | None = None
    """Where to fetch the archive from (URLs, file:// or paths), in place of the registry's mirrors."""

    @model_validator(mode="after")
    def _check(self) -> "DatasetChoice":
        if self.kind == "folder" and self.root is None:
            raise ValueError("a data set of kind `folder` needs `root`: the folder that holds <category>/train/good")
        if self.categories == []:
            raise ValueError("`categories` is empty: name at least one, or write `all`")
        return self
