"""Settings of every experiment, whatever its method. Each method adds its own keys (`sanflow/methods/`)."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sanflow.config.names import ExpandedPath, FileName
from sanflow.config.strict import StrictModel

Size = int | tuple[int, int]
Sizes = Size | dict[str, Size]
SMALLEST_INPUT = 16
# Images in a batch of scoring on a CPU. On a GPU batches are larger, but they are not in the host's memory.
SCORED_AT_ONCE = 8


class Experiment(StrictModel):
    """One row of a benchmark: a method with its settings."""

    method: str
    """The method."""
    label: str | None = None
    """Its name in tables and figures; the experiment's key if unset."""
    datasets: list[FileName] | None = None
    """The data sets it applies to; all of the benchmark if unset. `[]`: it runs only when its files are named."""
    input_size: Sizes = 256
    """Pixels: one number, `[height, width]`, or `{default: ..., <category>: ...}`."""
    evaluate_at: Literal["input", "native"] = "input"
    """`native`: also measure at each image's own resolution, as `native_*`; the headline stays at the input's."""

    # Keys that change nothing that a fit computes.
    not_fitted: ClassVar[frozenset[str]] = frozenset({"datasets", "evaluate_at", "label"})

    @model_validator(mode="after")
    def _check_sizes(self) -> "Experiment":
        if isinstance(self.input_size, dict) and "default" not in self.input_size:
            raise ValueError("`input_size` by category needs the key `default`")
        if any(min(pair_of(size)) < SMALLEST_INPUT for size in sizes_of(self.input_size)):
            raise ValueError(f"expected `input_size` of at least {SMALLEST_INPUT} pixels, but got {self.input_size}")
        return self

    def input_size_for(self, dataset: str, category: str) -> tuple[int, int]:
        """Return height and width, in pixels, at which images of a category enter the method."""
        if isinstance(self.input_size, dict):
            return pair_of(self.input_size.get(category, self.input_size["default"]))
        return pair_of(self.input_size)

    def fit_settings(self, dataset: str, category: str) -> dict[str, Any]:
        """Return all keys that decide the result of a fit, as plain values, resolved for one category."""
        return {
            **self.model_dump(mode="json", exclude=set(self.not_fitted)),
            "input_size": list(self.input_size_for(dataset, category)),
        }

    def files_for(self, dataset: str, category: str) -> dict[str, str]:
        """Return key -> path of the files and folders that the experiment names for a category."""
        return {}

    def content_files(self, dataset: str, category: str) -> list[str]:
        """Return the paths of the files whose content decides the result of a fit."""
        return list(self.files_for(dataset, category).values())

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs (counted from 1) that are kept and scored beside the last one."""
        return []


class DetectorExperiment(Experiment):
    """An experiment whose method is fitted on good parts."""

    calibration_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the good training images that the fit does not see: their scores calibrate p-values. 0: none, as in the
    paper's protocol. A data set with a validation split of its own uses that instead, whatever the fraction."""

    @property
    def chooses_epoch(self) -> bool:
        """Whether half of the held-out parts chooses the epoch; the other half calibrates."""
        return False

    def fit_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate the memory that a fit needs at most, in MB; a scheduler reserves it."""
        return 16000

    def score_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate the memory that scoring the test images needs at most, in MB."""
        return 12000


class EncoderExperiment(DetectorExperiment):
    """An experiment whose method uses the features of a frozen encoder."""

    encoder: str
    """`timm/<name>.<tag>` or `torchvision/<name>`."""
    weights: ExpandedPath = "pretrained"
    """`pretrained`, `bundled` (timm/tf_efficientnet_lite0.in1k only), `random`, or a .pth or .safetensors file."""
    taps: list[str] | None = None
    """Names of the layers that give the features, one a scale; the encoder's own if unset."""
    scales: int = Field(3, ge=1, le=4)
    """How many scales, where `taps` is unset."""
    padding: Literal["reflect", "zeros"] | None = None
    """Padding of a ResNet's convolutions; unset: `reflect` for the paper's ResNets, as in both releases."""

    tile_size: int | None = Field(None, ge=SMALLEST_INPUT)
    """For small defects in large images: the encoder sees square tiles of this many pixels of the resized image; unset:
    the whole image at once."""
    tile_overlap: int = Field(64, ge=0)
    """Pixels by which neighbouring tiles overlap at least, where `tile_size` is set."""

    def encoded_size_for(self, dataset: str, category: str) -> tuple[int, int]:
        """Return height and width, in pixels, of the part of an image that is encoded."""
        return self.input_size_for(dataset, category)

    def score_memory_mb(self, dataset: str, category: str) -> int:
        """Estimate what a flow on WRN-50-2 needs; docs/performance.md has the measurements."""
        return self.encoding_memory_mb(dataset, category, SCORED_AT_ONCE)

    def encoding_memory_mb(self, dataset: str, category: str, n_images: int) -> int:
        """Estimate the memory, in MB, of one pass over a batch, whose images are not tiled, without gradients."""
        height, width = self.encoded_size_for(dataset, category)
        return 2300 + round(110 * n_images * height * width / 256**2)

    def content_files(self, dataset: str, category: str) -> list[str]:
        """Return the file of weights too, where `weights` names one."""
        return [*super().content_files(dataset, category), self.weights]

    @model_validator(mode="after")
    def _check_encoder(self) -> "EncoderExperiment":
        if self.encoder.split("/")[0] not in {"timm", "torchvision"} or "/" not in self.encoder:
            raise ValueError(f"expected `encoder` as timm/<name>.<tag> or torchvision/<name>, but got {self.encoder!r}")
        return self

    @model_validator(mode="after")
    def _check_tiles(self) -> "EncoderExperiment":
        if self.tile_size is not None and self.tile_overlap >= self.tile_size:
            raise ValueError(
                f"expected `tile_overlap` below `tile_size` ({self.tile_size}), but got {self.tile_overlap}"
            )
        return self


def pair_of(size: Size) -> tuple[int, int]:
    """Return height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def sizes_of(sizes: Sizes | None) -> list[Size]:
    """Return all sizes of a setting that may give one for each category; none where it is unset."""
    if sizes is None:
        return []
    return list(sizes.values()) if isinstance(sizes, dict) else [sizes]
