"""The registered data sets: where each comes from, its hash, and its categories.

The facts are in resources/datasets.yaml; a data set of the user's own (`kind: folder`) is read
from its folder.
"""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sanflow.config.names import category_name, normal_form
from sanflow.data.places import locate
from sanflow.errors import ConfigError, DataError, did_you_mean, not_among
from sanflow.files import resource

Kind = Literal["registered", "folder", "list"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Strict):
    """Images of a complete category: training images, defect-free and defective test images."""

    train: int = Field(gt=0)
    good: int = Field(ge=0)
    defective: int = Field(gt=0)


class DocumentedBy(_Strict):
    """A public loader that shows a data set's own layout."""

    repository: str
    file: str


class DatasetEntry(_Strict):
    """One data set; the keys are explained at the top of resources/datasets.yaml."""

    name: str
    title: str
    layout: str
    probe: str
    categories: dict[str, Counts | None] = Field(min_length=1)
    mirrors: list[str] = []
    file_name: str | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    size: int | None = None
    unpacked_bytes: int | None = None
    mask_above: int | None = Field(None, ge=0, le=65534)
    builtin: bool = False
    package: str | None = None
    has_masks: bool = True
    region_metric: Literal["aupro", "aupro_05", "spro_05"] = "aupro"
    manual: str | None = None
    licence: str
    homepage: str
    citation: str
    documented_by: DocumentedBy | None = None

    @field_validator("categories", mode="before")
    @classmethod
    def _names_alone(cls, value: object) -> object:
        return dict.fromkeys(value) if isinstance(value, list) else value

    @property
    def probes(self) -> list[str]:
        """Paths of which the top folder has at least one: one category is enough."""
        return list(dict.fromkeys(self.probe.replace("{category}", category) for category in self.categories))

    @property
    def archive_name(self) -> str:
        """File name of the archive on this machine."""
        return self.file_name or (Path(self.mirrors[0]).name if self.mirrors else f"{self.name}.archive")


@functools.cache
def load_registry(path: Path | None = None) -> dict[str, DatasetEntry]:
    """Load all registered data sets by name, in order of importance.

    Arguments:
        path: Another file of the same form.

    Raises:
        ConfigError: If the file does not hold valid entries.
    """
    path = path or resource("datasets.yaml")
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
        return {name: DatasetEntry(name=name, **entry) for name, entry in entries.items()}
    except (ValidationError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise ConfigError(f"Expected data set entries in {path}, but got: {error}") from error


def dataset_entry(name: str, kind: Kind = "registered", root: str | Path | None = None) -> DatasetEntry:
    """Return the entry of a data set.

    Arguments:
        name: A name of the registry, or any name for `kind="folder"`.
        kind: `folder` or `list` for a data set of the user's own.
        root: The user's folder, or the CSV file of a `list`.

    Raises:
        ConfigError: If the name is not registered; names the nearest one.
        DataError: If the user's folder has no category.
    """
    if kind == "folder":
        return _folder_entry(name, root)
    if kind == "list":
        return _list_entry(name, root)
    registry = load_registry()
    if name in registry:
        return registry[name]
    raise ConfigError(
        f"Expected a data set among {', '.join(registry)}, but got {name!r}.{did_you_mean(name, registry)} "
        "For a data set of your own write `kind: folder` and its `root`."
    )


def _folder_entry(name: str, root: str | Path | None) -> DatasetEntry:
    if root is None:
        raise ConfigError(
            f"The data set {name!r} of kind `folder` needs `root`, the folder that holds <category>/train/good."
        )
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(
            f"Expected the data set {name!r} in the folder {folder}, but there is no such folder. Correct `root`."
        )
    found = sorted(path.name for path in folder.iterdir() if (path / "train" / "good").is_dir())
    _require_different(name, folder, found)
    if not found:
        hint = (
            " It looks like one category itself: give its parent folder."
            if (folder / "train" / "good").is_dir()
            else ""
        )
        raise DataError(
            f"Expected folders <category>/train/good, <category>/test/good, <category>/test/<defect> and "
            f"<category>/ground_truth/<defect> below {folder}, but no folder there has train/good.{hint}"
        )
    return DatasetEntry(
        name=name,
        title=name,
        layout="mvtec",
        probe=f"{found[0]}/train/good",
        categories=dict.fromkeys(map(normal_form, found)),
        licence="the user's own data",
        homepage=folder.resolve().as_uri(),
        citation="the user's own data",
    )


def _list_entry(name: str, root: str | Path | None) -> DatasetEntry:
    from sanflow.data.table import list_categories  # reads images, which the command line does without

    if root is None:
        raise ConfigError(f"The data set {name!r} of kind `list` needs `root`, the CSV file that lists its images.")
    return DatasetEntry(
        name=name,
        title=name,
        layout="list",
        probe=Path(root).name,
        categories=dict.fromkeys(list_categories(Path(root), name)),
        licence="the user's own data",
        homepage=Path(root).resolve().as_uri(),
        citation="the user's own data",
    )


def _require_different(name: str, folder: Path, found: list[str]) -> None:
    """Refuse folders whose names differ only in how their letters are composed: they look the same."""
    forms: dict[str, list[str]] = {}
    for category in found:
        forms.setdefault(normal_form(category), []).append(ascii(category))
    same = [" and ".join(names) for names in forms.values() if len(names) > 1]
    if same:
        raise DataError(
            f"Expected categories of different names below {folder}, but these look the same: {'; '.join(same)} (other "
            f"code points for the same letters). Rename one, or give {name} another `root`."
        )


def _require_present(entry: DatasetEntry, root: Path, wanted: Sequence[str]) -> None:
    """Refuse categories that a user's own copy of a registered data set does not have."""
    top = locate(root, entry.probes, entry.title)
    if "{category}" not in entry.probe:
        return
    present = [name for name in entry.categories if (top / entry.probe.replace("{category}", name)).exists()]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"Expected the categories {', '.join(wanted)} of {entry.name} in {top}, but it does not have "
            f"{', '.join(missing)}. Choose of those that are there, `categories: [{', '.join(present)}]`, or complete "
            "the copy."
        )


def _require_only_categories(name: str, folder: Path, known: list[str]) -> None:
    """Report empty or incomplete categories, because a `train/good` may be misspelt or missing."""
    others = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and normal_form(path.name) not in known:
            names = {part.name.lower() for part in path.iterdir()}
            if not names or names & {"train", "test", "ground_truth"}:
                others.append(path.name)
    if others:
        raise DataError(
            f"Expected train/good in each category below {folder}, but there is none in: {', '.join(others)}. Complete "
            f"them, or list the `categories` of {name} by name."
        )
    problems = []
    for category in known:
        try:
            category_name(category)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise DataError(
            f"Expected names of categories below {folder} that can be used, but:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\nRename these folders, or list the `categories` of {name} by name."
        )


def categories(
    name: str,
    chosen: Literal["all"] | list[str] = "all",
    kind: Kind = "registered",
    root: str | Path | None = None,
) -> list[str]:
    """List the categories of a data set, `all` resolved, each checked to exist.

    Needs no download: a registered data set's categories are known, those of a folder are its subfolders. Names are in
    their normal form.

    Raises:
        ConfigError: If a category is unknown; lists the known ones.
        DataError: If the user's folder is missing or empty, does not have a category, or has one whose name cannot be
            used.

    Example:
        >>> categories("photo_textures")
        ['brick', 'grass', 'gravel']
    """
    entry = dataset_entry(name, kind, root)
    known = list(entry.categories)
    if chosen == "all" and kind == "folder" and root is not None:
        _require_only_categories(name, Path(root), known)
    wanted = known if chosen == "all" else [normal_form(category) for category in chosen]
    for category in wanted:
        require_category(name, category, known)
    if kind == "registered" and root is not None:
        _require_present(entry, Path(root), wanted)
    return wanted


def require_category(dataset: str, category: str, known: Collection[str]) -> None:
    """Refuse a category that a data set does not have.

    Raises:
        ConfigError: Lists the known ones and names the nearest.
    """
    if category not in known:
        raise not_among(f"a category of {dataset} among", known, category)
