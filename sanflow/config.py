"""The configuration, typed: what a benchmark file and config.yaml may say, checked before any work.

These models are the one source. `workflow/schemas/*.json` and docs/configuration.md are generated from them
(`sanflow schema`), and a test holds the files to the models.
"""

import difflib
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sanflow.errors import ConfigError, did_you_mean, not_among

CHECKOUT = Path(__file__).resolve().parents[1]

Method = Literal["sanflow", "cflow", "cflow-matched", "external"]
Size = int | tuple[int, int]
Checked = TypeVar("Checked", bound=BaseModel)


def _expand(path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"names the environment variable {unset.group(1)}, which is not set")
    return expanded


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"{name!r} becomes a folder name: expected letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def _category(name: str) -> str:
    if not name or name.startswith(".") or re.search(r"[/\\{}\x00-\x1f]", name):
        raise ValueError(f"{name!r} becomes a folder name: it may not be empty, begin with '.' or hold / \\ {{ }}")
    return name


ExpandedPath = Annotated[str, AfterValidator(_expand)]
FileName = Annotated[str, AfterValidator(_file_name)]
Category = Annotated[str, AfterValidator(_category)]


class StrictModel(BaseModel):
    """A model that refuses unknown keys and is never changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DatasetChoice(StrictModel):
    """Which data of a benchmark: a data set of the registry, or a folder of your own."""

    kind: Literal["registered", "folder"] = "registered"
    """`registered`: its name stands in resources/datasets.yaml. `folder`: MVTec AD's layout below `root`."""
    root: ExpandedPath | None = None
    """Where the data set lies. Needed for `folder`; for a registered one it replaces the download."""
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


# What the other methods change of SANFlow's defaults. cflow: Gudovskiy et al., WACV 2022, as released.
CFLOW_INPUT_SIZE: dict[str, Size] = {
    "default": 256,
    **dict.fromkeys(["bottle", "carpet", "grid", "leather", "screw", "tile", "toothbrush", "wood", "zipper"], 512),
    "transistor": 128,
}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "sanflow": {},
    "cflow-matched": {"base": "fixed", "synthetic_anomalies": False},
    "cflow": {
        "base": "fixed",
        "synthetic_anomalies": False,
        "position_channels": 128,
        "permutation": "rotation",
        "locations_per_step": 256,
        "learning_rate": 2e-4,
        "batch_size": 32,
        "epochs": 25,
        "passes_per_epoch": 8,
        "rotation_degrees": 5.0,
        "input_size": CFLOW_INPUT_SIZE,
    },
    "external": {},
}
# Fields that change neither a weight nor a random number of the training.
NOT_TRAINING = {"datasets", "evaluate_at", "maps", "input_size", "label"}


class Experiment(StrictModel):
    """One row of a benchmark: a method with its encoder and its training. Unset fields take the method's defaults."""

    method: Method
    """`sanflow`; `cflow-matched` (SANFlow with the base N(0, I) and without
    synthetic anomalies); `cflow` (as its authors released it);
    `external` (anomaly maps of another tool)."""
    label: str | None = None
    """How tables and figures call it; its key if unset."""
    datasets: list[FileName] | None = None
    """The data sets it applies to; all of the benchmark if unset."""
    source: Literal["trained", "official"] = "trained"
    """`official`: the authors' weight file, imported in place of training."""
    official_weights: ExpandedPath | None = None
    """Path of the authors' files with `{category}` in it; needed for `source: official`."""
    maps: ExpandedPath | None = None
    """Folder of anomaly maps with `{dataset}` and `{category}` in it; needed for `method: external`."""

    encoder: str | None = None
    """`timm/<name>.<tag>` or `torchvision/<name>`."""
    weights: ExpandedPath = "pretrained"
    """`pretrained`, `bundled` (timm/tf_efficientnet_lite0.in1k only), `random`, or a .pth or .safetensors file."""
    taps: list[str] | None = None
    """Names of the layers that give the features, one a scale, in the flows' order; the encoder's own if unset."""
    scales: int = Field(3, ge=1, le=4)
    """How many scales, where `taps` is unset."""
    padding: Literal["reflect", "zeros"] | None = None
    """Padding of a ResNet's convolutions; unset: `reflect` for the paper's ResNets, as in both releases."""
    normalize_features: bool = False
    """Divide each scale by its standard deviation on training images."""
    input_size: Size | dict[str, Size] = 256
    """Pixels: one number, `[height, width]`, or `{default: ..., <category>: ...}`."""

    epochs: int = Field(20, ge=1)
    """Epochs; the last one is reported."""
    passes_per_epoch: int = Field(4, ge=1)
    """Passes over the training images in one epoch."""
    warmup_epochs: float = Field(2.0, ge=0)
    """Epochs of linear warm-up; at most half of `epochs`."""
    batch_size: int = Field(4, ge=1)
    """Images per step; the last incomplete batch is dropped."""
    learning_rate: float = Field(5e-4, gt=0)
    """Adam's learning rate after the warm-up."""
    final_learning_rate_factor: float = Field(1e-3, gt=0, le=1)
    """The cosine ends at `learning_rate` times this."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products and convolutions; likelihoods and log-determinants stay in fp32."""
    update: Literal["per_scale", "joint"] = "per_scale"
    """`per_scale`: a step per scale and batch, as released. `joint`: one step for the sum of the scales."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient; unset: not clipped."""
    keep_every: int | None = Field(None, ge=1)
    """Also keep and score each k-th epoch, for the column *oracle epoch*."""

    position_channels: int = Field(512, ge=4, multiple_of=4)
    """Channels of the position code, the flow's condition."""
    coupling_blocks: int = Field(8, ge=1)
    """Coupling blocks per flow."""
    permutation: Literal["index", "rotation"] = "index"
    """What stands between coupling blocks: a permutation of channels or a fixed random rotation."""
    locations_per_step: int | None = Field(None, ge=1)
    """Train on chunks of this many shuffled locations (cflow); unset: all locations of a batch in one step."""
    rotation_degrees: float = Field(0.0, ge=0, le=180)
    """Training images are rotated by up to this angle (cflow)."""
    base: Literal["predicted", "fixed"] = "predicted"
    """`predicted`: the statistics network's variance per location. `fixed`: N(0, I)."""
    synthetic_anomalies: bool = True
    """Show synthetic anomalies in training."""
    abnormal_mean: float = 1.0
    """Mean of the base for abnormal locations, in every channel."""
    evaluate_at: Literal["input", "native"] = "input"
    """`native`: also measure at each image's own resolution, as `native_*`; the headline stays at the input's."""

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_method(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {**METHOD_DEFAULTS.get(str(values.get("method")), {}), **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if isinstance(self.input_size, dict) and "default" not in self.input_size:
            raise ValueError("`input_size` by category needs the key `default`")
        if min(min(_pair(size)) for size in self._sizes()) < 16:
            raise ValueError(f"expected `input_size` of at least 16 pixels, but got {self.input_size}")
        if self.keep_every is not None and not self.trains:
            raise ValueError("`keep_every` keeps epochs of a training, but nothing is trained here: leave it out")
        if self.method == "external":
            if self.maps is None:
                raise ValueError(
                    "`method: external` needs `maps`: the folder of anomaly maps, with {dataset} and {category}"
                )
            return self
        if self.encoder is None:
            raise ValueError(f"`method: {self.method}` needs `encoder`, such as timm/wide_resnet50_2.tv_in1k")
        if self.encoder.split("/")[0] not in {"timm", "torchvision"} or "/" not in self.encoder:
            raise ValueError(f"expected `encoder` as timm/<name>.<tag> or torchvision/<name>, but got {self.encoder!r}")
        if self.source == "official" and "{category}" not in (self.official_weights or ""):
            raise ValueError(
                "`source: official` needs `official_weights`: the path of the authors' files, with {category}"
            )
        if self.warmup_epochs > self.epochs / 2:
            raise ValueError(
                f"expected `warmup_epochs` to be at most half of `epochs` ({self.epochs}), "
                f"but got {self.warmup_epochs}: the warm-up would eat the schedule"
            )
        if self.method == "cflow" and self.base == "predicted":
            raise ValueError("`method: cflow` has the base N(0, I); for a predicted base choose `method: sanflow`")
        if self.locations_per_step is not None and self.base == "predicted":
            raise ValueError("`locations_per_step` needs `base: fixed`: the predicted base is trained on whole images")
        if self.locations_per_step is not None and (self.synthetic_anomalies or self.update == "joint"):
            raise ValueError(
                "`locations_per_step` trains each scale on shuffled normal locations: leave it out, or set "
                "`synthetic_anomalies: false` and `update: per_scale`"
            )
        return self

    def _sizes(self) -> list[Size]:
        return list(self.input_size.values()) if isinstance(self.input_size, dict) else [self.input_size]

    def input_size_for(self, category: str) -> tuple[int, int]:
        """Height and width, in pixels, at which images of a category enter the encoder."""
        if isinstance(self.input_size, dict):
            return _pair(self.input_size.get(category, self.input_size["default"]))
        return _pair(self.input_size)

    def training_settings(self, category: str) -> dict[str, Any]:
        """All that decides the trained weights, as plain values, with the input size of this category."""
        settings = self.model_dump(mode="json", exclude=NOT_TRAINING)
        return {
            **settings,
            "input_size": list(self.input_size_for(category)),
            "official_weights": self.official_weights_for(category),
        }

    def official_weights_for(self, category: str) -> str | None:
        """The authors' file for a category, where the weights are theirs."""
        # Not str.format: a path may hold other braces.
        return None if self.official_weights is None else self.official_weights.replace("{category}", category)

    def maps_for(self, dataset: str, category: str) -> str | None:
        """The folder of another tool's anomaly maps for a category, where there is one."""
        if self.maps is None:
            return None
        return self.maps.replace("{dataset}", dataset).replace("{category}", category)

    @property
    def trains(self) -> bool:
        """Whether its weights come from training here."""
        return self.method != "external" and self.source == "trained"

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs (counted from 1) that `keep_every` keeps beside the last one."""
        return [] if self.keep_every is None else list(range(self.keep_every, self.epochs + 1, self.keep_every))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class Job:
    """One cell of a benchmark: what is trained, scored and evaluated as a unit."""

    dataset: str
    category: str
    experiment: str
    seed: int


class Benchmark(StrictModel):
    """A benchmark file: data sets x experiments x seeds."""

    title: str = ""
    """One sentence for the report."""
    datasets: dict[FileName, DatasetChoice] = Field(min_length=1)
    """Data sets by name."""
    experiments: dict[FileName, Experiment] = Field(min_length=1)
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
        """All cells, in the order of the file.

        Arguments:
            categories: The categories of each data set, `all` already resolved.

        Raises:
            ConfigError: If an `input_size` names a category that looks like a misspelt one.
        """
        known = {category for names in categories.values() for category in names}
        for name, experiment in self.experiments.items():
            sizes = experiment.input_size if isinstance(experiment.input_size, dict) else {}
            if sizes == CFLOW_INPUT_SIZE:  # its authors' categories, not the user's words
                continue
            # A category that does not run here is no fault: the list of categories may be a part of them.
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


class Tracking(StrictModel):
    """Where MLflow mirrors the runs."""

    uri: ExpandedPath | None = "sqlite:///results/mlflow.db"
    """An MLflow tracking URI; null turns tracking off."""
    log_models: bool = False
    """Also log each checkpoint as an MLflow model with its signature."""

    @field_validator("uri", mode="before")
    @classmethod
    def _off(cls, uri: Any) -> Any:
        # `snakemake --config 'tracking={uri: null}'` hands on the word.
        return None if uri in {"null", "None", ""} else uri


class Cache(StrictModel):
    """The cache of decoded and resized images."""

    folder: ExpandedPath | None = None
    """Where it lies; `<data_root>/.cache` if unset."""
    max_gigabytes: float = Field(50.0, gt=0)
    """The least recently used parts go when it grows beyond this."""


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
    """How often training saves its state at most, to go on from after a kill."""
    slots_per_gpu: int = Field(1, ge=1)
    """How many jobs may share one GPU."""

    @property
    def cache_folder(self) -> Path:
        """Where the image cache lies."""
        return Path(self.cache.folder) if self.cache.folder else Path(self.data_root) / ".cache"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML, safe, that refuses a key written twice instead of dropping the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected a name as key, but got {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: If it is missing, not YAML, has a key twice, or is not a mapping.
    """
    try:
        # The loader is a SafeLoader; it makes plain values only.
        value = yaml.load(Path(path).read_text("utf-8"), _UniqueKeyLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"Expected a configuration file at {path}, but there is none.") from error
    except OSError as error:
        raise ConfigError(f"Expected to be able to read {path}, but got: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected YAML in {path}, but got: {error}") from error
    if value is None:
        raise ConfigError(f"Expected keys and values in {path}, but the file is empty.")
    if not isinstance(value, dict):
        raise ConfigError(f"Expected keys and values in {path}, but got {type(value).__name__}.")
    return value


def settings_from(values: Mapping[str, Any], source: str = "config/config.yaml or --config") -> Settings:
    """Check the values of config.yaml, as read or as Snakemake merged them with `--config`."""
    return _validated(Settings, values, source)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read and check config.yaml."""
    return settings_from(read_yaml(path), str(path))


def settings_here() -> Settings:
    """The settings of the working folder's config/config.yaml, else of the checkout's, else the defaults."""
    paths = (folder / "config" / "config.yaml" for folder in (Path(), CHECKOUT))
    path = next((path for path in paths if path.exists()), None)
    return Settings() if path is None else load_settings(path)


def experiment_from(values: Mapping[str, Any], source: str) -> Experiment:
    """Check the fields of one experiment that stands in no benchmark file, such as those of `sanflow bench`."""
    return _validated(Experiment, values, source)


def benchmark_path(name_or_path: str, folder: Path = CHECKOUT / "config" / "benchmarks") -> Path:
    """The file of a benchmark that is named as in `config/benchmarks/` or by its path.

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
        _file_name(path.stem)
    except ValueError as error:
        raise ConfigError(f"The name of {path} will not do: {error}.") from error


def load_benchmark(path: str | os.PathLike[str]) -> Benchmark:
    """Read and check a benchmark file.

    Raises:
        ConfigError: With every fault of the file, each with its key and, for a misspelt one, the nearest valid name.
    """
    return _validated(Benchmark, read_yaml(path), str(path))


def load_experiment(benchmark: str, name: str) -> Experiment:
    """One experiment of a benchmark that is named as for `benchmark_path`.

    Raises:
        ConfigError: If there is no such benchmark or it has no such experiment.
    """
    experiments = load_benchmark(benchmark_path(benchmark)).experiments
    if name not in experiments:
        raise not_among(f"an experiment of {benchmark}, one of", experiments, name)
    return experiments[name]


def _validated(model: type[Checked], values: Mapping[str, Any], source: str) -> Checked:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [f"  {_place(fault)}: {_message(fault, model)}" for fault in error.errors(include_url=False)]
        raise ConfigError(f"{source} is not a valid configuration:\n" + "\n".join(faults)) from error


def _place(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"]) or "(whole file)"


def _message(fault: Any, model: type[BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        name, names = str(fault["loc"][-1]), _fields_beside(fault["loc"], model)
        if len(fault["loc"]) > 1 and name in model.model_fields:
            return f"the key {name!r} belongs to the top of the file, not here"
        return f"unknown key {name!r}; valid keys: {', '.join(names)}." + did_you_mean(name, names)
    message = str(fault["msg"]).removeprefix("Value error, ")
    # Our own errors tell what was found; what is missing was not.
    return message if fault["type"] in {"value_error", "missing"} else f"{message}, but got {_brief(fault['input'])}"


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, str) else reprlib.repr(value)


def _fields_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Names of the fields of the (sub)model in which a key at `location` stands."""
    submodels: dict[str, type[BaseModel]] = {
        "datasets": DatasetChoice,
        "experiments": Experiment,
        "tracking": Tracking,
        "cache": Cache,
    }
    return sorted((model if len(location) == 1 else submodels[str(location[0])]).model_fields)
