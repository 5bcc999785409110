"""Read and check a benchmark file: data sets x experiments x seeds."""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, model_validator

from sanflow.config.dataset import DatasetChoice
from sanflow.config.experiment import Experiment
from sanflow.config.names import FileName, file_name
from sanflow.config.settings import CHECKOUT
from sanflow.config.strict import StrictModel, validated
from sanflow.config.yaml_file import read_yaml
from sanflow.errors import ConfigError, did_you_mean, not_among
from sanflow.methods.registry import methods

if TYPE_CHECKING:
    AnyExperiment = Experiment
else:
    AnyExperiment = Annotated[
        Union[tuple(method.settings for method in methods().values())],  # noqa: UP007  (made from a list)
        Field(discriminator="method"),
    ]


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell of a benchmark: what is fitted, scored and evaluated as a unit."""

    dataset: str
    category: str
    experiment: str
    seed: int

    @property
    def folder(self) -> PurePosixPath:
        """Its folder below the benchmark's results.

        Example:
            >>> str(Job("mvtec_ad", "bottle", "sanflow", 0).folder)
            'mvtec_ad/bottle/sanflow/seed0'
        """
        return PurePosixPath(self.dataset, self.category, self.experiment, f"seed{self.seed}")


class Benchmark(StrictModel):
    """A benchmark file: data sets x experiments x seeds."""

    title: str = ""
    """One sentence for the report."""
    datasets: dict[FileName, DatasetChoice] = Field(min_length=1)
    """Data sets by name."""
    experiments: dict[FileName, AnyExperiment] = Field(min_length=1)
    """Experiments by name."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Each experiment is run once per seed."""

    @model_validator(mode="after")
    def _check(self) -> "Benchmark":
        for name, experiment in self.experiments.items():
            for dataset in experiment.datasets or []:
                if dataset not in self.datasets:
                    raise ValueError(
                        f"experiment {name!r} names the data set {dataset!r}, "
                        f"but this benchmark has {sorted(self.datasets)}" + did_you_mean(dataset, self.datasets)
                    )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"expected different seeds, but got {self.seeds}")
        return self

    def jobs(self, categories: Mapping[str, list[str]]) -> Iterator[Job]:
        """Give all cells, in the order of the file.

        Arguments:
            categories: The categories of each data set, `all` already resolved.

        Raises:
            ConfigError: If an `input_size` names a category that looks like a misspelt one.
        """
        known = {category for names in categories.values() for category in names}
        for name, experiment in self.experiments.items():
            sizes = experiment.input_size if isinstance(experiment.input_size, dict) else {}
            # A category that does not run here is no error: the benchmark may run only some categories.
            for key in set(sizes) - known - {"default"}:
                if close := difflib.get_close_matches(key, known - set(sizes), n=1, cutoff=0.75):
                    raise ConfigError(
                        f"Expected categories in `input_size` of the experiment {name!r}, but got {key!r}. "
                        f"Did you mean {close[0]!r}?"
                    )
        for dataset in self.datasets:
            for category in categories[dataset]:
                for name, experiment in self.experiments.items():
                    if experiment.datasets is None or dataset in experiment.datasets:
                        for seed in self.seeds:
                            yield Job(dataset, category, name, seed)


def benchmark_path(name_or_path: str, folder: Path = CHECKOUT / "config" / "benchmarks") -> Path:
    """Find the file of a benchmark that is named as in `config/benchmarks/` or by its path.

    Raises:
        ConfigError: If there is no such file; names the nearest one.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"Expected a benchmark file at {path}, but there is none.")
        _check_stem(path)
        return path
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ConfigError(
            f"Expected a benchmark among {names} or the path of a .yaml file, but got {name_or_path!r}."
            + did_you_mean(name_or_path, names)
        )
    return path


def _check_stem(path: Path) -> None:
    try:
        file_name(path.stem)
    except ValueError as error:
        raise ConfigError(f"Expected another file name than {path}: {error}.") from error


def load_benchmark(path: str | os.PathLike[str]) -> Benchmark:
    """Read and check a benchmark file.

    Raises:
        ConfigError: With every fault of the file, each with its key and, for a misspelt one, the nearest valid name.
    """
    return validated(Benchmark, read_yaml(path), str(path))


def load_experiment(benchmark: str, name: str) -> Any:
    """Read one experiment of a benchmark that is named as for `benchmark_path`; of its method's own model.

    Raises:
        ConfigError: If there is no such benchmark or it has no such experiment.
    """
    experiments = load_benchmark(benchmark_path(benchmark)).experiments
    if name not in experiments:
        raise not_among(f"an experiment of {benchmark}, one of", experiments, name)
    return experiments[name]
