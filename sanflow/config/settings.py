"""Settings of config/config.yaml: which benchmark to run, and where."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sanflow.config.names import ExpandedPath
from sanflow.config.strict import StrictModel, validated
from sanflow.config.yaml_file import read_yaml

CHECKOUT = Path(__file__).resolve().parents[2]


class Tracking(StrictModel):
    """Where MLflow mirrors the runs."""

    uri: ExpandedPath | None = "sqlite:///results/mlflow.db"
    """An MLflow tracking URI; null turns tracking off."""
    log_models: bool = False
    """Also log each checkpoint as an MLflow model with its signature."""

    @field_validator("uri", mode="before")
    @classmethod
    def _off(cls, uri: Any) -> Any:
        # `snakemake --config 'tracking={uri: null}'` passes the text "null".
        return None if uri in {"null", "None", ""} else uri


class Cache(StrictModel):
    """The cache of decoded and resized images."""

    folder: ExpandedPath | None = None
    """Its folder; `<data_root>/.cache` if unset."""
    max_gigabytes: float = Field(50.0, gt=0)
    """The least recently used parts are removed when it grows beyond this."""


class Settings(StrictModel):
    """config/config.yaml: which benchmark to run, and where."""

    benchmark: ExpandedPath = "demo"
    """A name in config/benchmarks/, or the path of a benchmark file; its results go to results/<file stem>/."""
    data_root: ExpandedPath = "data"
    """Where data sets are kept."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`cuda` stops with an error where there is no GPU; `auto` takes the CPU then, and says so."""
    tracking: Tracking = Tracking()
    """Where MLflow mirrors the runs."""
    cache: Cache = Cache()
    """The cache of decoded and resized images."""
    offline: bool = False
    """Never open a connection for data: what is missing is an error."""
    save_state_every_seconds: float = Field(300.0, gt=0)
    """Shortest time between two saves of a training's state, from which it resumes after a kill."""
    slots_per_gpu: int = Field(1, ge=1)
    """How many jobs may share one GPU."""

    @property
    def cache_folder(self) -> Path:
        """Folder of the image cache."""
        return Path(self.cache.folder) if self.cache.folder else Path(self.data_root) / ".cache"


def settings_from(values: Mapping[str, Any], source: str = "config/config.yaml or --config") -> Settings:
    """Check the values of config.yaml, as read or as Snakemake merged them with `--config`."""
    return validated(Settings, values, source)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read and check config.yaml."""
    return settings_from(read_yaml(path), str(path))


def settings_here() -> Settings:
    """Read the settings of the working folder's config/config.yaml, else of the checkout's, else take the defaults."""
    paths = (folder / "config" / "config.yaml" for folder in (Path(), CHECKOUT))
    path = next((path for path in paths if path.exists()), None)
    return Settings() if path is None else load_settings(path)
